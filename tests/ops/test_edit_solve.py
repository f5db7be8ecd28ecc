"""The closed form of knowledge edits against its defining equations, in float64 on synthetic keys."""

from __future__ import annotations

import pytest
import torch

from mlc.ops.edit import capacity
from mlc.ops.edit.solve import (
    Metric,
    alphaedit_metric,
    drift,
    factors,
    joint_fractions,
    memit_metric,
    resolve_without,
    single_fractions,
    weight_for,
)

D0, D1, U = 256, 64, 5


def draw(seed=0, count=U, power=1.0):
    """C with a power-law spectrum, keys that follow it, residuals."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D0, D0, generator=g, dtype=torch.float64))[0]
    scale = torch.arange(1, D0 + 1, dtype=torch.float64) ** -power
    samples = torch.randn(4 * D0, D0, generator=g, dtype=torch.float64) * scale @ basis.T
    keys = (torch.randn(count, D0, generator=g, dtype=torch.float64) * scale @ basis.T).T.contiguous()
    return samples.T @ samples / len(samples), keys, torch.randn(D1, count, generator=g, dtype=torch.float64)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_the_change_satisfies_the_normal_equations():
    c, k, r = draw()
    d = r @ factors(memit_metric(c), k, 0.3).T
    assert relative(d @ (0.3 * c + k @ k.T), r @ k.T) <= 1e-10


def test_woodburys_form_equals_the_direct_solve():
    c, k, _ = draw()
    direct = torch.linalg.solve(0.3 * c + k @ k.T, k)
    assert relative(factors(memit_metric(c), k, 0.3), direct) <= 1e-9


def test_earlier_keys_enter_as_their_second_moment():
    c, k, _ = draw()
    _, earlier, _ = draw(1, 7)
    direct = torch.linalg.solve(0.3 * c + earlier @ earlier.T + k @ k.T, k)
    assert relative(factors(memit_metric(c), k, 0.3, earlier), direct) <= 1e-9


def test_what_is_not_written_is_the_residual_over_one_plus_s():
    c, k, r = draw()
    s = k.T @ torch.linalg.solve(0.3 * c, k)
    missing = r - r @ factors(memit_metric(c), k, 0.3).T @ k
    assert relative(missing, r @ torch.linalg.inv(torch.eye(U, dtype=s.dtype) + s)) <= 1e-10


def test_without_weight_on_old_keys_everything_is_written_and_with_all_weight_nothing():
    c, k, r = draw()
    metric = memit_metric(c)
    assert relative(r @ factors(metric, k, 1e-12).T @ k, r) <= 1e-6
    assert (r @ factors(metric, k, 1e12).T).norm() < 1e-8 * r.norm()


def test_a_single_fact_is_written_by_s_over_one_plus_s():
    c, k, _ = draw(count=1)
    metric = memit_metric(c)
    s = (k.T @ torch.linalg.solve(0.3 * c, k)).item()
    assert joint_fractions(k, factors(metric, k, 0.3)).item() == pytest.approx(s / (1 + s), rel=1e-10)
    assert single_fractions(metric, k, 0.3).item() == pytest.approx(s / (1 + s), rel=1e-10)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_the_weight_gives_the_asked_write_fraction(share):
    c, k, _ = draw()
    metric = memit_metric(c)
    assert single_fractions(metric, k, weight_for(metric, k, share)).mean().item() == pytest.approx(share, abs=1e-9)


def test_the_order_of_requests_changes_nothing():
    c, k, r = draw()
    metric, turn = memit_metric(c), torch.tensor([3, 0, 4, 1, 2])
    one = r @ factors(metric, k, 0.3).T
    two = r[:, turn] @ factors(metric, k[:, turn], 0.3).T
    assert (one - two).abs().max() <= 1e-9


def test_the_residual_left_after_spreading_over_layers_is_the_product():
    # Constant keys and write fraction f per layer: what is left is prod(1 - f / (L - l)).
    for f, expected in ((0.9, 0.0245), (1.0, 0.0)):
        left = 1.0
        for layer in range(5):
            left -= f * left / (5 - layer)
        assert left == pytest.approx(expected, abs=5e-5)


class TestAlphaEdit:
    def projector(self, c, threshold=0.02):
        metric = alphaedit_metric(c, threshold)
        return metric, metric.spread(torch.eye(D0, dtype=c.dtype))

    def test_nothing_is_written_into_directions_of_ordinary_keys(self):
        c, k, r = draw()
        metric, p = self.projector(c)
        d = r @ factors(metric, k, 1e-3).T
        assert 0 < metric.rank < D0
        assert (d @ (torch.eye(D0, dtype=d.dtype) - p)).norm() <= 1e-10 * d.norm()

    def test_three_forms_agree(self):
        c, k, r = draw()
        _, memory, _ = draw(1, 4)
        metric, p = self.projector(c)
        ours = r @ factors(metric, k, 1e-3, memory).T
        eye = torch.eye(D0, dtype=c.dtype)
        moment = k @ k.T + memory @ memory.T
        paper = r @ k.T @ p @ torch.linalg.inv(moment @ p + 1e-3 * eye)
        code = torch.linalg.solve(p @ moment + 1e-3 * eye, p @ k @ r.T).T
        assert relative(ours, paper) <= 1e-9
        assert relative(ours, code) <= 1e-9

    def test_the_projector_holds_at_most_the_threshold_of_the_energy_and_bounds_the_drift(self):
        c, k, r = draw()
        for threshold in (0.001, 0.02, 0.3):
            metric, p = self.projector(c, threshold)
            assert (p @ c @ p).trace() <= threshold * c.trace()
            d = r @ factors(metric, k, 1e-2).T
            largest = torch.linalg.eigvalsh(p @ c @ p).max()
            assert (d @ c @ d.T).trace() <= largest * d.norm() ** 2 * (1 + 1e-9)

    def test_with_everything_free_and_the_old_keys_as_memory_it_is_memit(self):
        c, k, r = draw(power=0.2)
        root = torch.linalg.cholesky(0.3 * c)  # C_p = root root^T = lambda C
        everything = Metric(lambda x: x, c, 0.0, D0)
        ours = r @ factors(everything, k, 1e-9, root).T
        assert relative(ours, r @ factors(memit_metric(c), k, 0.3).T) <= 1e-6


def test_the_drift_certificate_is_the_relative_change_on_ordinary_keys():
    c, k, r = draw()
    a = factors(memit_metric(c), k, 0.3)
    w = torch.randn(D1, D0, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    d = r @ a.T
    assert drift(r, a.T, w, c) == pytest.approx(((d @ c @ d.T).trace() / (w @ c @ w.T).trace()).item(), rel=1e-10)


def test_a_singular_moment_gets_a_ridge_and_says_so():
    c, k, r = draw()
    few = k @ k.T / U  # five keys in 256 dimensions
    metric = memit_metric(few)
    assert metric.ridge == pytest.approx(1e-4 * few.trace().item() / D0)
    assert torch.isfinite(r @ factors(metric, k, 0.3).T).all()
    assert memit_metric(c).ridge == 0.0


def test_earlier_edits_hold_only_with_their_keys_in_memory():
    c, _, _ = draw()
    metric, batches = memit_metric(0.01 * c), [draw(10 + n, 10) for n in range(8)]
    for with_memory, limit in ((True, 0.05), (False, 0.05)):
        total, memory = torch.zeros(D1, D0, dtype=torch.float64), None
        for _, k, r in batches:
            total = total + (r - total @ k) @ factors(metric, k, 0.01, memory if with_memory else None).T
            memory = k if memory is None else torch.cat([memory, k], 1)
        _, first, wanted = batches[0]
        left = ((wanted - total @ first).norm() / wanted.norm()).item()
        assert (left < limit) == with_memory


def test_resolving_without_a_fact_is_as_if_it_had_never_been_asked():
    c, k, r = draw()
    metric = memit_metric(c)
    drop = torch.tensor([False, True, False, False, True])
    up, down = resolve_without(metric, k, r, 0.3, drop)
    assert torch.equal(up, r[:, ~drop])
    assert torch.equal(down, factors(metric, k[:, ~drop].contiguous(), 0.3))
    before, after = joint_fractions(k, factors(metric, k, 0.3))[~drop], joint_fractions(k[:, ~drop], down)
    assert bool((after >= before - 1e-12).all())
    nothing = resolve_without(metric, k, r, 0.3, torch.ones(U, dtype=torch.bool))
    assert [tuple(t.shape) for t in nothing] == [(D1, 0), (D0, 0)]


class TestRoom:
    def test_far_keys_lose_nothing_and_equal_ones_half(self):
        eye = torch.eye(D0, dtype=torch.float64)
        nothing, nobody = torch.zeros(D0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        apart = capacity.room(memit_metric(eye), 3 * eye[:, :4], 1.0, nothing, nobody)
        assert apart.together == pytest.approx(apart.alone)
        assert apart.used == pytest.approx(0, abs=1e-9)
        same = capacity.room(memit_metric(eye), 3 * eye[:, :1].repeat(1, 2), 1.0, nothing, nobody)
        assert same.together == pytest.approx(9 / 19)
        assert same.used > 1

    def test_too_many_subjects_are_refused_by_count_alone(self):
        with pytest.raises(capacity.BadParameter, match="10,000 subjects are more than a layer can hold"):
            capacity.check_count(10_000, 384, False)
        capacity.check_count(10_000, 384, True)
        capacity.check_count(192, 384, False)
