"""AdamW over flat buffers against torch.optim, group by group; what a skipped step leaves; wrong arguments."""

import math
from typing import Any

import pytest
import torch
from cacophony.kernels.adamw import adamw_
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.flat_buffers import SEGMENT
from cacophony.kernels.triton_runtime import HAS_TRITON, INTERPRETING
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ["reference", *(["fused"] if HAS_TRITON else [])]
BETAS, EPS = (0.9, 0.999), 1e-8
GROUPS = [(0.01, 1.0), (0.0, 0.5), (0.1, 2.0)]  # weight decay, factor of the learning rate
RATES = [1e-3, 3e-3, 2e-3, 5e-4]
STEPS, APPLIED, SKIPPED, IN_A_ROW = range(4)

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def buffers() -> dict[str, Any]:
    """Four segments of three groups, two of them narrow."""
    torch.manual_seed(1)
    applied = torch.arange(1, len(RATES) + 1, dtype=torch.float64)
    corrections = (1 - BETAS[0] ** applied, (1 - BETAS[1] ** applied).sqrt())
    schedule = torch.stack((torch.tensor(RATES, dtype=torch.float64), *corrections), dim=1)
    tensors = {
        "master": torch.randn(4 * SEGMENT) * 0.1,
        "exp_avg": torch.zeros(4 * SEGMENT),
        "exp_avg_sq": torch.zeros(4 * SEGMENT),
        "gradient": torch.zeros(4 * SEGMENT),
        "narrow": torch.zeros(2 * SEGMENT, dtype=torch.bfloat16),
        "wide": torch.zeros(2 * SEGMENT),
        "groups": torch.tensor([0, 1, 2, 0], dtype=torch.uint8),
        "table": torch.tensor(GROUPS),
        "norm": torch.ones(()),
        "counts": torch.zeros(4, dtype=torch.int64),
        "schedule": schedule.float(),
    }
    on_device = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    return {**on_device, "ascent_norm": None, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}


def gradients(step: int) -> Tensor:
    return torch.randn(4 * SEGMENT, generator=torch.Generator().manual_seed(step)).to(DEVICE)


@every_backend
def test_every_group_is_updated_as_torch_optim_does(backend: Backend) -> None:
    """Budget 1e-6 of a weight after four steps of up to 6e-3: float32 sums in another order."""
    state = buffers()
    segments = [segment.clone().requires_grad_() for segment in state["master"].split(SEGMENT)]
    groups = [
        {"params": [segment], "weight_decay": GROUPS[number][0]}
        for segment, number in zip(segments, state["groups"].tolist(), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    for step, rate in enumerate(RATES):
        for segment, gradient in zip(segments, gradients(step).split(SEGMENT), strict=True):
            segment.grad = gradient
        for group, number in zip(optimizer.param_groups, state["groups"].tolist(), strict=True):
            group["lr"] = rate * GROUPS[number][1]
        optimizer.step()

        state["gradient"].copy_(gradients(step))
        with use_backend(backend):
            adamw_(**state)
        assert not state["gradient"].any()
    expected = torch.cat(segments).detach()
    torch.testing.assert_close(state["master"], expected, rtol=1e-6, atol=1e-6)
    for key in ("exp_avg", "exp_avg_sq"):
        found = torch.cat([optimizer.state[segment][key] for segment in segments])
        torch.testing.assert_close(state[key], found, rtol=1e-6, atol=1e-7)
    assert state["counts"].tolist() == [4, 4, 0, 0]
    if backend == "fused" and INTERPRETING:  # which cuts off instead of rounding
        torch.testing.assert_close(state["narrow"].float(), state["master"][: 2 * SEGMENT], rtol=2.0**-7, atol=0)
    else:
        assert torch.equal(state["narrow"], state["master"][: 2 * SEGMENT].bfloat16())
    assert torch.equal(state["wide"], state["master"][2 * SEGMENT :])


@every_backend
@pytest.mark.parametrize("which", ["norm", "ascent_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_counts_and_nothing_else(which: str, value: float, backend: Backend) -> None:
    state = buffers()
    state["gradient"].copy_(gradients(0))
    with use_backend(backend):
        adamw_(**state)
        before = {name: state[name].clone() for name in ("master", "exp_avg", "exp_avg_sq", "narrow", "wide")}
        for _ in range(2):
            state["gradient"].fill_(math.nan)
            state["narrow"].fill_(7.0)  # as SAM's perturbation left it
            state["wide"].fill_(7.0)
            adamw_(**{**state, which: torch.tensor(value, device=DEVICE)})
            assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
            assert not state["gradient"].any()
        assert state["counts"].tolist() == [3, 1, 2, 2]
        state["gradient"].copy_(gradients(1))
        adamw_(**state)
    assert state["counts"].tolist() == [4, 2, 2, 0]


@every_backend
def test_a_skipped_step_takes_its_learning_rate_with_it_but_not_its_bias_correction(backend: Backend) -> None:
    """The schedule goes by steps begun, the correction by steps applied: a first step moves by its rate and decays."""
    state = buffers()
    state["table"][:] = torch.tensor([0.0, 1.0])
    before = state["master"].clone()
    with use_backend(backend):
        adamw_(**{**state, "norm": torch.tensor(math.nan, device=DEVICE)})
        state["gradient"].fill_(0.5)
        adamw_(**state)
    torch.testing.assert_close(state["master"], before - RATES[1], rtol=0, atol=1e-7)


@every_backend
def test_clipping_scales_the_gradient_to_the_norm(backend: Backend) -> None:
    found = {}
    for clip_norm in (0.0, 2.0, 5.0):
        state = buffers()
        state["gradient"].copy_(gradients(0))
        with use_backend(backend):
            adamw_(**{**state, "norm": torch.tensor(4.0, device=DEVICE)}, clip_norm=clip_norm)
        found[clip_norm] = state["exp_avg"]
    torch.testing.assert_close(found[2.0], found[0.0] * 0.5, rtol=1e-6, atol=0)
    assert torch.equal(found[5.0], found[0.0])


def test_wrong_arguments_are_named() -> None:
    state = buffers()
    for change, message in (
        ({"exp_avg": state["exp_avg"][:7]}, r"adamw: exp_avg has shape \[7\], expected \[4096\]"),
        ({"groups": state["groups"][:3]}, r"adamw: groups has shape \[3\], expected \[4\]"),
        ({"groups": state["groups"].long()}, r"adamw: groups is torch\.int64, expected torch\.uint8"),
        ({"table": state["table"][:, :1]}, r"adamw: table has shape \[3, 1\]"),
        ({"table": state["table"].double()}, r"adamw: table is torch\.float64, expected torch\.float32"),
        ({"schedule": state["schedule"].half()}, r"adamw: schedule is torch\.float16, expected torch\.float32"),
        ({"counts": state["counts"][:2]}, r"adamw: counts has shape \[2\], expected \[4\]"),
        ({"schedule": state["schedule"][:0]}, r"adamw: schedule has shape \[0, 3\]"),
        ({"ascent_norm": torch.ones(2, device=DEVICE)}, r"adamw: ascent_norm has shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            adamw_(**{**state, **change})
