"""The stages of the dataset pipeline that need a network, and the commands."""
