"""What a run is made of, built from its configuration: network, objective, updater."""

from dataclasses import replace

import torch
from torch import nn

from ..models.audio_mae import AudioMAE
from ..models.audio_text import AudioText
from ..models.config import NetworkConfig
from ..models.network import build_network
from .config import ContrastiveRunConfig, MaeRunConfig, RunConfig
from .contrastive_captioning import ContrastiveCaptioning
from .distributed import World
from .masked_reconstruction import MaskedReconstruction
from .objective import Objective
from .update import Updater
from .update_per_tensor import PerTensorUpdater

Config = MaeRunConfig | ContrastiveRunConfig
AnyUpdater = Updater | PerTensorUpdater


def network_config(config: Config) -> NetworkConfig:
    """Return the sizes of the network that a run trains and saves: ``config.model``.

    Where captions have no weight in the loss there is no caption decoder, for nothing would train it.
    """
    if isinstance(config, ContrastiveRunConfig) and config.objective.caption_weight == 0.0:
        return replace(config.model, caption_layers=0)
    return config.model


def build_model(config: Config) -> AudioMAE | AudioText:
    """Build the network of a run on the host, its weights uninitialised."""
    return build_network(network_config(config))


def build_objective(config: Config, world: World) -> Objective:
    """Build the objective of a run for this rank."""
    if isinstance(config, MaeRunConfig):
        return MaskedReconstruction(config.objective, config, world)
    return ContrastiveCaptioning(config.objective, config, world, config.model.text.dropout)


def build_updater(model: nn.Module, config: RunConfig, world: World) -> AnyUpdater:
    """Build the updater of a run for ``model``, which lies on the world's device, its weights already drawn."""
    if config.update.implementation == "per_tensor":
        return PerTensorUpdater(model, config.update, config.steps, world=world)
    linear_dtype = torch.bfloat16 if config.precision == "bf16" else None
    return Updater(model, config.update, config.steps, linear_dtype=linear_dtype, world=world)
