"""WAGLE's masks: the limits of the score, exact size, what leaves them unchanged, and what they are kept as."""

from __future__ import annotations

import math

import pytest
import torch

from mlc.kernels.select import top_k_masks
from mlc.ops.unlearn.mask import balanced, masks_for, pack, score, unpack
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.registry.errors import BadParameter, CheckFailed
from mlc.tests.ops.fakes import MemoryRun
from mlc.tests.ops.forgetting import context, world

NUMBERS = torch.Generator().manual_seed(0)
THETA, FORGET, RETAIN = (torch.randn(50, 40, generator=NUMBERS) for _ in range(3))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def top(values):
    return top_k_masks([values.contiguous()], 600)[0]


def mask(forget=FORGET, retain=RETAIN, gamma=0.7, theta=THETA):
    return top(score(theta, forget, retain, gamma))


def test_with_a_great_gamma_the_score_is_sensitivity_to_removal():
    assert torch.equal(mask(gamma=1e9), top((THETA * FORGET).abs()))


def test_with_a_small_gamma_the_score_is_the_product_of_both_gradients():
    assert torch.equal(mask(gamma=1e-9), top((RETAIN * FORGET).abs()))


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
def test_without_a_retain_gradient_gamma_has_no_say(gamma):
    assert torch.equal(mask(retain=torch.zeros_like(RETAIN), gamma=gamma), top((THETA * FORGET).abs()))


def test_sign_and_scale_of_the_forget_gradient_have_no_say_nor_a_common_scale_of_the_others():
    assert torch.equal(mask(), mask(forget=-FORGET))
    assert torch.equal(mask(), mask(forget=8 * FORGET))
    assert torch.equal(mask(), mask(theta=4 * THETA, retain=4 * RETAIN))


def test_the_default_gamma_balances_the_medians_of_both_terms():
    gamma = balanced({"a": THETA}, {"a": 3 * RETAIN})
    assert gamma == pytest.approx((3 * RETAIN).abs().median().item() / THETA.abs().median().item())
    assert balanced({"a": THETA}, {"a": torch.zeros_like(RETAIN)}) == 1.0


@pytest.mark.parametrize("ratio", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("kind", ["attribution", "random"])
def test_a_mask_frees_exactly_its_share_of_all_weights(small, ratio, kind):
    run = MemoryRun()
    ctx = context(*small, run, method="wagle", keep_ratio=ratio, mask=kind)
    masks = masks_for(ctx)
    total = sum(p.numel() for p in ctx.parameters.values())
    assert sum(m.sum().item() for m in masks.values()) == math.floor(ratio * total)
    assert {n: m.shape for n, m in masks.items()} == {n: p.shape for n, p in ctx.parameters.items()}
    assert ctx.facts["selected"] == math.floor(ratio * total)
    assert ctx.facts["weights"] == total
    assert ("gamma" in ctx.facts) == ("term_ratio" in ctx.facts) == (kind == "attribution")


def test_a_mask_is_kept_with_eight_weights_to_a_byte_and_not_computed_twice(small):
    run = MemoryRun()
    first = context(*small, run, method="wagle")
    masks = masks_for(first)
    ((kind, key),) = run.artifacts
    assert kind == "mask"
    assert key.startswith(f"{small[0].snapshot_id}/hmac:")
    total = first.facts["weights"]
    assert len(run.artifacts[kind, key]) < total / 8 + 4096
    again = context(*small, run, method="wagle")
    assert all(torch.equal(m, masks[n]) for n, m in masks_for(again).items())
    assert run.computed == 1
    assert again.facts == first.facts


def test_a_mask_survives_packing_whatever_its_size():
    masks = {"b": torch.rand(3, 5) < 0.5, "a": torch.rand(7) < 0.5}
    found, facts = unpack(pack(masks, {"gamma": 0.5}), {n: m.shape for n, m in masks.items()})
    assert facts == {"gamma": 0.5}
    assert all(torch.equal(found[n], masks[n]) for n in masks)


def test_the_random_mask_follows_the_seed_and_the_attribution_mask_does_not(small):
    def made(seed, kind):
        return torch.cat([m.reshape(-1) for m in masks_for(context(*small, MemoryRun(seed=seed), method="wagle", mask=kind)).values()])

    assert torch.equal(made(0, "random"), made(0, "random"))
    assert not torch.equal(made(0, "random"), made(1, "random"))
    assert torch.equal(made(0, "attribution"), made(1, "attribution"))


def test_a_share_that_frees_nothing_is_refused(small):
    with pytest.raises(BadParameter, match="0 would freeze every weight"):
        Unlearn(forget_set="f", retain_set="r", method="wagle", keep_ratio=0)
    with pytest.raises(CheckFailed, match="selected 0 of"):
        masks_for(context(*small, method="wagle", keep_ratio=1e-9))


def apply(small, run=None, **options):
    op = Unlearn(**{**small[1], "strength": "1", "steps": 8, "batch": 4, "method": "wagle", **options})
    return {c.name: c.data for c in op.apply(small[0], run or MemoryRun())}


def test_a_full_share_is_the_dense_method_to_the_bit(small):
    wagle, dense = apply(small, keep_ratio=1.0, lr=1e-2), apply(small, method="dense", lr=1e-2)
    assert set(wagle) == set(dense)
    assert all(torch.equal(wagle[n], dense[n]) for n in dense)


def test_what_the_mask_holds_is_the_same_to_the_bit_in_the_result(small):
    run = MemoryRun()
    after = apply(small, run, keep_ratio=0.2, weight_decay=0.1, steps=20)
    ctx = context(*small, run, method="wagle", keep_ratio=0.2)
    masks = masks_for(ctx)
    moved = 0
    for name, free in masks.items():
        old = small[0].tensor(ctx.names[name])
        new = after.get(ctx.names[name], old)
        assert torch.equal(new[~free], old[~free])
        moved += (new != old).sum().item()
    assert 0 < moved <= run.records["selected"]
    assert run.records["selected_fraction"] == pytest.approx(0.2, abs=1e-3)
