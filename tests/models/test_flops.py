"""FLOP counts of the models equal those of the matrix products that run, where no slot is padding.

What the models do not count, torch's counter does not either: norms, softmax, activations, embeddings' additions. The
poolers count what the fused op computes and say how much more the reference, which runs here, does.
"""

import pytest
import torch
from cacophony.kernels.layout import Padded, Patches, PatchPositions
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText, Pooler
from cacophony.models.block import PostNormBlock, PreNormBlock
from cacophony.models.by_hand import Stash
from cacophony.models.config import AudioMAEConfig, AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.layers import init_weights
from cacophony.models.stash import recomputed_flops, run_stack
from torch.utils.flop_counter import FlopCounterMode

AUDIO = TransformerConfig(width=24, layers=3, heads=3, mlp_width=40)
DECODER = TransformerConfig(width=16, layers=2, heads=2, mlp_width=28)
TEXT = TextConfig(width=20, layers=2, heads=5, mlp_width=36, vocab_size=50, max_positions=16)
BATCH = 3


def full(length: int) -> Padded:
    return Padded(torch.ones(BATCH, length, dtype=torch.bool))


def lengths(length: int) -> torch.Tensor:
    return torch.full((BATCH,), length)


def patches(length: int) -> Patches:
    number = torch.arange(length).expand(BATCH, length)
    return Patches(torch.randn(BATCH, length, 256), PatchPositions(number // 8, number % 8, full(length)))


def test_audio_mae() -> None:
    model = AudioMAE(AudioMAEConfig(encoder=AUDIO, decoder=DECODER))
    init_weights(model, 0)
    visible, restore = patches(5), patches(11).positions
    with FlopCounterMode(display=False) as counter:
        model(visible, restore)
    assert model.flops(lengths(5), lengths(11)) == counter.get_total_flops()


def test_audio_text() -> None:
    model = AudioText(AudioTextConfig(audio=AUDIO, text=TEXT, caption_layers=3, pool_heads=2, projection_width=18))
    init_weights(model, 0)
    ids = torch.randint(0, 50, (BATCH, 7))
    with FlopCounterMode(display=False) as counter:
        audio_hidden, _ = model.encode_audio(patches(10))
        text_hidden, _ = model.encode_text(ids, full(7))
    saved = model.audio_pooler.flops_saved(lengths(10)) + model.text_pooler.flops_saved(lengths(7))
    assert model.embedding_flops(lengths(10), lengths(7)) + saved == counter.get_total_flops()
    with counter:
        hidden = model.decode_caption(text_hidden, full(7), audio_hidden, full(10))
        model.caption_decoder.logits(hidden[:, :-1])  # the last token predicts nothing
    assert model.flops(lengths(10), lengths(7)) == model.embedding_flops(lengths(10), lengths(7)) + (
        counter.get_total_flops()
    )


def test_pooling_projects_no_token() -> None:
    """Of the 4 D² FLOPs of a token's key and value nothing is left but 4 D for each head."""
    width, heads, clips = 768, 8, torch.tensor([496, 300])
    pooler = Pooler(width, heads, projection_width=width)
    per_clip = 4 * width * width  # values of what was pooled, projection
    assert pooler.flops(clips) == 796 * 4 * width * heads + 2 * per_clip
    assert pooler.flops_saved(clips) == 796 * (4 * width * width + 4 * width - 4 * width * heads) - 2 * 2 * width**2


def test_a_batch_costs_the_sum_of_its_clips() -> None:
    mae = AudioMAE(AudioMAEConfig(encoder=AUDIO, decoder=DECODER))
    both = AudioText(AudioTextConfig(audio=AUDIO, text=TEXT, caption_layers=3, pool_heads=2, projection_width=18))
    one, other = torch.tensor([5, 0, 12]), torch.tensor([3, 8, 1])
    for flops in (mae.flops, both.flops, both.embedding_flops):
        alone = [flops(one[i : i + 1], other[i : i + 1]) for i in range(3)]
        assert flops(one, other) == sum(alone)
        assert min(alone) > 0


@pytest.mark.parametrize("stash", [1, 2, 3, 6, 10])
@pytest.mark.parametrize("kind", ["pre-norm", "post-norm", "cross"])
def test_recomputation(kind: str, stash: Stash) -> None:
    """What a backward computes again is what it computes more than one that was left everything."""
    context_lengths = lengths(9) if kind == "cross" else None
    block = (
        PreNormBlock(DECODER)
        if kind == "pre-norm"
        else PostNormBlock(DECODER, 24 if context_lengths is not None else None)
    )
    init_weights(block, 0)

    def backward_flops(level: Stash) -> int:
        x = torch.randn(BATCH, 7, DECODER.width, requires_grad=True)
        context = torch.randn(BATCH, 9, 24, requires_grad=True) if context_lengths is not None else None
        y = run_stack([block], x, full(7), level, context=context, context_layout=full(9) if kind == "cross" else None)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        return counter.get_total_flops()

    least = recomputed_flops(block, lengths(7), 10, context_lengths)
    assert least == (2 * BATCH * 9 * 24 * 2 * DECODER.width if kind == "cross" else 0)
    found = recomputed_flops(block, lengths(7), stash, context_lengths) - least
    assert found == backward_flops(stash) - backward_flops(10)
