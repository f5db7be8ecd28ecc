"""Selective dampening: who is selected, by how much it shrinks, and that the others keep their bits."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mlc.kernels import dampen as room
from mlc.kernels.dampen import dampen

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def case(n: int = 3000, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(n, generator=generator).to(dtype)
    return w, torch.rand(n, generator=generator), torch.rand(n, generator=generator)


def bits(x: torch.Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def test_the_rule_on_numbers_written_out():
    w = torch.tensor([8.0, 8.0, 8.0, 8.0, -8.0])
    few, every = torch.tensor([4.0, 2.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5])
    out, count = dampen(w, few, every, alpha=2.0, lam=1.0)
    assert out.tolist() == [2.0, 8.0, 0.0, 8.0, torch.tensor(-8 * 0.1).item()]  # 2 > 2 x 1 is false: strict; 0 > 0 likewise
    assert count == 3


def test_a_floor_and_a_clamp_hold_beta():
    w, few, every = torch.ones(2), torch.tensor([10.0, 3.0]), torch.tensor([1.0, 1.0])
    assert dampen(w, few, every, 2.0, 1.0, 0.25)[0].tolist() == [0.25, torch.tensor(1 / 3).item()]
    assert dampen(w, few, every, 2.0, 5.0)[0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_nothing_is_selected_every_bit_stays(dtype: torch.dtype):
    w, few, every = case(dtype=dtype)
    w[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    few = torch.minimum(few, every)
    out, count = dampen(w, few, every, 1.0, 0.0)
    assert (bits(out), count) == (bits(w), 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unselected_weights_keep_their_bits_and_selected_ones_shrink_and_keep_their_sign(dtype: torch.dtype):
    w, few, every = case(dtype=dtype)
    out, count = dampen(w, few, every, 1.5, 1.0)
    chosen = few > every * 1.5
    assert count == int(chosen.sum()) > 0
    assert bits(out[~chosen]) == bits(w[~chosen])
    assert out.dtype == dtype
    assert bool((out.abs() <= w.abs()).all())
    assert bool((out * w >= 0).all())


def test_lambda_zero_makes_selected_weights_exactly_zero():
    w, few, every = case()
    out, _ = dampen(w, few, every, 1.0, 0.0)
    assert bool((out[few > every] == 0).all())


def test_a_great_lambda_leaves_everything():
    w, few, every = case()
    assert bits(dampen(w, few, every, 1.0, 1e9)[0]) == bits(w)


def test_selection_shrinks_as_alpha_grows():
    w, few, every = case()
    chosen = [dampen(w, few, every, alpha, 0.0)[0] == 0 for alpha in (0.5, 1.0, 2.0, 5.0)]
    for more, fewer in pairwise(chosen):
        assert bool((more | ~fewer).all())
        assert more.sum() > fewer.sum()


def test_scaling_both_importances_by_a_power_of_two_changes_nothing():
    w, few, every = case()
    assert bits(dampen(w, few, every, 1.3, 0.7)[0]) == bits(dampen(w, few * 4, every * 4, 1.3, 0.7)[0])


def test_chunks_leave_no_seam(monkeypatch):
    w, few, every = case(1000)
    whole = dampen(w, few, every, 1.0, 1.0)
    monkeypatch.setattr(room, "CHUNK", 7)
    parts = dampen(w.view(10, 100), few.view(10, 100), every.view(100, 10).t().contiguous().t().reshape(10, 100), 1.0, 1.0)
    assert parts[1] == whole[1]
    assert bits(parts[0]) == bits(whole[0])


@pytest.mark.parametrize(("alpha", "lam", "floor"), [(-1, 1, 0), (1, -1, 0), (1, 1, 2), (float("nan"), 1, 0)])
def test_numbers_that_make_no_sense_are_refused(alpha: float, lam: float, floor: float):
    with pytest.raises(ValueError, match="not negative"):
        dampen(*case(3), alpha, lam, floor)


def test_other_shapes_and_types_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        dampen(torch.ones(2), torch.ones(3), torch.ones(2), 1, 1)
    with pytest.raises(ValueError, match=r"int64"):
        dampen(torch.ones(2).long(), torch.ones(2), torch.ones(2), 1, 1)
