"""On a GPU an update never waits for the device, and a CUDA graph of it trains as the update does."""

from collections.abc import Callable, Iterator

import pytest
import torch
from cacophony.engine.objective import Report
from cacophony.engine.update import Counters, Updater
from cacophony.engine.update_config import UpdateConfig
from cacophony.kernels.backend import choose
from cacophony.models.layers import LayerNorm, Linear, init_weights
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: no other device is waited for")

STEPS = 12
CONFIG = UpdateConfig(learning_rate=0.01, final_learning_rate=1e-3, warmup_steps=2, rho=0.1, clip_norm=1.0)


def built(config: UpdateConfig = CONFIG) -> tuple[Updater, Callable[[], Report], Tensor]:
    """An updater of a small network in bfloat16, its gradient, and the input that the gradient is of."""
    model = nn.Sequential(Linear(64, 128), LayerNorm(128, 1e-6), Linear(128, 64))
    init_weights(model, 0)
    updater = Updater(model.cuda(), config, STEPS, linear_dtype=torch.bfloat16)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).cuda()

    def gradient() -> Report:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = model(x)
        loss = (y.float() - x.square()).square().mean()
        loss.backward()
        return Report({"loss": loss.detach()}, 0, 0, 0)

    assert choose("adamw", x.device).path == "fused"
    return updater, gradient, x


@pytest.fixture
def never_waiting() -> Iterator[Callable[[], None]]:
    """From the call of it on, waiting for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"ascent": "momentum"}, {"perturbation": "local"}, {"sam_every": 2}], ids=str)
def test_an_update_never_waits_for_the_device(options: dict[str, str], never_waiting: Callable[[], None]) -> None:
    updater, gradient, _ = built(UpdateConfig(**{**vars(CONFIG), **options}))
    for step in range(2):  # kernels are compiled
        updater.update(step, gradient)
    torch.cuda.synchronize()
    never_waiting()
    for step in range(2, 6):
        updater.update(step, gradient)
    torch.cuda.set_sync_debug_mode("default")
    assert updater.counters == Counters(0, 0)
    assert float(updater.state_tensors()["step.0.weight"]) == 6


def test_a_cuda_graph_of_an_update_trains_as_the_update_does() -> None:
    """The same bits after nine replays, of which the device skips one: it alone knows rates, counts and norms."""
    (captured, gradient, x), (plain, plain_gradient, plain_x) = built(), built()
    good, bad = x.clone(), torch.full_like(x, float("nan"))
    for step in range(2):
        plain.update(step, plain_gradient)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(2):
            captured.update(step, gradient)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.update(2, gradient)
    for step in range(2, 11):
        data = bad if step == 5 else good
        x.copy_(data)
        graph.replay()
        plain_x.copy_(data)
        plain.update(step, plain_gradient)
    assert captured.counters == plain.counters == Counters(1, 0)
    found, expected = captured.weights() | captured.state_tensors(), plain.weights() | plain.state_tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert tensor.isfinite().all()
