"""The learning rate of every step, and the table of it that the device reads."""

import math
from dataclasses import replace

import pytest
import torch
from cacophony.engine.schedule import learning_rate, schedule_table
from cacophony.engine.update_config import UpdateConfig
from hypothesis import given
from hypothesis import strategies as st

CONFIG = UpdateConfig(learning_rate=0.03, final_learning_rate=0.01, warmup_steps=1, beta1=0.8, beta2=0.95)


@given(st.integers(2, 400), st.data())
def test_the_schedule_rises_to_the_peak_and_falls_to_the_floor(steps: int, data: st.DataObject):
    warmup = data.draw(st.integers(0, steps - 2))
    config = replace(CONFIG, warmup_steps=warmup)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert rates[0] == pytest.approx(0.03 / max(warmup, 1))
    assert rates[max(warmup - 1, 0)] == pytest.approx(0.03)
    assert rates[warmup] == pytest.approx(0.03)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    middle = (warmup + steps - 1) / 2
    if middle.is_integer():
        assert rates[int(middle)] == pytest.approx(0.02)


def test_the_warm_up_is_linear():
    config = replace(CONFIG, warmup_steps=10)
    assert [learning_rate(step, 100, config) for step in range(10)] == pytest.approx([0.003 * k for k in range(1, 11)])


def test_the_last_step_has_the_final_rate_even_right_after_the_warm_up():
    assert learning_rate(10, 11, replace(CONFIG, warmup_steps=10)) == pytest.approx(0.01)


def test_the_table_holds_rates_and_bias_corrections_of_every_step():
    table = schedule_table(12, CONFIG)
    assert table.dtype == torch.float64
    for step, (rate, correction1, root2) in enumerate(table.tolist()):
        assert rate == learning_rate(step, 12, CONFIG)
        assert correction1 == pytest.approx(1 - 0.8 ** (step + 1), rel=1e-14)
        assert root2 == pytest.approx(math.sqrt(1 - 0.95 ** (step + 1)), rel=1e-14)
