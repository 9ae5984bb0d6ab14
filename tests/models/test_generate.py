"""Caption generation against a teacher-forced loop without caches; its ends, bounds and independence of the batch."""

from collections.abc import Callable

import pytest
import torch
from cacophony.kernels.layout import Packed, Padded
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.generate import BOS, EOS, beam_search, sample
from cacophony.models.layers import init_weights
from torch import Tensor

VOCABULARY, WIDTH, LENGTH = 13, 16, 12
MASK = torch.tensor([[True] * 5, [True, True, False, False, False], [True] * 4 + [False], [False] * 5])


def build(seed: int, eos_bias: float = 0.0, head_scale: float = 1.0) -> AudioText:
    """A model whose captions vary with the audio: large weights; ``eos_bias`` makes it end sooner or never."""
    stack = TransformerConfig(width=WIDTH, layers=1, heads=2, mlp_width=16)
    text = TextConfig(width=WIDTH, layers=2, heads=2, mlp_width=24, vocab_size=VOCABULARY, max_positions=LENGTH + 4)
    model = AudioText(AudioTextConfig(audio=stack, text=text, caption_layers=2, pool_heads=2, projection_width=WIDTH))
    init_weights(model, 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name.startswith(("text_encoder", "caption_decoder")):
                words_matter = {"word_embedding.weight": 3.0, "position_embedding.weight": 1.5}
                quiet = name.endswith("mlp_out.weight") or (name.startswith("cap") and name.endswith("out.weight"))
                std = words_matter.get(name.removeprefix("text_encoder."), 0.25 if quiet else 0.5)
                parameter.normal_(0.0, std, generator=generator)
        model.caption_decoder.head.weight.mul_(head_scale)
        model.caption_decoder.head.bias[EOS] += eos_bias
    return model.double().eval()


def audio(seed: int) -> tuple[Tensor, Padded]:
    hidden = torch.randn(4, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    return hidden, Padded(MASK)


@torch.no_grad()
def logits(model: AudioText, ids: Tensor, hidden: Tensor, layout: Padded) -> Tensor:
    """Teacher-forced next-token logits [B, L, V], from scratch and without a cache."""
    text = Padded(torch.ones_like(ids, dtype=torch.bool))
    states = model.text_encoder(ids, text)
    return model.caption_decoder.logits(model.caption_decoder(states, text, hidden, layout))


def slow_greedy(model: AudioText, hidden: Tensor, layout: Padded, max_length: int = LENGTH) -> list[list[int]]:
    captions = []
    for row in range(len(hidden)):
        ids = [BOS]
        while len(ids) < max_length and ids[-1] != EOS:
            alone = Padded(layout.mask[row : row + 1])
            ids.append(int(logits(model, torch.tensor([ids]), hidden[row : row + 1], alone)[0, -1].argmax()))
        captions.append(ids + [0] * (max_length - len(ids)))
    return captions


def mean_log_probability(model: AudioText, captions: Tensor, hidden: Tensor, layout: Padded) -> list[float]:
    """Of each caption's new tokens, EOS included, teacher-forced."""
    log_p = logits(model, captions, hidden, layout).log_softmax(dim=-1)
    scores = []
    for row, caption in enumerate(captions.tolist()):
        end = caption.index(EOS) if EOS in caption else len(caption) - 1
        scores.append(sum(float(log_p[row, i, caption[i + 1]]) for i in range(end)) / end)
    return scores


def greedy(model: AudioText, hidden: Tensor, layout: Padded, max_length: int = LENGTH) -> Tensor:
    return sample(model, hidden, layout, temperature=0, max_length=max_length)


Generate = Callable[[AudioText, Tensor, Padded, int], Tensor]
WAYS: dict[str, Generate] = {
    "greedy": greedy,
    "sample": lambda model, hidden, layout, length: sample(
        model, hidden, layout, temperature=1.0, seed=0, max_length=length
    ),
    "beam": lambda model, hidden, layout, length: beam_search(model, hidden, layout, beams=3, max_length=length),
}


@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_the_loop_without_a_cache(seed: int) -> None:
    model, (hidden, layout) = build(seed, eos_bias=1.0), audio(seed)
    captions = greedy(model, hidden, layout).tolist()
    assert captions == slow_greedy(model, hidden, layout)
    assert len({*map(tuple, captions)}) > 1  # the audio decides


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed: int) -> None:
    model, (hidden, layout) = build(seed, eos_bias=1.0), audio(seed)
    assert torch.equal(beam_search(model, hidden, layout, beams=1, max_length=LENGTH), greedy(model, hidden, layout))


def test_a_low_temperature_is_greedy_where_margins_are_big() -> None:
    model, (hidden, layout) = build(0, head_scale=20.0), audio(0)
    expected = greedy(model, hidden, layout)
    top = logits(model, expected, hidden, layout).topk(2, dim=-1).values
    live = (expected == EOS).cumsum(dim=1) == 0
    margin = float((top[..., 0] - top[..., 1])[:, :-1][live[:, :-1]].min())
    assert margin > 0.1  # at temperature 0.01 the runner-up's chance is below exp(-10) a token, of 44
    drawn = sample(model, hidden, layout, temperature=0.01, seed=0, max_length=LENGTH)
    assert torch.equal(drawn, expected)


def test_sampling_follows_the_softmax_and_its_seed() -> None:
    model, (hidden, _) = build(1), audio(1)
    one = hidden[:1], Padded(MASK[:1])
    drawn = torch.cat([sample(model, *one, temperature=2.0, seed=seed, max_length=2)[:, 1] for seed in range(1500)])
    expected = (logits(model, torch.tensor([[BOS]]), *one)[0, 0] / 2.0).softmax(dim=0)
    frequency = drawn.bincount(minlength=VOCABULARY).double() / len(drawn)
    assert float((frequency - expected).abs().max()) < 0.065  # five standard deviations of a frequency near 1/2
    assert torch.equal(sample(model, *one, temperature=2.0, seed=7, max_length=2)[0, 1], drawn[7])


def test_a_sampled_caption_does_not_depend_on_its_batch() -> None:
    model, (hidden, layout) = build(1), audio(1)
    together = sample(model, hidden, layout, temperature=2.0, seed=5, max_length=LENGTH)
    for row in range(len(hidden)):
        alone = sample(
            model, hidden[row : row + 1], Padded(layout.mask[row : row + 1]), temperature=2.0, seed=5, max_length=LENGTH
        )
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("way", WAYS)
def test_captions_begin_with_bos_and_hold_0_after_eos(way: str) -> None:
    ends = []
    for seed in range(4):
        model, (hidden, layout) = build(seed, eos_bias=1.0, head_scale=0.5), audio(seed)
        captions = WAYS[way](model, hidden, layout, LENGTH)
        assert captions.shape == (4, LENGTH)
        assert captions.dtype == torch.int64
        for caption in captions.tolist():
            assert caption[0] == BOS
            if EOS in caption:
                ends.append(caption.index(EOS))
                assert not any(caption[ends[-1] + 1 :])
    assert len({*ends}) > 2  # rows ended at different steps, so finished ones waited for others


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [2, 5])
def test_max_length_counts_bos(way: str, length: int) -> None:
    model, (hidden, layout) = build(0, eos_bias=-1e4), audio(0)
    captions = WAYS[way](model, hidden, layout, length)
    assert captions.shape == (4, length)
    assert not bool((captions == EOS).any())  # so every slot is a token of the caption
    longer = WAYS[way](model, hidden, layout, length + 1) if way == "greedy" else captions
    assert torch.equal(longer[:, :length], captions)


@pytest.mark.parametrize("way", WAYS)
def test_an_eos_first_caption_is_empty(way: str) -> None:
    model, (hidden, layout) = build(0, eos_bias=1e4), audio(0)
    assert WAYS[way](model, hidden, layout, LENGTH).tolist() == [[BOS, EOS, *[0] * (LENGTH - 2)]] * 4


@pytest.mark.parametrize("way", ["greedy", "beam"])
@pytest.mark.parametrize("seed", range(3))
def test_a_caption_does_not_depend_on_its_batch(way: str, seed: int) -> None:
    model, (hidden, layout) = build(seed, eos_bias=1.0), audio(seed)
    together = WAYS[way](model, hidden, layout, LENGTH)
    for rows in ([0], [1], [2], [3], [3, 1], [2, 2, 0]):
        part = WAYS[way](model, hidden[rows], Padded(MASK[rows]), LENGTH)
        assert torch.equal(part, together[rows])
    wider = torch.cat((hidden, torch.full((4, 3, WIDTH), 9.0, dtype=torch.float64)), dim=1)[:3]
    padded = Padded(torch.cat((MASK, torch.zeros(4, 3, dtype=torch.bool)), dim=1)[:3])
    assert torch.equal(WAYS[way](model, wider, padded, LENGTH), together[:3])


@pytest.mark.parametrize("seed", range(3))
def test_as_many_beams_as_captions_find_the_best_caption(seed: int) -> None:
    """Two new tokens over 13 words: 13 beams keep every first token, so the search is exhaustive up to its own rule."""
    model, (hidden, layout) = build(seed, eos_bias=-1e4), audio(seed)
    found = beam_search(model, hidden, layout, beams=VOCABULARY, max_length=3)
    pairs = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY))
    every = torch.cat((torch.zeros(len(pairs), 1, dtype=torch.int64), pairs), dim=1)
    every = every[(pairs != EOS).all(dim=1)]
    for row in range(4):
        clip = hidden[row : row + 1].expand(len(every), -1, -1), Padded(MASK[row : row + 1].expand(len(every), -1))
        scores = mean_log_probability(model, every, *clip)
        assert found[row].tolist() == every[max(range(len(every)), key=scores.__getitem__)].tolist()


def test_three_beams_do_no_worse_than_greedy() -> None:
    """No law: beam search may prune what greedy finds and end lower. These clips (the first six seeds) keep it."""
    gains = []
    for seed in range(6):
        model, (hidden, layout) = build(seed, head_scale=0.5), audio(seed)
        captions = greedy(model, hidden, layout), beam_search(model, hidden, layout, beams=3, max_length=LENGTH)
        scores = [mean_log_probability(model, caption, hidden, layout) for caption in captions]
        gains += [beam - alone for alone, beam in zip(*scores, strict=True)]
    assert min(gains) > -1e-9
    assert sum(gain > 1e-9 for gain in gains) >= 4


@pytest.mark.parametrize("max_length", [0, 1, LENGTH + 5])
def test_impossible_lengths_and_layouts_are_refused(max_length: int) -> None:
    model, (hidden, layout) = build(0), audio(0)
    for way in WAYS.values():
        with pytest.raises(ValueError, match=f"max_length {max_length}"):
            way(model, hidden, layout, max_length)
    with pytest.raises(ValueError, match="padded audio"):
        sample(model, hidden.flatten(0, 1), Packed.from_lengths([5] * 4), max_length=3)
    with pytest.raises(ValueError, match="beams"):
        beam_search(model, hidden, layout, beams=0, max_length=3)


def test_a_seed_for_each_clip_draws_what_it_draws_alone() -> None:
    model, (hidden, layout) = build(3, eos_bias=1.0), audio(3)
    seeds = torch.tensor([7, 0, 2**40, 7])
    together = sample(model, hidden, layout, temperature=1.0, seed=seeds, max_length=8)

    for row, seed in enumerate(seeds.tolist()):
        alone = sample(model, hidden, layout, temperature=1.0, seed=seed, max_length=8)
        assert torch.equal(together[row], alone[row])
