"""The learning rate over a run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mlc.ops.engine.base import TrainSettings
from mlc.ops.engine.schedule import learning_rate, stable_steps
from mlc.ops.update.limits import default_rate


def rates(decay, steps=100, warmup=20, floor=0.05):
    settings = TrainSettings(steps=steps, lr=1.0, warmup=warmup, decay=decay, floor=floor)
    return [learning_rate(s, settings) for s in range(steps)]


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "infinite"])
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


def test_the_infinite_rate_cools_to_a_level_keeps_it_and_anneals():
    found = rates("infinite", steps=1021, warmup=20, floor=0.0)
    assert found[20] == 1.0
    assert found[170] == pytest.approx(0.75)
    assert found[320:920] == pytest.approx([0.5] * 600)
    assert found[970] == pytest.approx(0.25)


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "infinite"])
def test_the_rate_never_leaps(decay):
    found = rates(decay, steps=1000, warmup=50)
    steepest = max(1 / 50, 0.95 / 90)  # warming up, or annealing over the last tenth
    assert max(abs(a - b) for a, b in pairwise(found)) <= steepest * 1.05


@pytest.mark.parametrize("decay", ["wsd", "infinite"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 20), (220, 20), (40, 4), (15, 0)])
def test_the_stable_point_is_the_last_before_the_rate_falls_for_the_end(decay, steps, warmup):
    settings = TrainSettings(steps=steps, lr=1.0, warmup=warmup, decay=decay)
    point = stable_steps(settings)
    found = [learning_rate(s, settings) for s in range(steps)]
    level = 1.0 if decay == "wsd" else 0.05 + 0.95 * 0.5
    assert found[point - 1] == pytest.approx(level)
    assert found[point] < level - 1e-9


def test_schedules_without_an_annealing_have_no_stable_point():
    assert [stable_steps(TrainSettings(steps=50, lr=1.0, warmup=5, decay=d)) for d in ("cosine", "linear", "constant")] == [None] * 3
    assert stable_steps(TrainSettings(steps=1, lr=1.0, warmup=0, decay="wsd")) == 1


def test_a_slowed_run_has_the_same_rates_until_then():
    slow = TrainSettings(steps=30, lr=1.0, warmup=3, slow=((11, 0.5), (21, 0.5)))
    plain, slowed = rates("cosine", steps=30, warmup=3), [learning_rate(s, slow) for s in range(30)]
    assert slowed[:10] == plain[:10]
    assert slowed[10:20] == [r * 0.5 for r in plain[10:20]]
    assert slowed[20:] == [r * 0.25 for r in plain[20:]]


def test_constant_stays_at_the_peak():
    assert set(rates("constant")[19:]) == {1.0}


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "constant", "infinite"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_short_runs_have_a_rate_in_every_step(decay, steps, warmup):
    assert all(0 < r <= 1 for r in rates(decay, steps=steps, warmup=warmup))


def test_the_default_rate_falls_with_size_and_is_threefold_for_new_parameters():
    assert default_rate(260_032, "full") == 5e-4
    assert default_rate(1_000, "full") == 5e-4
    assert default_rate(7_000_000_000, "full") < 3e-5
    assert default_rate(260_032, "expand") == default_rate(260_032, "lora") == 1.5e-3
