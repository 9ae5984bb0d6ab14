"""Input: audio files, shards, tokens, batches and the loader."""
