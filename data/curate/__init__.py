"""The dataset before its shards: a manifest of clips and their texts, and the stages that work on it."""
