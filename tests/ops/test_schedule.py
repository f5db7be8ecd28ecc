"""The learning rate over a run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mlc.ops.engine.base import TrainSettings
from mlc.ops.engine.schedule import learning_rate
from mlc.ops.update.limits import default_rate


def rates(decay, steps=100, warmup=20, floor=0.05):
    settings = TrainSettings(steps=steps, lr=1.0, warmup=warmup, decay=decay, floor=floor)
    return [learning_rate(s, settings) for s in range(steps)]


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
def test_the_rate_rises_to_the_peak_and_ends_at_the_floor(decay):
    found = rates(decay)
    assert found[0] == pytest.approx(1 / 20)
    assert found[19] == found[20] == 1.0
    assert found[-1] == pytest.approx(0.05)
    assert all(a <= b for a, b in pairwise(found[:20]))
    assert all(a >= b for a, b in pairwise(found[20:]))


def test_cosine_is_halfway_down_in_the_middle():
    assert rates("cosine", steps=121, warmup=20, floor=0.0)[70] == pytest.approx(0.5)


def test_wsd_is_constant_until_its_last_tenth():
    found = rates("wsd", steps=220, warmup=20)
    assert set(found[20:200]) == {1.0}
    assert found[205] < 1


def test_constant_stays_at_the_peak():
    assert set(rates("constant")[19:]) == {1.0}


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_short_runs_have_a_rate_in_every_step(decay, steps, warmup):
    assert all(0 < r <= 1 for r in rates(decay, steps=steps, warmup=warmup))


def test_the_default_rate_falls_with_size_and_is_threefold_for_new_parameters():
    assert default_rate(260_032, "full") == 5e-4
    assert default_rate(1_000, "full") == 5e-4
    assert default_rate(7_000_000_000, "full") < 3e-5
    assert default_rate(260_032, "expand") == default_rate(260_032, "lora") == 1.5e-3
