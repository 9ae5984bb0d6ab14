"""Cacophony Engine: train and use an audio-text model (masked autoencoder, then contrastive + captioning with SAM)."""

__version__ = "0.1.0"
