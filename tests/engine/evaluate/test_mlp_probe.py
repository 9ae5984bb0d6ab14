"""The probe: it learns what can be learned, stops where validation says, and depends on nothing but its seed."""

from dataclasses import replace

import pytest
import torch
from cacophony.engine.evaluate.mlp_probe import Examples, FittedProbe, ProbeConfig, fit_best_probe, fit_probe
from cacophony.errors import InputError
from torch import Tensor

CPU = torch.device("cpu")
SMALL = ProbeConfig(hidden_layers=3, hidden_width=16, max_epochs=30, patience=30, batch_size=16, learning_rate=1e-2)


def clusters(count: int, seed: int) -> Examples:
    """Three classes around three corners, well apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    return Examples(torch.eye(3, 6)[targets] + 0.1 * torch.randn(count, 6, generator=generator), targets)


def accuracy_on(examples: Examples):
    return lambda logits: float((logits.argmax(1) == examples.targets).float().mean())


def fit(config: ProbeConfig) -> FittedProbe:
    valid = clusters(30, seed=1)
    return fit_probe(clusters(61, seed=0), valid, 3, accuracy_on(valid), config, CPU)


def test_separable_classes_are_told_apart():
    test = clusters(30, seed=2)
    assert accuracy_on(test)(fit(SMALL).logits(test.features)) == 1.0


def test_it_has_as_many_layers_as_asked_for():
    layers = [layer for layer in fit(SMALL).net if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(6, 16), (16, 16), (16, 16), (16, 3)]
    linear = [type(layer).__name__ for layer in fit(replace(SMALL, hidden_layers=0)).net]
    assert linear == ["_Standardise", "Linear"]


def test_the_scale_of_the_features_has_no_say():
    train, valid = clusters(61, seed=0), clusters(30, seed=1)

    def scaled(examples: Examples) -> Examples:
        constant = torch.full((len(examples.features), 1), 3.0)
        return Examples(torch.cat([1e-3 * examples.features + 7.0, constant], dim=1), examples.targets)

    probe = fit_probe(scaled(train), scaled(valid), 3, accuracy_on(valid), SMALL, CPU)
    assert accuracy_on(valid)(probe.logits(scaled(valid).features)) == 1.0


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    features = clusters(9, seed=3).features
    before = torch.get_rng_state()
    first, same, other = (fit(config).logits(features) for config in (SMALL, SMALL, replace(SMALL, seed=1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_training_stops_when_validation_does_and_the_best_epoch_counts():
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, *[0.9] * 99])
    seen: list[Tensor] = []

    def score(logits: Tensor) -> float:
        seen.append(logits.clone())
        return next(scores)

    valid = clusters(12, seed=1)
    probe = fit_probe(clusters(30, seed=0), valid, 3, score, replace(SMALL, patience=3), CPU)
    assert (probe.epoch, probe.validation_score, len(seen)) == (2, 0.5, 5)
    torch.testing.assert_close(probe.logits(valid.features), seen[1])


def test_examples_may_have_any_number_of_classes():
    features = torch.eye(4).repeat(8, 1)
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).repeat(8, 1)
    examples = Examples(features, targets)
    config = replace(SMALL, max_epochs=80, patience=80)
    probe = fit_probe(
        examples, examples, 2, lambda logits: float(((logits > 0) == (targets > 0)).float().mean()), config, CPU
    )
    assert torch.equal(probe.logits(features) > 0, targets > 0)


def test_of_several_configurations_the_best_on_validation_is_taken():
    valid = clusters(30, seed=1)
    still = replace(SMALL, learning_rate=1e-9, max_epochs=1)
    best = fit_best_probe(clusters(60, seed=0), valid, 3, accuracy_on(valid), [still, SMALL], CPU)
    assert best.config == SMALL


def test_too_few_examples_are_refused():
    one, some = clusters(1, seed=0), clusters(6, seed=0)
    for train, valid in ((one, some), (some, Examples(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)))):
        with pytest.raises(InputError, match="at least 2 and 1"):
            fit_probe(train, valid, 3, lambda _: 0.0, SMALL, CPU)


def test_a_score_that_is_no_number_is_refused():
    some = clusters(6, seed=0)
    with pytest.raises(InputError, match="never a number"):
        fit_probe(some, some, 3, lambda _: float("nan"), replace(SMALL, max_epochs=2), CPU)


@pytest.mark.parametrize("wrong", [{"hidden_layers": -1}, {"dropout": 1.0}, {"learning_rate": 0.0}, {"patience": 0}])
def test_a_setting_out_of_range_is_named(wrong: dict[str, float]):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ProbeConfig(**wrong)  # pyright: ignore[reportArgumentType]
