"""Counting the bytes of living tensors."""

import gc

import pytest
import torch
from cacophony.engine.live_bytes import LiveBytes

KIB = 1024


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_dies_is_no_longer_counted(device: str):
    before = torch.zeros(KIB, device=device)
    with LiveBytes() as counter:
        made = torch.zeros(KIB, device=device)  # 4 KiB
        view = made.view(2, -1)[0]
        other = view + before[: KIB // 2]  # 2 KiB
        del made
        assert (counter.live, counter.peak) == (6 * KIB, 6 * KIB)  # the view holds it
        del view, other
        assert (counter.live, counter.peak) == (0, 6 * KIB)
        tiny = torch.ones((), device=device)
        assert counter.live == LiveBytes.BLOCK_BYTES
        del tiny


def test_what_autograd_keeps_is_counted_and_let_go():
    weight = torch.nn.Parameter(torch.ones(64, 64))
    with LiveBytes() as counter:
        y = torch.ones(64, 64) @ weight  # 16 KiB each
        z = y.exp()
        assert counter.live == 3 * 16 * KIB
        z.sum().backward()
        del y, z
        gc.collect()
        assert counter.live == 16 * KIB  # the gradient
        assert counter.peak >= 4 * 16 * KIB


def test_writing_into_what_was_there_costs_nothing():
    buffer = torch.zeros(KIB)
    with LiveBytes() as counter:
        buffer.add_(1.0)
        buffer[:3] = 2.0
    assert counter.peak <= LiveBytes.BLOCK_BYTES  # the scalar
