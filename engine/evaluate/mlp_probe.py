"""A multilayer perceptron on frozen embeddings: trained on one split, stopped by another; the same seed, the same net.

A hidden layer is linear, batch normalisation, dropout, ReLU, as in the HEAR kit; weights start from Xavier's uniform.
Unlike there, features are standardised by the training split first, so that their scale has no say.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InputError


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The probe and how it is trained."""

    hidden_layers: int = 3
    """Hidden layers; the linear layer to the classes comes on top."""
    hidden_width: int = 1024
    """Features of a hidden layer."""
    dropout: float = 0.1
    """Dropout rate behind each hidden layer."""
    learning_rate: float = 1e-3
    """Of Adam, constant."""
    batch_size: int = 1024
    """Most examples of a step; an epoch is divided into equal parts."""
    max_epochs: int = 500
    """Epochs at most."""
    patience: int = 20
    """Epochs without a better validation score after which training stops."""
    seed: int = 0
    """Decides weights, order and dropout."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("hidden_width", "batch_size", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.hidden_layers < 0:
            raise InputError(f"hidden_layers is {self.hidden_layers}; expected at least 0")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")
        if not self.learning_rate > 0.0:
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0")


@dataclass(frozen=True)
class Examples:
    """Features float32 ``[N, D]``; targets int64 ``[N]`` (one class each) or float32 ``[N, C]`` (any number)."""

    features: Tensor
    targets: Tensor


@dataclass(frozen=True)
class FittedProbe:
    """The network of the epoch with the best validation score."""

    net: nn.Sequential
    config: ProbeConfig
    epoch: int
    validation_score: float

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of ``features`` ``[N, D]``, on the host."""
        return self.net(features.to(next(self.net.parameters()).device)).cpu()


Score = Callable[[Tensor], float]
"""Of the validation split's logits ``[N, C]`` on the host; larger is better."""


def fit_probe(
    train: Examples, valid: Examples, classes: int, score: Score, config: ProbeConfig, device: torch.device
) -> FittedProbe:
    """Train on ``train`` until ``score`` on ``valid`` has not risen for ``patience`` epochs; of equals the first wins.

    Cross-entropy where an example has one class, binary cross-entropy where it has any number. Raises InputError where
    there are fewer than two training examples or none to validate.
    """
    if len(train.features) < 2 or not len(valid.features):
        raise InputError(
            f"{len(train.features)} training and {len(valid.features)} validation examples; expected at least 2 and 1"
        )
    loss = nn.CrossEntropyLoss() if train.targets.dim() == 1 else nn.BCEWithLogitsLoss()
    order = torch.Generator().manual_seed(config.seed)
    features, targets = train.features.to(device), train.targets.to(device)
    parts = -(-len(features) // config.batch_size)
    best_state, best_epoch, best_score = {}, 0, float("-inf")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        net = _perceptron(features, classes, config).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
        for epoch in range(1, config.max_epochs + 1):
            net.train()
            for rows in torch.randperm(len(features), generator=order).to(device).tensor_split(parts):
                optimizer.zero_grad()
                loss(net(features[rows]), targets[rows]).backward()
                optimizer.step()
            found = score(FittedProbe(net.eval(), config, epoch, best_score).logits(valid.features))
            if found > best_score:
                best_state, best_epoch, best_score = copy.deepcopy(net.state_dict()), epoch, found
            if epoch - best_epoch >= config.patience:
                break
    if not best_state:
        raise InputError("the validation score was never a number; expected every class among the validation examples")
    net.load_state_dict(best_state)
    return FittedProbe(net.eval(), config, best_epoch, best_score)


def fit_best_probe(
    train: Examples,
    valid: Examples,
    classes: int,
    score: Score,
    configs: Sequence[ProbeConfig],
    device: torch.device,
) -> FittedProbe:
    """Fit a probe of each configuration and return the one with the best validation score; of equals the first."""
    fitted = [fit_probe(train, valid, classes, score, config, device) for config in configs]
    return max(fitted, key=lambda probe: probe.validation_score)


class _Standardise(nn.Module):
    """Features less their mean, over their deviation; those that do not vary become 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        deviation = features.std(dim=0)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", torch.where(deviation > 1e-8, 1.0 / deviation.clamp_min(1e-8), 0.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise ``features`` ``[N, D]``."""
        return (features - self.mean) * self.scale


def _perceptron(features: Tensor, classes: int, config: ProbeConfig) -> nn.Sequential:
    layers: list[nn.Module] = [_Standardise(features)]
    width, before = features.shape[1], "linear"
    for _ in range(config.hidden_layers):
        hidden = config.hidden_width
        layers += [_linear(width, hidden, before), nn.BatchNorm1d(hidden), nn.Dropout(config.dropout), nn.ReLU()]
        width, before = hidden, "relu"
    return nn.Sequential(*layers, _linear(width, classes, before))


def _linear(inputs: int, outputs: int, before: str) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain(before))  # pyright: ignore[reportArgumentType]
    return layer
