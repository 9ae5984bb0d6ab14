"""The causal text encoder and the caption decoder: causality, positions, layouts, caches."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from cacophony.kernels.backend import use_backend
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Packed, Padded, pad, padded_layout, unpad
from cacophony.kernels.triton_runtime import INTERPRETING
from cacophony.models.block import StackCache
from cacophony.models.config import TextConfig
from cacophony.models.layers import init_weights
from cacophony.models.text import CaptionDecoder, TextEncoder, normalise
from torch import Tensor, nn

CONFIG = TextConfig(width=12, layers=2, heads=3, mlp_width=20, vocab_size=30, max_positions=10)
AUDIO_WIDTH = 8
CAPTIONS = Packed.from_lengths([7, 2, 1, 5])
AUDIO = Packed.from_lengths([3, 6, 1, 2])


def randomised(module: nn.Module) -> None:
    """Weights large enough that every path shows in the output."""
    init_weights(module, 0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


@pytest.fixture
def encoder() -> TextEncoder:
    encoder = TextEncoder(CONFIG)
    randomised(encoder)
    return encoder


@pytest.fixture
def decoder() -> CaptionDecoder:
    decoder = CaptionDecoder(CONFIG, 2, AUDIO_WIDTH, CONFIG.vocab_size)
    randomised(decoder)
    return decoder


def full(*shape: int) -> Padded:
    return Padded(torch.ones(shape, dtype=torch.bool))


def test_a_later_token_never_changes_an_earlier_state(encoder: TextEncoder, decoder: CaptionDecoder) -> None:
    ids, audio = torch.randint(0, 30, (1, 8)), torch.randn(1, 4, AUDIO_WIDTH, dtype=torch.float64)

    def states(ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = encoder(ids, full(1, 8))
        return hidden[0], decoder(hidden, full(1, 8), audio, full(1, 4))[0]

    before = states(ids)
    for changed in range(8):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 30
        for one, two in zip(before, states(other), strict=True):
            assert torch.equal(one[:changed], two[:changed])
            assert bool((one[changed:] != two[changed:]).any(dim=1).all())  # and it is seen from there on


def test_padded_equals_packed_forward_and_backward(encoder: TextEncoder, decoder: CaptionDecoder) -> None:
    ids = torch.randint(0, 30, (CAPTIONS.total,))
    audio = torch.randn(AUDIO.total, AUDIO_WIDTH, dtype=torch.float64, requires_grad=True)
    key = DropoutKey(0.3, 0, 1, torch.tensor([4, 5, 6, 7]))
    hidden = encoder(ids, CAPTIONS, key.at(0))
    one = decoder(hidden, CAPTIONS, audio, AUDIO, key.at(1))
    captions, clips = padded_layout(CAPTIONS), padded_layout(AUDIO)
    padded_hidden = encoder(pad(ids, CAPTIONS), captions, key.at(0))
    torch.testing.assert_close(unpad(padded_hidden, CAPTIONS), hidden, rtol=1e-10, atol=1e-10)
    other = unpad(decoder(padded_hidden, captions, pad(audio, AUDIO), clips, key.at(1)), CAPTIONS)
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)

    blocks = [p for name, p in decoder.named_parameters() if not name.startswith("head")]
    inputs = (audio, *encoder.parameters(), *blocks)
    cotangent = torch.randn_like(one)
    gradients = [torch.autograd.grad(out, inputs, cotangent) for out in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_what_padding_holds_and_its_width_do_not_matter(encoder: TextEncoder) -> None:
    ids = torch.randint(0, 30, (3, 6))
    mask = torch.arange(6)[None] < torch.tensor([6, 2, 4])[:, None]
    expected = encoder(ids, Padded(mask))[mask]
    assert torch.equal(encoder(ids.masked_fill(~mask, 29), Padded(mask))[mask], expected)
    trimmed = encoder(ids[1:2, :2], full(1, 2))
    torch.testing.assert_close(trimmed[0], expected[6:8], rtol=0, atol=1e-10)


def test_positions_count_from_0(encoder: TextEncoder) -> None:
    ids = torch.randint(0, 30, (2, 4))
    table = encoder.position_embedding.weight
    hidden = encoder(ids, full(2, 4))
    (gradient,) = torch.autograd.grad(hidden.square().sum(), table)
    assert gradient.ne(0).any(dim=1).tolist() == [True] * 4 + [False] * 6
    (gradient,) = torch.autograd.grad(encoder(ids[:, 0], Packed.from_lengths([1, 1])).square().sum(), table)
    assert gradient.ne(0).any(dim=1).tolist() == [True] + [False] * 9


def test_steps_with_a_cache_equal_the_whole_caption(encoder: TextEncoder, decoder: CaptionDecoder) -> None:
    ids, audio = torch.randint(0, 30, (2, 6)), torch.randn(2, 3, AUDIO_WIDTH, dtype=torch.float64)
    clips = Padded(torch.tensor([[True, True, True], [True, False, False]]))
    hidden = encoder(ids, full(2, 6))
    whole = decoder.logits(decoder(hidden, full(2, 6), audio, clips))
    text_cache, caption_cache = StackCache.empty(2), StackCache.empty(2)
    for i in range(6):
        step = encoder(ids[:, i : i + 1], full(2, 1), cache=text_cache, first_position=i)
        torch.testing.assert_close(step[:, 0], hidden[:, i], rtol=1e-10, atol=1e-10)
        step = decoder(step, full(2, 1), audio, clips, cache=caption_cache)
        torch.testing.assert_close(decoder.logits(step)[:, 0], whole[:, i], rtol=1e-10, atol=1e-10)


def test_the_decoder_hears_valid_audio_only(encoder: TextEncoder, decoder: CaptionDecoder) -> None:
    ids, mask = torch.randint(0, 30, (1, 3)), torch.tensor([[True, False, True]])
    audio = torch.randn(1, 3, AUDIO_WIDTH, dtype=torch.float64)
    hidden = encoder(ids, full(1, 3))
    out = decoder(hidden, full(1, 3), audio, Padded(mask))
    louder = audio.clone()
    louder[0, 1] = 100.0
    assert torch.equal(decoder(hidden, full(1, 3), louder, Padded(mask)), out)
    louder[0, 2] = 100.0
    assert bool((decoder(hidden, full(1, 3), louder, Padded(mask)) != out).any(dim=2).all())


def test_dropout_needs_a_key(encoder: TextEncoder) -> None:
    ids = torch.randint(0, 30, (CAPTIONS.total,))
    plain = encoder(ids, CAPTIONS)
    assert torch.equal(encoder.train()(ids, CAPTIONS), plain)
    key = DropoutKey(0.1, 0, 0, torch.arange(4))
    dropped = encoder.eval()(ids, CAPTIONS, key)
    assert not torch.allclose(dropped, plain)
    assert torch.equal(encoder(ids, CAPTIONS, key), dropped)
    assert not torch.allclose(encoder(ids, CAPTIONS, DropoutKey(0.1, 0, 1, torch.arange(4))), dropped)


@pytest.mark.skipif(not INTERPRETING, reason="kernels run on a CPU in Triton's interpreter alone")
@pytest.mark.parametrize("stash", [None, 1])
def test_kernels_lose_what_the_reference_loses(stash: Literal[1] | None) -> None:
    """Every op of the encoder fused, dropout on, blocks by autograd and by hand; 1e-5 of a tensor's largest entry."""
    encoder = TextEncoder(replace(CONFIG, layers=1, heads=1))
    randomised(encoder)
    encoder.float()
    layout = Packed.from_lengths([4, 0, 2])
    key = DropoutKey(0.3, 2**40, 1, torch.tensor([4, 2**33, 7]))
    ids, cotangent, results = torch.randint(0, 30, (layout.total,)), torch.randn(layout.total, CONFIG.width), []
    for backend in ("reference", "fused"):
        encoder.zero_grad()
        with use_backend(backend):
            hidden = encoder(ids, layout, key, stash=stash)
            hidden.backward(cotangent)
        results.append((hidden.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_normalise() -> None:
    vectors = torch.randn(5, 7, dtype=torch.float64) * torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e6])[:, None]
    unit = normalise(vectors)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(unit[2:], vectors[2:] / vectors[2:].norm(dim=1, keepdim=True), rtol=1e-8, atol=0)
    zero = normalise(torch.zeros(2, 4))
    assert torch.equal(zero, torch.zeros(2, 4))
