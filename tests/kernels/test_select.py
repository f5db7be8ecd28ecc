"""The k greatest scores over many tensors and exact percentiles, against sorting everything."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlc.kernels.select import SHIFTS, digit_histogram, kth_largest, percentile, top_k_masks

numbers = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1e-45, float("inf")]), st.floats(0, 2.0**100, width=32))


def sorted_masks(scores: list[torch.Tensor], k: int) -> list[list[bool]]:
    """By sorting: greatest first, equals by order of the tensors and then by flat index."""
    order = sorted((-float(v), t, i) for t, s in enumerate(scores) for i, v in enumerate(s.reshape(-1)))
    chosen = {(t, i) for _, t, i in order[:k]}
    return [[(t, i) in chosen for i in range(s.numel())] for t, s in enumerate(scores)]


@given(lists=st.lists(st.lists(numbers, max_size=8), min_size=1, max_size=4), data=st.data())
def test_exactly_the_k_greatest_are_taken_and_ties_go_by_order(lists: list[list[float]], data):
    scores = [torch.tensor(values, dtype=torch.float32) for values in lists]
    total = sum(s.numel() for s in scores)
    k = data.draw(st.integers(0, total))
    assert [m.tolist() for m in top_k_masks(scores, k)] == sorted_masks(scores, k)
    if k:
        assert kth_largest(scores, k) == sorted((float(v) for s in scores for v in s), reverse=True)[k - 1]


def test_a_million_scores_agree_with_a_sort():
    generator = torch.Generator().manual_seed(6)
    scores = [torch.rand(1000, 600, generator=generator), torch.randn(400_000, generator=generator).abs() * 1e-3]
    everything = torch.cat([s.reshape(-1) for s in scores])
    for k in (1, 4321, 500_000, 1_000_000):
        assert kth_largest(scores, k) == everything.kthvalue(everything.numel() - k + 1).values.item()
        masks = top_k_masks(scores, k)
        assert sum(int(m.sum()) for m in masks) == k
        assert [m.shape for m in masks] == [s.shape for s in scores]
        kept = torch.cat([s[m] for s, m in zip(scores, masks, strict=True)]).min()
        assert kept == kth_largest(scores, k)


@pytest.mark.parametrize("p", [0.0, 12.5, 50.0, 99.3, 100.0])
def test_a_percentile_is_an_element_and_leaves_its_share_above(p: float):
    values = torch.rand(4001, generator=torch.Generator().manual_seed(7))
    ordered = values.sort().values
    strewn = torch.cat([values, torch.tensor([float("nan"), float("inf"), float("nan")])])
    found = percentile([strewn[:1000], strewn[1000:]], p)
    assert found == ordered[math.floor(p / 100 * 4000)].item()
    assert abs(int((values > found).sum()) - (1 - p / 100) * 4001) <= 1


def test_scores_that_are_not_numbers_or_negative_are_refused():
    for bad in (float("nan"), -1.0):
        with pytest.raises(ValueError, match="not negative"):
            top_k_masks([torch.ones(3), torch.tensor([1.0, bad])], 1)
    with pytest.raises(ValueError, match="float32"):
        kth_largest([torch.ones(2).double()], 1)
    with pytest.raises(ValueError, match="no finite"):
        percentile([torch.tensor([float("inf")])], 50)
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([torch.ones(1)], 101)


@pytest.mark.parametrize("k", [-1, 4])
def test_a_k_out_of_range_is_refused(k: int):
    with pytest.raises(ValueError, match="greatest of 3"):
        top_k_masks([torch.ones(3)], k)


def test_digits_are_counted_below_their_prefix_only():
    bits = torch.tensor([0, 1, 2047, 2048, 5 << 22, (5 << 22) + 1], dtype=torch.int32)
    assert digit_histogram(bits, 0, SHIFTS[0])[[0, 5]].tolist() == [4, 2]
    assert digit_histogram(bits, 0, SHIFTS[1])[[0, 1]].tolist() == [3, 1]
    assert digit_histogram(bits, 5 << 11, SHIFTS[2])[[0, 1]].tolist() == [1, 1]
    with pytest.raises(ValueError, match="int32 vectors"):
        digit_histogram(bits.long(), 0, 0)
