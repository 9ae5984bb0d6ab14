"""The stages of the dataset pipeline that need a network or draw pictures, and their commands."""
