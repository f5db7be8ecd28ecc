"""Averages of checkpoints: exponential coefficients, a search, a weight that falls back, and soups that stay sparse."""

from __future__ import annotations

import pytest
import torch

from mlc.ops.merge.averages import adaptive_weight, ema_coefficients, search_coefficients
from mlc.registry.errors import CheckFailed
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import merged


@pytest.mark.parametrize("interval", [1, 3])
def test_exponential_coefficients_are_those_of_the_running_mean(interval: int):
    points = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = points[0]
    for point in points[1:]:
        mean = 0.8**interval * mean + (1 - 0.8**interval) * point
    found = ema_coefficients(6, 0.8, interval)
    assert sum(found) == pytest.approx(1.0)
    assert torch.allclose(torch.tensor(found, dtype=torch.float64) @ points, mean, atol=1e-12)


def bowl(count: int = 8):
    wanted = torch.tensor([0.3, -0.2, 0.4, 0.0, 0.1, -0.1, 0.2], dtype=torch.float64)
    wanted = torch.cat([wanted, 1 - wanted.sum().reshape(1)])[-count:]
    basis = torch.randn(12, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return lambda c: -float((basis @ (torch.tensor(c, dtype=torch.float64) - wanted)).square().sum())


def test_a_search_comes_near_the_optimum_and_beats_every_start():
    score = bowl()
    found = search_coefficients(8, score, seed=1, budget=2000, patience=2000, penalty=0.0)
    singles = [score(tuple(float(i == k) for i in range(8))) for k in range(8)]
    means = [score(ema_coefficients(8, rate)) for rate in (0.3, 0.5, 0.7, 0.9)]
    assert found.score >= max(*singles, *means)
    assert -found.score < 0.01 * -max(singles)
    assert sum(found.coefficients) == pytest.approx(1.0)


def test_a_search_is_repeated_by_its_seed_never_falls_and_stops_in_time():
    one, other, third = (search_coefficients(5, bowl(5), seed=seed, budget=120, patience=30) for seed in (3, 3, 4))
    assert one == other != third
    assert list(one.history) == sorted(one.history)
    assert len(one.history) <= 120
    assert len(search_coefficients(3, lambda _: 0.0, budget=500, patience=10, penalty=0.0).history) < 30
    assert search_coefficients(1, lambda _: 1.0).coefficients == (1.0,)


def test_an_adaptive_weight_stays_between_zero_and_one_or_falls_back():
    assert adaptive_weight(2.0, 1.0, None) == (0.01, True)
    assert adaptive_weight(0.0, 1.0, 1.0) == (0.01, True)
    assert adaptive_weight(10.0, 1.0, 1.0) == (0.4, False)
    assert adaptive_weight(1.0, 1.0, 1.0) == (0.01, True)
    assert adaptive_weight(1.0, 1.0, 4.0, mode="paper") == (0.5, False)
    with pytest.raises(ValueError, match="code or paper"):
        adaptive_weight(1.0, 1.0, 1.0, mode="both")


def sparse(seed: int, mask: torch.Tensor) -> MemoryView:
    return MemoryView({"w": torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)) * mask, "b": torch.zeros(8)}, {})


def test_a_soup_of_models_with_one_mask_is_as_sparse_as_they_are():
    mask = (torch.arange(64).reshape(8, 8) % 3 == 0).float()
    known = {f"m{i}": sparse(i, mask) for i in range(3)}
    result = merged(known, *known, method="sparse_soup").tensor("w")
    assert (result != 0).float().equal(mask)
    assert not torch.signbit(result[mask == 0]).any()
    assert torch.allclose(result, sum(v.tensor("w") for v in known.values()) / 3, atol=1e-6)


def test_a_soup_of_models_with_other_masks_is_refused_unless_that_is_accepted():
    mask = (torch.arange(64).reshape(8, 8) % 3 == 0).float()
    known = {"a": sparse(0, mask), "b": sparse(1, mask.roll(1))}
    with pytest.raises(CheckFailed, match="w cannot be merged by sparse_soup: its zeros lie elsewhere"):
        merged(known, "a", "b", method="sparse_soup")
    assert int((merged(known, "a", "b", method="sparse_soup", settings=("union=true",)).tensor("w") != 0).sum()) > int(mask.sum())
