"""What each formula must do whatever the models are: identities, limits, statistics of random masks, and no dependence on order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlc.ops.merge.case import Case, keyed_draw
from mlc.ops.merge.formulas import merge_tensor
from mlc.ops.merge.settings import resolve
from mlc.ops.merge.table import METHODS, method_of
from mlc.ops.merge.trims import magnitude_mask, outlier_mask, rank_mask, stride, thresholds

TASKS = tuple(name for name, method in METHODS.items() if method.formula == "task")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def merge(name: str, tensors: list[Tensor], base: Tensor | None = None, seed: int = 0, **settings: Any) -> Tensor:
    """One tensor by one method. A list among the settings is one value per ingredient."""
    method = method_of(name)
    each = tuple(
        resolve(method, "w", 0, [{k: v[i] if isinstance(v, list) else v for k, v in settings.items()}], each=True)
        for i in range(len(tensors))
    )
    shared = resolve(method, "w", 0, [settings], each=False)
    draws = tuple(keyed_draw(seed, "w", str(i)) for i in range(len(tensors)))
    return merge_tensor(method, Case(base, tuple(tensors), shared, each, draws))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_linear_merge_of_a_tensor_with_itself_is_that_tensor(dtype):
    x = noise(40, 7, dtype=dtype)
    assert merge("linear", [x, x], weight=0.5).equal(x)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "model_stock", "slerp", "karcher", "multislerp", "nuslerp"])
def test_other_merges_of_a_tensor_with_itself_come_within_a_rounding_of_it(name: str):
    x, base = noise(40, 7), noise(40, 7, seed=1)
    method = method_of(name)
    tensors = [x] if method.most == 1 else [x, x]
    anchor = {"required": base, "optional": None, "ingredient": None}[method.base]
    settings = {"t": 1.0} if name == "slerp" else {"weight": 0.5} if method.param("weight") else {}
    merged = merge(name, tensors, anchor, **settings)
    bound = torch.maximum(base.abs(), x.abs()) * 2**-22 + 1e-7 if name in ("task_arithmetic", "ties") else torch.full_like(x, 2e-6)
    assert bool(((merged - x).abs() <= bound).all())


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
def test_a_weight_of_one_among_zeros_gives_that_tensor(name: str):
    xs, base = [noise(50, seed=i) for i in range(3)], noise(50, seed=9)
    merged = merge(name, xs, base if name != "linear" else None, weight=[0.0, 1.0, 0.0])
    if name == "linear":
        assert merged.equal(xs[1])
    assert torch.allclose(merged, xs[1], atol=1e-6)


def test_slerp_has_its_endpoints_and_keeps_the_length_between_them():
    base, x = noise(300), noise(300, seed=1)
    x = x * base.norm() / x.norm()
    assert torch.allclose(merge("slerp", [x], base, t=0.0), base, atol=1e-6)
    assert torch.allclose(merge("slerp", [x], base, t=1.0), x, atol=1e-6)
    assert merge("slerp", [x], base, t=0.3).norm() == pytest.approx(float(base.norm()), rel=1e-5)


def test_slerp_of_nearly_parallel_tensors_is_the_line_and_parts_do_not_show(monkeypatch: pytest.MonkeyPatch):
    base = noise(1000)
    x = base + 0.01 * noise(1000, seed=1)
    assert torch.allclose(merge("slerp", [x], base, t=0.25), 0.75 * base + 0.25 * x, atol=1e-6)
    y = noise(1000, seed=2)
    whole = merge("slerp", [y], base, t=0.25)
    monkeypatch.setattr("mlc.ops.merge.spheres.CHUNK", 64)
    assert torch.allclose(merge("slerp", [y], base, t=0.25), whole, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.symmetric and m.most is None and not m.random])
def test_the_order_of_the_ingredients_moves_nothing_beyond_rounding(name: str):
    xs, base = [noise(30, 4, seed=i) for i in range(3)], noise(30, 4, seed=9)
    settings = {"weight": [0.2, 0.5, 0.3]} if method_of(name).param("weight") else {}
    settings |= {"density": 0.5} if method_of(name).param("density") else {}
    anchor = None if method_of(name).base == "ingredient" else base
    one = merge(name, xs, anchor, **settings)
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in settings.items()}
    assert torch.allclose(one, merge(name, xs[::-1], anchor, **turned), atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_task_vectors_of_nothing_leave_the_base(name: str):
    base = noise(20, 5)
    assert merge(name, [base, base.clone()], base, weight=1.0, density=0.5).equal(base)


@pytest.mark.parametrize("name", [n for n in TASKS if method_of(n).trim])
def test_a_density_of_one_trims_nothing(name: str):
    xs, base = [noise(20, 5, seed=i) for i in range(2)], noise(20, 5, seed=9)
    plain = "ties" if method_of(name).vote else "task_arithmetic"
    normalize = {"normalize": False}
    assert torch.allclose(merge(name, xs, base, weight=0.4, **normalize), merge(plain, xs, base, weight=0.4, **normalize), atol=1e-6)


def test_ties_moves_no_more_than_what_the_trims_kept():
    xs, base = [noise(500, seed=i) for i in range(2)], noise(500, seed=9)
    merged = merge("ties", xs, base, weight=1.0, density=0.1)
    kept = magnitude_mask(xs[0] - base, 0.1, False) | magnitude_mask(xs[1] - base, 0.1, False)
    assert int(kept.sum()) >= 50
    assert not bool(((merged != base) & ~kept).any())


def test_ties_of_one_model_does_not_depend_on_its_weight():
    x, base = noise(100), noise(100, seed=1)
    assert torch.allclose(merge("ties", [x], base, weight=0.1), merge("ties", [x], base, weight=5.0), atol=1e-6)


def test_equal_conflicting_signs_go_to_plus():
    base = torch.zeros(2)
    assert merge("ties", [torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 2.0])], base, weight=1.0).tolist() == [1.0, 2.0]


def test_a_magnitude_trim_keeps_at_least_one_and_the_first_of_equals():
    assert magnitude_mask(torch.tensor([1.0, -1.0, 1.0]), 0.01, False).tolist() == [True, False, False]
    assert magnitude_mask(torch.tensor([1.0, -3.0, 1.0, 2.0]), 0.75, False).tolist() == [True, True, False, True]


@pytest.mark.parametrize("kind", ["smooth", "tied", "one value", "periodic", "mostly zero"])
@pytest.mark.parametrize("density", [0.001, 0.3, 0.9999])
def test_a_cut_found_from_a_sample_is_the_cut_of_the_sort(kind: str, density: float):
    n = 150_001  # two steps of the pass, and enough for a sample
    x = {
        "smooth": noise(n),
        "tied": noise(n, dtype=torch.bfloat16),
        "one value": torch.full((n,), 0.5),
        "periodic": torch.where(torch.arange(n) % stride(n) == 0, 5.0, noise(n)),  # all that the sample sees is 5
        "mostly zero": noise(n) * (noise(n, seed=1) > 2),
    }[kind]
    ((low, last),) = thresholds([x], torch.zeros_like(x), [density])
    scores = x.abs().float()
    kept = (scores > low) | ((scores == low) & (torch.arange(n) <= last))
    assert kept.equal(magnitude_mask(x, density, False))
    assert int(kept.sum()) == int(density * n)


def test_breadcrumbs_drop_the_greatest_and_the_smallest():
    x = torch.arange(1.0, 21.0)
    kept = outlier_mask(x, 0.5, 0.1, False)
    assert x[kept].tolist() == list(range(9, 19))
    assert x[outlier_mask(x, 0.9, 0.3, False)].tolist() == list(range(1, 19))  # fewer of the greatest go, so that 18 stay


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_selection_and_sort_keep_equally_many_of_the_same_magnitudes(parity: bool, density: float):
    x = noise(777, dtype=torch.bfloat16)
    magnitudes = x.abs().float()
    kept = magnitude_mask(x, density, parity)
    assert int(kept.sum()) == int(density * 777)
    assert magnitudes[kept].sort().values.equal(magnitudes.sort().values[777 - int(density * 777) :])


def test_dare_keeps_a_share_near_the_density_and_the_whole_mass():
    base, x = torch.zeros(200, 100), noise(200, 100)
    merged = merge("dare_linear", [x], base, weight=1.0, density=0.3)
    share = float((merged != 0).float().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / x.numel()) ** 0.5
    assert float(merged.abs().sum()) == pytest.approx(float(x.abs().sum()), rel=1e-5)
    kept = merged != 0
    assert float((merged[kept] / x[kept]).std()) < 1e-5  # one factor for all


def test_dare_is_right_on_average():
    x = noise(50)
    mean = torch.stack([merge("dare_linear", [x], torch.zeros(50), seed=s, weight=1.0, density=0.5) for s in range(400)]).mean(0)
    assert float((mean - x).abs().mean() / x.abs().mean()) < 0.06


def test_a_mask_depends_on_seed_tensor_and_ingredient_alone():
    probabilities = torch.full((1000,), 0.5)
    first = keyed_draw(1, "w", "a")(probabilities)
    assert first.equal(keyed_draw(1, "w", "a")(probabilities))
    others = [keyed_draw(2, "w", "a"), keyed_draw(1, "v", "a"), keyed_draw(1, "w", "b")]
    assert all(0.4 < float((draw(probabilities) == first).float().mean()) < 0.6 for draw in others)


def test_della_keeps_large_entries_more_often_than_small_ones():
    x = torch.arange(1.0, 1001.0).repeat(20, 1)
    kept = rank_mask(x, 0.5, 0.3, keyed_draw(0, "w", "a"))
    low, high = float(kept[:, :200].mean()), float(kept[:, 800:].mean())
    assert low == pytest.approx(0.26, abs=0.03)
    assert high == pytest.approx(0.74, abs=0.03)
    assert rank_mask(torch.ones(5, 1), 0.5, 0.1, keyed_draw(0, "w", "a")).tolist() == [[1.0]] * 5


def test_model_stock_goes_to_the_mean_of_equal_deltas_and_stays_at_the_base_for_orthogonal_ones():
    base, delta = noise(60), noise(60, seed=1)
    assert torch.allclose(merge("model_stock", [base + delta] * 2, base), base + delta, atol=1e-5)
    a, b = torch.zeros(60), torch.zeros(60)
    a[:30], b[30:] = 1.0, 1.0
    assert torch.allclose(merge("model_stock", [base + a, base + b], base), base, atol=1e-6)
    assert merge("model_stock", [base + a, base - a], base).equal(base)  # opposite: the denominator vanishes
    rows = merge("model_stock", [torch.stack([base + delta, base + a])] * 2, torch.stack([base, base]), filter_wise=True)
    assert torch.allclose(rows, torch.stack([base + delta, base + a]), atol=1e-5)


def test_sce_drops_what_goes_against_the_elected_sign():
    base = torch.zeros(3)
    merged = merge("sce", [torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, -1.0, 0.0])], base)
    assert merged.tolist() == pytest.approx([1.0, 2.0, 0.0])


def test_karcher_and_multislerp_of_two_meet_halfway():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    middle = torch.tensor([0.5**0.5, 0.5**0.5])
    assert torch.allclose(merge("karcher", [a, b]), middle, atol=1e-5)
    assert torch.allclose(merge("multislerp", [a, b], weight=1.0), middle, atol=1e-5)


def test_directions_that_cancel_have_no_mean():
    thirds = [torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 0.75**0.5]), torch.tensor([-0.5, -(0.75**0.5)])]
    with pytest.raises(ValueError, match="cancel"):
        merge("multislerp", thirds, weight=1.0, eps=1e-4)


def test_nearswap_takes_what_is_near():
    base, x = torch.zeros(3), torch.tensor([0.05, 0.2, -10.0])
    assert merge("nearswap", [x], base, t=0.1).tolist() == pytest.approx([0.05, 0.1, -0.1])


def test_passthrough_scales_or_hands_on():
    x = noise(10, dtype=torch.bfloat16)
    assert merge("passthrough", [x]).equal(x)
    assert torch.allclose(merge("passthrough", [x], scale=0.5), 0.5 * x.float())


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "linear"])
def test_float64_keeps_its_precision(name: str):
    xs, base = [noise(12, 3, seed=i).double() / 3 for i in range(2)], noise(12, 3, seed=9).double() / 3
    settings = {} if name == "linear" else {"density": 1.0, "normalize": False}
    merged = merge(name, xs, None if name == "linear" else base, weight=0.5, **settings)
    assert merged.dtype == torch.float64
    if name in ("linear", "task_arithmetic"):
        assert torch.allclose(merged, (xs[0] + xs[1]) / 2, atol=1e-14)
