"""Small ops against the authors' code: layer norm, sin/cos positions, activations, normalisation, both poolers."""

import pytest
import torch
from cacophony.kernels.activation import Activation
from cacophony.kernels.attention_pool import attention_pool
from cacophony.kernels.layer_norm import layer_norm
from cacophony.kernels.layout import LayoutName, Packed, Padded, Patches, PatchPositions, unpad
from cacophony.kernels.linear import linear
from cacophony.kernels.patch_embed import patch_embed
from cacophony.models.text import normalise
from torch import Tensor

from .support import assert_within, golden, run_on

STORED = golden("micro_ops")


@run_on("layer_norm")
@pytest.mark.parametrize(("eps", "name"), [(1e-6, "out_audio_default"), (1e-5, "out_roberta_1e-5")])
def test_layer_norm_has_the_eps_of_each_tower(device: torch.device, eps: float, name: str) -> None:
    """The rows' variance falls to 1e-6 and below, where the two epsilons differ most."""
    x, weight, bias = (STORED.tensor(f"layernorm/{key}", device) for key in ("x", "scale", "bias"))
    assert_within(layer_norm(x, weight, bias, eps), STORED[f"layernorm/{name}"], 1e-5)


@run_on("patch_embed")
@pytest.mark.parametrize("width", [64, 768])
def test_time_embedding(device: torch.device, width: int) -> None:
    """Patch embedding of nothing but the time; 1e-4 because both sides round a float32 angle of up to 999."""
    time, expected = STORED.tensor("sincos/pos", device), STORED[f"sincos/out_{width}"]
    layout = Packed.from_lengths([len(time)], device)
    patches = Patches(torch.zeros(len(time), 256, device=device), PatchPositions(time, torch.zeros_like(time), layout))
    weight, bias, freq = (torch.zeros(shape, device=device) for shape in ((width, 256), (width,), (8, width)))
    found = patch_embed(patches, weight, bias, freq)
    assert_within(found[:, :: width // expected.shape[1]], expected, 1e-4)


@run_on("linear")
@pytest.mark.parametrize(("activation", "name"), [("gelu", "gelu_text"), ("silu", "silu_audio")])
def test_activations(device: torch.device, activation: Activation, name: str) -> None:
    x = STORED.tensor("act/x", device)
    rows = torch.nn.functional.pad(x, (0, 256 - len(x))).view(16, 16)
    found = linear(rows, torch.eye(16, device=device), torch.zeros(16, device=device), activation)
    assert_within(found.flatten()[: len(x)], STORED[f"act/{name}"], 2e-6)


def test_normalise() -> None:
    """The last row is all zero and stays so."""
    assert_within(normalise(STORED.tensor("l2norm/x")), STORED["l2norm/out"], 1e-6)


@run_on("attention_pool", "linear")
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_audio_pooler(device: torch.device, heads: int, layout: LayoutName) -> None:
    """One parameter set read with other heads gives other embeddings."""
    kernel, bias, out_kernel, out_bias, query = (
        STORED.tensor(f"audio_pooler/{key}", device) for key in ("kernel0", "bias0", "kernel1", "bias1", "query")
    )
    (key, value), (key_bias, value_bias) = kernel.T.chunk(2), bias.chunk(2)
    pooled = pool(device, layout, query, key, key_bias, value, value_bias, heads)
    expected = STORED[f"audio_pooler/out_heads{heads}"]
    assert_within(linear(pooled, out_kernel.T, out_bias), expected[: len(pooled)], 5e-6)


@run_on("attention_pool")
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_text_pooler(device: torch.device, layout: LayoutName) -> None:
    query, key, key_bias, value, value_bias = (
        STORED.tensor(f"text_pooler/{name}", device)
        for name in ("query", "key_kernel", "key_bias", "value_kernel", "value_bias")
    )
    pooled = pool(device, layout, query[0], key.T, key_bias, value.T, value_bias, 1)
    assert_within(pooled, STORED["text_pooler/out"][: len(pooled)], 5e-6)


def pool(
    device: torch.device,
    layout: LayoutName,
    query: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    value_bias: Tensor,
    heads: int,
) -> Tensor:
    """Pool the three stored samples; packed only two, because the third has no valid token and the goldens average
    what its masked slots hold."""
    hidden, mask = STORED.tensor("audio_pooler/hidden", device), STORED.tensor("audio_pooler/mask", device).bool()
    if layout == "padded":
        return attention_pool(hidden, query, key, key_bias, value, value_bias, heads, Padded(mask))
    packed = Packed.from_lengths(mask[:2].sum(dim=1), device)
    return attention_pool(unpad(hidden[:2], packed), query, key, key_bias, value, value_bias, heads, packed)
