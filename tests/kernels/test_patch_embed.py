"""Patch embedding: projection, sin/cos time and frequency row of every patch, in both layouts."""

import dataclasses
import math

import pytest
import torch
from cacophony.kernels.accuracy import deviations
from cacophony.kernels.backend import use_backend
from cacophony.kernels.choose_patches import keep_fraction
from cacophony.kernels.layout import LayoutName, Packed, Patches, PatchPositions, pack, pad, padded_layout
from cacophony.kernels.patch_embed import SPEC, patch_embed, patch_embed_reference
from cacophony.kernels.patch_mask import patch_mask
from cacophony.kernels.sincos import sincos_frequencies
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor

WIDTH = 6


def weights() -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((WIDTH, 256), (WIDTH,), (8, WIDTH))
    projection, bias, freq = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return projection, bias, freq


PACKED = Packed.from_lengths([3, 0, 5, 1])
PADDED = padded_layout(PACKED)


def ragged() -> tuple[Patches, Patches]:
    """The same patches packed and padded."""
    packed = PACKED
    values = torch.randn(packed.total, 256, dtype=torch.float64)
    time, freq = torch.randint(0, 60, (packed.total,)), torch.randint(0, 8, (packed.total,))
    padded = PatchPositions(pad(time, packed), pad(freq, packed), PADDED)
    return Patches(values, PatchPositions(time, freq, packed)), Patches(pad(values, packed), padded)


def test_each_token_is_its_patch_time_and_frequency() -> None:
    patches, _ = ragged()
    projection, bias, freq = (weight.detach() for weight in weights())
    tokens = patch_embed(patches, projection, bias, freq)
    for i, token in enumerate(tokens.tolist()):
        time = int(patches.positions.time[i])
        for d in range(WIDTH):
            angle = time * 10_000 ** (-2 * (d % 3) / WIDTH)
            expected = sum(float(v * w) for v, w in zip(patches.values[i], projection[d], strict=True))
            expected += float(bias[d]) + float(freq[int(patches.positions.freq[i]), d])
            expected += math.sin(angle) if d < WIDTH // 2 else math.cos(angle)
            assert token[d] == pytest.approx(expected, abs=1e-5)  # the angle is a float32 of up to 60


def test_padded_equals_packed_forward_and_backward() -> None:
    packed, padded = ragged()
    parameters = weights()
    outputs = [patch_embed(packed, *parameters), pack(patch_embed(padded, *parameters), PADDED)]
    cotangent = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, parameters, cotangent) for output in outputs]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert bool(one.any())


def test_no_patch_is_legal() -> None:
    packed = Packed.from_lengths([0, 0])
    none = torch.zeros(0, dtype=torch.int64)
    patches = Patches(torch.zeros(0, 256, dtype=torch.float64), PatchPositions(none, none, packed))
    assert patch_embed(patches, *weights()).shape == (0, WIDTH)


def test_pixels_are_rounded_to_the_dtype_of_the_weight() -> None:
    patches, _ = ragged()
    projection, bias, freq = (weight.detach().float() for weight in weights())
    wide = dataclasses.replace(patches, values=patches.values.float())
    narrow = dataclasses.replace(patches, values=wide.values.bfloat16())
    tokens = patch_embed(wide, projection.bfloat16(), bias.bfloat16(), freq)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, patch_embed(narrow, projection.bfloat16(), bias.bfloat16(), freq))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("weight", torch.zeros(5, 256), "weight has 5 rows, expected an even number"),
        ("weight", torch.zeros(6, 255), r"weight has shape \[6, 255\], expected \[6, 256\]"),
        ("bias", torch.zeros(4), r"bias has shape \[4\], expected \[6\]"),
        ("freq_embedding", torch.zeros(7, 6), r"freq_embedding has shape \[7, 6\], expected \[8, 6\]"),
        ("bias", torch.zeros(6, device="meta"), "bias is on meta, expected cpu as patches.values"),
    ],
)
def test_wrong_arguments_are_named(name: str, wrong: Tensor, message: str) -> None:
    patches, _ = ragged()
    arguments = {"weight": torch.zeros(6, 256), "bias": torch.zeros(6), "freq_embedding": torch.zeros(8, 6)}
    with pytest.raises(ValueError, match=f"patch_embed: {message}"):
        patch_embed(dataclasses.replace(patches, values=patches.values.float()), **{**arguments, name: wrong})


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@needs_triton
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", ["packed, gradient of the pixels", "float32 stream", "odd"])
def test_fused_is_right_in_half_precision(name: str) -> None:
    """The tiles and the order of sums of bfloat16, which Triton's interpreter cannot multiply."""
    too_large = [d for d in deviations(SPEC, SPEC.case(name), DEVICE, torch.float16, backend="fused") if not d.ok]
    assert not too_large


@needs_triton
def test_fused_follows_autocast_like_the_reference() -> None:
    inputs = SPEC.case("padded").inputs(DEVICE, torch.float32)
    leaves = [inputs[name] for name in ("weight", "bias", "freq_embedding")]
    with use_backend("fused"), torch.autocast(DEVICE.type, torch.float16):
        tokens = patch_embed(**inputs)
    with torch.autocast(DEVICE.type, torch.float16):
        expected = patch_embed_reference(**inputs)
    exact = patch_embed_reference(**inputs)
    assert tokens.dtype == expected.dtype == torch.float32
    error, reference_error = (float((other - exact).detach().abs().max()) for other in (tokens, expected))
    assert 1e-5 < error <= reference_error  # it does round
    cotangent = torch.randn_like(tokens)
    fused, rounded, true = (torch.autograd.grad(output, leaves, cotangent) for output in (tokens, expected, exact))
    for found, other, truth in zip(fused, rounded, true, strict=True):
        assert found.dtype == torch.float32
        budget = 2 * float((other - truth).abs().max()) + 1e-5 * float(truth.abs().max())
        assert float((found - truth).abs().max()) <= budget


@needs_triton
def test_fused_embeds_a_late_time_as_exactly_as_an_early_one() -> None:
    times = torch.tensor([0, 1, 61, 2047, 100_000], device=DEVICE)
    positions = PatchPositions(times, torch.zeros_like(times), Packed.from_lengths([5], DEVICE))
    nothing = [torch.zeros(shape, device=DEVICE) for shape in ((48, 256), (48,), (8, 48))]
    with use_backend("fused"):
        tokens = patch_embed(Patches(torch.zeros(5, 256, device=DEVICE), positions), *nothing)
    angle = (times[:, None].float() * sincos_frequencies(48, DEVICE)).double()
    exact = torch.cat((angle.sin(), angle.cos()), dim=1)
    assert float((tokens.double() - exact).abs().max()) < 2**-23


@needs_triton
def test_fused_marks_a_frequency_that_is_not_there() -> None:
    inputs = SPEC.case("one patch").inputs(DEVICE, torch.float32)
    inputs["patches"].positions.freq.fill_(8)
    with use_backend("fused"):
        assert bool(patch_embed(**inputs).isnan().all())


@needs_triton
@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("values", torch.float64, r"patches\.values is torch\.float64, expected torch\.float32"),
        ("time", torch.int32, r"patches\.positions\.time is torch\.int32, expected torch\.int64"),
        ("weight", torch.float64, r"weight is torch\.float64, expected torch\.float32"),
        ("bias", torch.bfloat16, r"bias is torch\.bfloat16, expected torch\.float32"),
    ],
)
def test_fused_refuses_dtypes_its_kernels_do_not_take(name: str, dtype: torch.dtype, message: str) -> None:
    inputs = dict(SPEC.case("one patch").inputs(DEVICE, torch.float32))
    patches = inputs["patches"]
    if name == "values":
        inputs["patches"] = dataclasses.replace(patches, values=patches.values.to(dtype))
    elif name == "time":
        positions = dataclasses.replace(patches.positions, time=patches.positions.time.to(dtype))
        inputs["patches"] = dataclasses.replace(patches, positions=positions)
    else:
        inputs[name] = inputs[name].to(dtype)
    with use_backend("fused"), pytest.raises(ValueError, match=f"patch_embed: {message}"):
        patch_embed(**inputs)


@needs_triton
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_fused_masking_and_embedding_follow_each_other(layout: LayoutName) -> None:
    """The first two ops of stage 1: nothing lies between what one writes and the other reads."""
    frames = torch.randn(110, 128, device=DEVICE)
    offsets = torch.tensor([0, 64, 64, 110])
    keep = keep_fraction(offsets.diff() // 16 * 8, 0.2)
    parameters = [torch.randn(shape, device=DEVICE) for shape in ((48, 256), (48,), (8, 48))]

    def tokens() -> Tensor:
        masked = patch_mask(frames, offsets, keep, torch.tensor([4, 5, 6]), seed=1, step=2, layout=layout)
        return patch_embed(masked.kept, *parameters)

    with use_backend("fused"):
        found = tokens()
    with use_backend("reference"):
        expected = tokens()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
