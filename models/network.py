"""The network that a configuration describes; needs nothing but torch."""

from .audio_mae import AudioMAE
from .audio_text import AudioText
from .config import AudioMAEConfig, NetworkConfig


def build_network(config: NetworkConfig) -> AudioMAE | AudioText:
    """Build a network of these sizes on the host, its weights uninitialised."""
    return AudioMAE(config) if isinstance(config, AudioMAEConfig) else AudioText(config)
