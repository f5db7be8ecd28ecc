"""Merges with a memory or with knowledge of the data: OPCM, RMM, Fisher, RegMean and the greedy soup, by what defines them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlc.ops.merge import opcm, rmm
from mlc.ops.merge.informed import fisher_mean, fisher_shares, reg_mean
from mlc.ops.merge.soups import greedy_soup

SHAPES = [(64, 64), (96, 40), (40, 96)]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- OPCM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_of_a_task_vector_is_orthogonal_to_the_running_one(shape, alpha: float):
    for dtype, bound, block in ((torch.float32, 1e-6, 2e-6), (torch.float64, 1e-14, 1e-14)):
        running, task = noise(*shape, dtype=dtype), noise(*shape, seed=1, dtype=dtype)
        left = opcm.projected(running, task, alpha)
        assert abs(float((running * left).sum())) < bound * float(running.norm() * task.norm())
        u, s, vh = torch.linalg.svd(running, full_matrices=False)
        r = opcm.dominant(s, alpha)
        assert (r == 0) == (alpha == 0.0)
        assert float((u[:, :r].t() @ left @ vh[:r].t()).norm()) < block * float(task.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_thin_form_is_the_full_one(shape):
    running, task = noise(*shape, dtype=torch.float64), noise(*shape, seed=1, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(running, full_matrices=True)
    r, p = opcm.dominant(s, 0.5), u.t() @ task @ vh.t()
    p[:r, :r] = 0
    p[range(len(s)), range(len(s))] = 0
    assert torch.allclose(opcm.projected(running, task, 0.5), u @ p @ vh, atol=1e-13)


def test_a_greater_alpha_leaves_no_more_and_never_more_than_was_given():
    running, task = noise(64, 64), noise(64, 64, seed=1)
    norms = [float(opcm.projected(running, task, alpha).norm()) for alpha in (0.0, 0.2, 0.5, 0.8, 0.99)]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] <= float(task.norm()) * (1 + 1e-6)


def test_a_running_vector_of_zero_takes_nothing_away_and_the_same_model_again_adds_nothing():
    task = noise(30, 20)
    assert opcm.projected(torch.zeros(30, 20), task).equal(task)
    assert float(opcm.projected(task, task).norm()) < 5e-6 * float(task.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_shared_may_stay_and_what_is_against_goes_all_the_same(shape):
    running, task = noise(*shape, dtype=torch.float64), noise(*shape, seed=1, dtype=torch.float64)
    for own, wanted in ((task + 0.1 * running, True), (task - 0.1 * running, False)):
        left, strict = opcm.projected(running, own, 0.1, shared=True), opcm.projected(running, own, 0.1)
        u, _, vh = torch.linalg.svd(running, full_matrices=False)
        along = ((u.t() @ own) * vh).sum(dim=1)
        assert torch.allclose(((u.t() @ left) * vh).sum(dim=1), along.clamp(min=0), atol=1e-12)
        assert torch.allclose(left - (u * along.clamp(min=0)) @ vh, strict, atol=1e-12)
        assert float((running * left).sum()) > 0.0
        assert bool(float((running * own).sum()) > 0) == wanted
    assert torch.allclose(opcm.projected(running, running, 0.1, shared=True), running)  # the same model again: the same direction


@pytest.mark.parametrize("alpha", [1.0, -0.1])
def test_an_alpha_that_means_something_else_is_refused(alpha: float):
    with pytest.raises(ValueError, match="alpha lies in"):
        opcm.State(alpha=alpha)


def chain(count: int, size: int = 128) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], list[opcm.State], dict[str, Tensor]]:
    """Independent tasks folded in one after the other: base, the merges, the states, the last projected task vectors."""
    base = {"w": noise(size, size, seed=99), "b": noise(size, seed=98)}
    merges, states, merged = [], [opcm.State()], dict(base)
    for i in range(count):
        task = {name: x + 0.1 * noise(*x.shape, seed=2 * i + len(name)) for name, x in base.items()}
        running = {name: merged[name] - base[name] for name in base}
        last = {"w": opcm.projected(running["w"], task["w"] - base["w"]) if i else task["w"] - base["w"], "b": task["b"] - base["b"]}
        put: dict[str, Tensor] = {}
        found = list(opcm.absorb(base, base.get, merged.get, task.get, "w".__eq__, states[-1], put.__setitem__, put.get))  # type: ignore[arg-type]
        merged = dict(found[:-1])  # type: ignore[arg-type]
        states.append(found[-1])  # type: ignore[arg-type]
        merges.append(merged)
    return base, merges, states, last


def test_a_chain_lies_at_the_mean_distance_and_its_scale_grows_as_the_root_of_its_length():
    base, merges, states, _ = chain(8)
    for length, (merged, state) in enumerate(zip(merges, states[1:], strict=True), 1):
        distance = torch.cat([(merged[n] - base[n]).reshape(-1).double() for n in base]).norm()
        assert float(distance) == pytest.approx(state.mean_norm, rel=1e-5)
        assert state.count == length
        assert state.scale == pytest.approx(length**0.5, rel=0.06)


def test_the_first_model_of_a_chain_is_itself_and_the_last_one_can_be_taken_out():
    base, merges, states, last = chain(3, size=64)
    assert merges[0]["w"].equal(base["w"] + 0.1 * noise(64, 64, seed=1))
    for name in base:
        before = opcm.without_last(merges[2][name], base[name], last[name], states[2], states[3])
        assert torch.allclose(before, merges[1][name] - base[name], atol=1e-5)


def test_tied_names_are_absorbed_once():
    with pytest.raises(ValueError, match="absorbed once"):
        list(opcm.absorb("aa", noise, noise, noise, bool, opcm.State(), print, noise))  # type: ignore[arg-type]


# --- RMM -------------------------------------------------------------------------------------------------


def test_one_basis_vector_less_than_there_are_models_is_exact():
    x = noise(20, 16, 8)
    assert rmm.fit(x, 7).relative_error < 1e-14
    assert torch.allclose(torch.stack([rmm.rebuild(rmm.fit(x, 7), i) for i in range(8)], dim=2), x.double(), atol=1e-12)
    assert rmm.fit(x, 6).relative_error > 0.01


@pytest.mark.parametrize("p", [0, 1, 3])
def test_the_stated_error_is_the_error(p: int):
    x = noise(20, 16, 8)
    found = rmm.fit(x, p)
    lost = torch.stack([rmm.rebuild(found, i) for i in range(8)], dim=2) - x.double()
    assert float(lost.norm() / x.double().norm()) == pytest.approx(found.relative_error, rel=1e-9)
    assert found.error.tolist() == pytest.approx(lost.flatten(1).norm(dim=1).tolist())


def test_no_other_basis_does_better():
    x = noise(1, 16, 8, dtype=torch.float64)
    y = x - x.mean(dim=2, keepdim=True)
    best = float(rmm.fit(x, 3).error)
    for seed in range(50):
        p = torch.linalg.qr(noise(16, 3, seed=seed, dtype=torch.float64))[0]
        assert float((y[0] - p @ (p.t() @ y[0])).norm()) >= best


def test_models_of_a_small_affine_space_need_only_its_dimension():
    basis = noise(5, 16, 2, dtype=torch.float64)
    x = noise(5, 16, 1, seed=1, dtype=torch.float64) + basis @ noise(5, 2, 8, seed=2, dtype=torch.float64)
    assert rmm.smallest(x, 1e-10).basis.shape[2] == 2
    assert rmm.smallest(x[:, :, :1].expand(-1, -1, 4), 1e-12).basis.shape[2] == 0  # all alike: the mean alone


def test_a_long_vector_of_few_models_gives_the_same_as_a_short_path():
    x = noise(1, 500, 4)
    long, direct = rmm.fit(x, 2), torch.linalg.svd((x - x.mean(dim=2, keepdim=True)).double()[0], full_matrices=False)[1]
    assert float(long.error) == pytest.approx(float(direct[2:].norm()))


def test_factors_in_another_gauge_are_brought_together():
    up, down, turn = noise(30, 4), noise(4, 20, seed=1), noise(4, 4, seed=2)
    one, other = rmm.aligned(up, down), rmm.aligned(up @ turn, torch.linalg.inv(turn) @ down)
    assert torch.allclose(one[0] @ one[1], (up @ down).double(), atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))
    again = rmm.unstack(rmm.rebuild(rmm.fit(rmm.stack([one, other]), 1), 1), 30)
    assert torch.allclose(again[0] @ again[1], (up @ down).double(), atol=1e-4)


def test_more_basis_vectors_than_models_are_refused():
    with pytest.raises(ValueError, match="p lies between"):
        rmm.fit(noise(2, 3, 4), 5)


# --- Fisher and RegMean ----------------------------------------------------------------------------------


def test_equal_importances_give_the_mean_and_an_overwhelming_one_gives_its_model():
    a, b = noise(20), noise(20, seed=1)
    one = torch.ones(20)
    assert torch.allclose(fisher_mean([a, b], [one, one]), (a + b) / 2, atol=1e-6)
    assert torch.allclose(fisher_mean([a, b], [one * 1e9, one]), a, atol=1e-5)
    assert torch.allclose(fisher_mean([a, b], [one * 0, one * 0]), (a + b) / 2, atol=1e-6)  # nobody knows: the mean
    assert fisher_mean([a.bfloat16(), b.bfloat16()], [one, one]).dtype == torch.bfloat16


def test_shares_take_away_the_advantage_of_large_gradients():
    a, b, f = noise(20), noise(20, seed=1), noise(20, seed=2).square()
    shares = fisher_shares([float(f.norm()), float((100 * f).norm())], 2)
    assert torch.allclose(fisher_mean([a, b], [f, 100 * f], shares), (a + b) / 2, atol=1e-3)


def test_an_importance_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="importance"):
        fisher_mean([noise(3)], [noise(4)])


def test_regmean_of_equal_inputs_is_the_mean_and_of_one_model_that_model():
    ws, eye = [noise(5, 8, seed=i) for i in range(3)], torch.eye(8)
    assert torch.allclose(reg_mean(ws, [eye] * 3), sum(ws) / 3, atol=1e-6)
    x = noise(50, 8, seed=9)
    assert torch.allclose(reg_mean(ws[:1], [x.t() @ x / 50]), ws[0], rtol=1e-4, atol=1e-6)


def test_regmean_fits_every_models_outputs_better_than_the_mean():
    ws, xs = [noise(5, 8, seed=i) for i in range(2)], [noise(40, 8, seed=i + 5) * torch.linspace(0.1, 3 + i, 8) for i in range(2)]
    grams = [x.t() @ x / 40 for x in xs]

    def loss(w: Tensor) -> float:
        return sum(float(((x @ (w - own).t()) ** 2).sum()) for x, own in zip(xs, ws, strict=True))

    assert loss(reg_mean(ws, grams)) < 0.9 * loss(sum(ws) / 2)
    assert torch.allclose(reg_mean([w.t().contiguous() for w in ws], grams, transposed=True).t(), reg_mean(ws, grams), atol=1e-6)
    diagonal = sum(w * g.diagonal() for w, g in zip(ws, grams, strict=True)) / sum(g.diagonal() for g in grams)
    assert torch.allclose(reg_mean(ws, grams, ratio=0.0), diagonal, atol=1e-4)


def test_a_gram_matrix_of_too_few_inputs_leans_on_the_mean():
    ws = [noise(3, 6, seed=i) for i in range(2)]
    x = noise(1, 6, seed=9)
    merged = reg_mean(ws, [x.t() @ x] * 2)
    assert bool(torch.isfinite(merged).all())
    assert torch.allclose(merged, (ws[0] + ws[1]) / 2, atol=1e-3)


# --- greedy soup -----------------------------------------------------------------------------------------


def test_a_greedy_soup_takes_what_does_not_hurt_best_first():
    values = {("b",): 3.0, ("a",): 2.0, ("c",): 1.0, ("b", "a"): 2.5, ("b", "c"): 3.0}
    members, tried = greedy_soup(["a", "b", "c"], values.__getitem__)
    assert members == ("b", "c")
    assert [(t.members, t.kept) for t in tried] == [
        (("a",), False),
        (("b",), True),
        (("c",), False),
        (("b", "a"), False),
        (("b", "c"), True),
    ]


def test_a_soup_of_nothing_or_of_doubles_is_refused():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="ingredients"):
            greedy_soup(names, lambda _: 0.0)
