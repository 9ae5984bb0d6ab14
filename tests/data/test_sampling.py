"""Steps are pure functions: the published draws, crops inside their clips, replacements from outside the batch."""

from collections import Counter

import numpy as np
import pytest
from cacophony.data.draws import integers, permutation, uniform
from cacophony.data.sampling import Draw, Sampler
from cacophony.data.shards import Clip

ALL = slice(None)


def test_draws_are_those_of_data_draws() -> None:
    """Runs that began with an earlier release continue with the same samples."""
    draws = Sampler(50, 8, seed=3).step(7).draws(ALL)
    order = permutation(50, 3, 1, 0)
    assert [draw.clip for draw in draws] == order[8:16].tolist()
    for draw in draws:
        assert draw.crop(1_000, 300) == (int(integers(3, 1, draw.clip, 1, high=701)), 300)
        assert draw.kind == float(uniform(3, 1, draw.clip, 2))
        assert draw.choice % 5 == int(integers(3, 1, draw.clip, 3, high=5))


@pytest.mark.parametrize(("samples", "longest"), [(1, None), (1, 1), (77, 100), (100, 77), (78, 77)])
def test_a_crop_lies_inside_its_clip(samples: int, longest: int | None) -> None:
    for draw in Sampler(200, 200, seed=1).step(0).draws(ALL):
        start, frames = draw.crop(samples, longest)
        assert frames == min(samples, longest or samples)
        assert 0 <= start <= samples - frames


def test_rows_of_a_step_do_not_depend_on_who_asks() -> None:
    whole = Sampler(50, 8, seed=3).step(4)
    assert [draw for rank in range(4) for draw in whole.draws(slice(2 * rank, 2 * rank + 2))] == whole.draws(ALL)
    assert Sampler(50, 8, seed=3).step(4).replacement(9, 1) == whole.replacement(9, 1)


def test_replacements_come_from_outside_the_batch_and_are_spread_over_it() -> None:
    sampler = Sampler(20, 6, seed=9)
    for number in range(9):
        step = sampler.step(number)
        batch = {draw.clip for draw in step.draws(ALL)}
        chosen = Counter(step.replacement(clip, attempt).clip for clip in batch for attempt in range(100))
        assert set(chosen) == set(range(20)) - batch
        assert max(chosen.values()) < 3 * 600 / 14


def test_a_replacement_has_the_crop_and_caption_it_has_anyway() -> None:
    sampler = Sampler(20, 5, seed=9)
    own = {draw.clip: draw for number in range(4) for draw in sampler.step(number).draws(ALL)}
    for attempt in range(5):
        draw = sampler.step(2).replacement(own[0].clip, attempt)
        assert draw == own[draw.clip]


def test_where_the_batch_is_the_corpus_a_replacement_is_any_clip() -> None:
    step = Sampler(6, 6, seed=0).step(3)
    assert {step.replacement(2, attempt).clip for attempt in range(100)} == set(range(6))


def test_captions_of_one_kind_stand_in_for_the_other() -> None:
    def clip(real: tuple[str, ...], synthetic: tuple[str, ...]) -> Clip:
        return Clip(0, "k", 1, 1 / 16_000, real, synthetic, "s", 0)

    low, high = Draw(0, 0, 0.1, 2**64 - 1), Draw(0, 0, 0.9, 0)
    assert low.caption(clip(("a", "b"), ("c", "d")), 0.5) == "d"
    assert high.caption(clip(("a", "b"), ("c", "d")), 0.5) == "a"
    assert high.caption(clip((), ("c",)), 0.5) == "c"
    assert low.caption(clip(("a",), ()), 0.5) == "a"
    assert low.caption(clip((), ()), 0.5) == ""


def test_an_epoch_holds_every_clip_but_the_remainder() -> None:
    sampler = Sampler(50, 8, seed=3)
    assert sampler.steps_per_epoch == 6
    seen = np.array([draw.clip for number in range(6, 12) for draw in sampler.step(number).draws(ALL)])
    assert len(np.unique(seen)) == 48
