"""SLUG: which tensor, how long a step, and nothing else touched."""

from __future__ import annotations

import math

import pytest
import torch

from mlc.ops.unlearn.exclusion import Slot
from mlc.ops.unlearn.front import candidates, front, place
from mlc.ops.unlearn.search import Trial, choose, falling, grid, step, weakest


def slot(name: str, layer: int | None = 0) -> Slot:
    return Slot(name, (name,), "mlp.in", layer)


def some_place(name: str, importance: float, alignment: float):
    """A place with exactly these two numbers: theta of norm 1, g_f along the first axis."""
    theta, forget = torch.tensor([0.0, 1.0]), torch.tensor([importance, 0.0])
    retain = torch.tensor([alignment, math.sqrt(1 - alignment**2)])
    return place(slot(name), theta, forget, retain)


def threshold(at: float, *, kept_below: float = math.inf):
    """A measure that is met from `at` on."""
    tried = []

    def measure(strength: float) -> Trial:
        tried.append(strength)
        met = strength >= at
        forget = 0.0 if met else 1.0
        return Trial(strength, forget, 1 - 0.01 * strength, met, met, strength <= kept_below, strength <= kept_below)

    measure.tried = tried
    return measure


# --- the front -------------------------------------------------------------------------------------------


def test_importance_and_alignment_are_the_ratio_of_norms_and_the_cosine_without_its_sign():
    found = place(slot("w"), torch.tensor([3.0, 4.0]), torch.tensor([0.0, -10.0]), torch.tensor([1.0, 1.0]))
    assert found.importance == pytest.approx(2.0)
    assert found.alignment == pytest.approx(1 / math.sqrt(2))


def test_the_front_holds_the_smallest_alignment_and_the_largest_importance():
    generator = torch.Generator().manual_seed(0)
    places = [some_place(f"t{i}", *torch.rand(2, generator=generator).tolist()) for i in range(40)]
    best = front(places)
    assert min(places, key=lambda p: p.alignment) in best
    assert max(places, key=lambda p: p.importance) in best
    for one in best:
        assert not any(o.alignment < one.alignment and o.importance > one.importance for o in places)


def test_scaling_all_gradients_leaves_the_front_as_it_is():
    generator = torch.Generator().manual_seed(1)
    tensors = [[torch.randn(5, generator=generator) for _ in range(3)] for _ in range(20)]
    names = [
        [p.slot.name for p in front(place(slot(f"t{i}"), w, s * f, s * r) for i, (w, f, r) in enumerate(tensors))] for s in (1, 1e-6, 1e4)
    ]
    assert names[0] == names[1] == names[2]
    assert len(names[0]) >= 1


def test_a_tensor_whose_gradients_agree_is_never_preferred_over_an_equally_important_one():
    same, free = some_place("agreeing", 2.0, 1.0), some_place("free", 2.0, 0.0)
    assert [p.slot.name for p in front([same, free])] == ["free"]


def test_a_tensor_that_the_forget_loss_does_not_reach_is_no_candidate_for_the_front():
    assert front([some_place("deaf", 0.0, 0.0)]) == ()


def test_candidates_are_the_matrices_within_blocks_and_all_matrices_where_there_are_no_blocks():
    slots = [slot("a"), slot("gain"), slot("stem", None)]
    shapes = {"a": (2, 2), "gain": (2,), "stem": (3, 2)}
    assert [s.name for s in candidates(slots, shapes)] == ["a"]
    assert [s.name for s in candidates(slots[1:], shapes)] == ["stem"]


# --- the search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.013, 0.09, 0.1, 0.3, 0.77, 3.0])
def test_the_step_meets_the_closed_form_threshold_within_its_bisections(at):
    measure = threshold(at)
    found = step(0.1, measure)
    bisections = 10 - max(1, math.ceil(math.log2(at / 0.1)) + 1)
    assert found.reached
    assert at <= found.best.strength <= at + max(at, 0.1) * 2.0**-bisections
    assert len(measure.tried) == 10


def test_ten_measurements_from_a_tenth_come_within_two_percent():
    for at in (0.11, 0.17, 0.4, 0.79):
        assert step(0.1, threshold(at)).best.strength == pytest.approx(at, rel=0.02)


def test_doubling_ends_where_too_little_is_kept_before_enough_is_forgotten():
    measure = threshold(50.0, kept_below=0.3)
    found = step(0.1, measure)
    assert not found.reached
    assert measure.tried == [0.1, 0.2, 0.4]


def test_a_search_whose_log_is_not_monotone_walks_a_grid_of_twelve():
    def odd(strength: float) -> Trial:
        met = 0.3 < strength < 0.5 or strength > 5
        return Trial(strength, 0.0 if met else 0.5 + 0.4 * (strength > 0.15), 1 - strength / 10, met, met, strength < 1, strength < 1)

    found = step(0.1, odd)
    assert not found.monotone
    assert set(grid(0.01, 10.0, 12)) <= {t.strength for t in found.log}
    assert found.reached
    assert 0.3 < found.best.strength < 0.5


def test_the_weakest_strength_that_is_met_is_found_in_few_measurements():
    strengths = grid(0.9, 0.02, 24)
    for index in (0, 1, 7, 23):
        tried = []

        def measure(a: float, index: int = index, tried: list = tried) -> Trial:
            tried.append(a)
            met = a <= strengths[index]
            return Trial(a, 0.0 if met else 1.0, 1.0, met, met, True, True)

        assert weakest(strengths, measure).best.strength == strengths[index]
        assert len(tried) <= 5


def test_without_a_setting_that_satisfies_both_sides_the_best_compromise_is_named_with_the_whole_log():
    found = weakest(grid(0.9, 0.02, 24), lambda a: Trial(a, a, 0.5 + a / 4, False, False, False, False))
    assert not found.reached
    assert len(found.log) >= 12
    assert found.best == min(found.log, key=lambda t: t.forget - t.retain)


def test_room_to_spare_is_wanted_first_and_waived_where_it_costs_too_much():
    def trial(strength, met, enough, kept, safe):
        return Trial(strength, 0.5, 1.0, met, enough, kept, safe)

    assert choose([trial(1, False, True, True, True), trial(2, True, True, True, True)]).best.strength == 2
    assert choose([trial(1, False, True, True, True), trial(2, True, True, True, False)]).best.strength == 1
    assert choose([trial(1, False, True, True, False), trial(2, True, True, True, False)]).best.strength == 2
    assert not choose([trial(1, False, False, True, True), trial(2, True, True, False, False)]).reached


def test_a_forget_accuracy_that_rises_only_by_noise_is_still_falling():
    def log(*values):
        return [Trial(i, v, 1.0, False, False, True, True) for i, v in enumerate(values)]

    assert falling(log(0.9, 0.5, 0.51, 0.0))
    assert not falling(log(0.9, 0.5, 0.55, 0.0))
