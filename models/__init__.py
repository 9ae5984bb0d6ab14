"""Networks: audio masked autoencoder, causal RoBERTa, caption decoder and the audio-text model."""
