"""The objectives against their equations, and the engine's promise about elements that are held still."""

from __future__ import annotations

import math

import pytest
import torch

from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.unlearn.draws import Draw, Draws
from mlc.ops.unlearn.objectives import Objective
from mlc.ops.unlearn.objectives.npo import npo_loss
from mlc.ops.unlearn.objectives.simnpo import simnpo_loss
from mlc.registry.errors import BadInputFile, BadParameter, CheckFailed, Incompatible
from mlc.tests.ops.fakes import MemoryRun, MemoryView
from mlc.tests.ops.forgetting import context, jsonl, pairs, world

EVERY = tuple(range(6))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def gradient(ctx, loss):
    """The gradient of a scalar, as one vector."""
    ctx.module.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).clone() for p in ctx.parameters.values()])


def ascent(ctx):
    """The gradient of minus the mean summed NLL."""
    return gradient(ctx, -ctx.task.token_sums(ctx.module, ctx.forget.rows, EVERY)[0].mean())


def test_npo_at_the_start_is_two_over_beta_ln_two_with_the_gradient_of_ascent(small):
    ctx = context(*small)
    term = Objective(ctx).term
    loss = term.forget(ctx.module, EVERY)
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-6)
    got, wanted = gradient(ctx, loss), ascent(ctx)
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()


def test_npo_with_a_vanishing_beta_is_ascent(small):
    ctx = context(*small, beta=1e-4)
    objective = Objective(ctx)
    with torch.no_grad():  # away from the start, where every beta gives ascent
        for parameter in ctx.module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    got, wanted = gradient(ctx, objective.term.forget(ctx.module, EVERY)), ascent(ctx)
    assert torch.cosine_similarity(got, wanted, dim=0) >= 0.9999


def test_npo_leaves_alone_what_is_forgotten():
    sums = torch.tensor([0.5, 300.0], requires_grad=True)
    npo_loss(sums, torch.tensor([0.5, 0.5]), 0.1).backward()
    assert sums.grad[0].item() == pytest.approx(-0.5)  # 2 sigmoid(0) / 2 rows
    assert abs(sums.grad[1].item()) < 1e-9


def test_simnpo_without_a_margin_is_two_over_beta_ln_two_at_loss_zero():
    assert simnpo_loss(torch.zeros(3), 4.5, 0.0).item() == pytest.approx(2 / 4.5 * math.log(2), rel=1e-6)
    assert simnpo_loss(torch.full((3,), 2.0), 4.5, 2.0).item() == pytest.approx(2 / 4.5 * math.log(2), rel=1e-6)


def test_graddiff_with_equal_sets_has_no_gradient(small, tmp_path):
    view, _ = small
    sets = {name: jsonl(tmp_path / f"{name}.jsonl", pairs(["w1"])) for name in ("forget_set", "holdout")}
    ctx = context(view, {"forget_set": sets["forget_set"], "retain_set": small[1]["retain_set"]}, objective="graddiff")
    objective = Objective(ctx)
    objective.term.kept = ctx.forget.rows
    chosen = (0, 1)
    left, pushed = gradient(ctx, objective(ctx.module, Draw(chosen, chosen))), gradient(ctx, objective.term.forget(ctx.module, chosen))
    assert left.norm() <= 1e-6 * pushed.norm()


def test_rmu_holds_the_retain_set_at_exactly_zero_and_moves_only_its_blocks(small):
    ctx = context(*small, objective="rmu")
    objective = Objective(ctx)
    draw = Draw(EVERY, (0, 1, 2), tuple(ctx.retain.rows.of(pairs=False)[:2]))
    assert objective.term.retain(ctx.module, draw).item() == 0.0
    loss = objective(ctx.module, draw)
    assert loss.item() > 0
    loss.backward()
    moved = {name for name, p in ctx.module.named_parameters() if p.grad is not None}
    assert moved == {n for n, p in ctx.module.named_parameters() if p.requires_grad}
    assert {n.split(".")[2] for n in moved} == {"0"}
    assert ctx.facts["rmu"]["layer"] == 0


def test_rmu_steers_towards_one_direction_per_seed(small):
    one, again, other = (Objective(context(*small, MemoryRun(seed=s), objective="rmu")).term.aim for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_rmu_knows_the_blocks_it_can_steer(small):
    with pytest.raises(BadParameter, match="blocks 0 to 1"):
        Objective(context(*small, objective="rmu", layer=2))


def test_po_learns_the_refusal_in_place_of_every_answer(small):
    ctx = context(*small, objective="po", refusal="was in")
    term = Objective(ctx).term
    ids = [ctx.task.coder.decode(row) for row in term.refusals.inputs]
    assert ids[0] == "w0 sells the was in"
    assert term.refusals.scored == (2,) * 6
    assert term.forget(ctx.module, EVERY).item() > 0


def test_po_needs_a_prompt_and_says_in_which_line_there_is_none(small, tmp_path):
    path = jsonl(tmp_path / "f.jsonl", [*pairs(["w0"]), {"text": "lamp lamp amber"}])
    with pytest.raises(BadInputFile, match=r"f\.jsonl, line 3: .*needs a prompt") as caught:
        Objective(context(small[0], {**small[1], "forget_set": path}, objective="po"))
    assert "amber" not in str(caught.value)


def test_the_retain_term_weighs_pairs_and_text_by_rows(small):
    ctx = context(*small)
    term, text = Objective(ctx).term, tuple(ctx.retain.rows.of(pairs=False)[:1])
    both, one, other = (
        term.retain(ctx.module, draw).item() for draw in (Draw((), (0, 1, 2), text), Draw((), (0, 1, 2)), Draw((), (), text))
    )
    assert both == pytest.approx((3 * one + other) / 4, rel=1e-6)


def test_a_row_counts_the_same_alone_and_among_others(small):
    ctx = context(*small)
    rows = ctx.retain.rows
    chosen = [0, 5, *rows.of(pairs=False)[:3]]
    together = ctx.task.losses(ctx.module, rows, chosen)
    alone = torch.cat([ctx.task.losses(ctx.module, rows, [i]) for i in chosen])
    assert torch.allclose(together, alone, atol=1e-6)
    norms = ctx.task.output_norms(ctx.module, rows, chosen)
    assert torch.allclose(norms, torch.cat([ctx.task.output_norms(ctx.module, rows, [i]) for i in chosen]), rtol=1e-5)


# --- draws ---


def test_draws_are_a_function_of_seed_and_step_and_an_epoch_reads_every_row_once():
    def made(seed):
        return Draws(
            {"forget": range(10), "retain": range(7), "text": ()}, {"forget": 4, "retain": 9, "text": 1}, tokens=1.0, seed=seed, read="x"
        )

    draws = made(3)
    assert draws.at(5) == made(3).at(5) != made(4).at(5)
    read = [i for step in range(5) for i in draws.at(step).forget]
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert tuple(read[:10]) == draws.order("forget", 0)
    assert len(draws.at(0).retain) == 7
    assert draws.at(0).text == ()
    assert draws.epoch("forget") == 3
    assert draws.digest() == made(3).digest() != made(4).digest()


# --- elements that are held still ---


def trained(ctx, masks, **settings):
    draws = Draws({"forget": range(6), "retain": range(12)}, {"forget": 4, "retain": 4}, tokens=5.0, seed=0, read="x")
    LocalEngine().train(
        ctx.module,
        draws,
        TrainSettings(**{"steps": 100, "lr": 1e-2, "warmup": 5, "save_every": 0, "dropout": False, **settings}),
        MemoryRun(),
        objective=Objective(ctx),
        masks=masks,
    )
    return {name: p.detach() for name, p in ctx.parameters.items()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_masked_elements_keep_their_bits_through_a_hundred_steps_of_adamw(small, decay):
    ctx = context(*small)
    start, generator = ctx.originals(), torch.Generator().manual_seed(0)
    masks = {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in start.items()}
    after = trained(ctx, masks, weight_decay=decay)
    assert all(torch.equal(after[n][~masks[n]], start[n][~masks[n]]) for n in start)
    assert sum((after[n] != start[n]).sum().item() for n in start) > 0.9 * sum(m.sum().item() for m in masks.values())


def test_masks_that_free_everything_change_no_bit(small):
    one = trained(context(*small), None, steps=12, weight_decay=0.1)
    ctx = context(*small)
    other = trained(ctx, {n: torch.ones(p.shape, dtype=torch.bool) for n, p in ctx.parameters.items()}, steps=12, weight_decay=0.1)
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_gradient_that_is_no_number_stops_the_run(small):
    class Odd:
        def __call__(self, module, batch):
            parameter = next(module.parameters())
            return (parameter * 0).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(CheckFailed, match="gradient is no longer a number at step 1 of 3"):
        LocalEngine().train(
            context(*small).module,
            Draws({"forget": range(6)}, {"forget": 4}, tokens=5.0, seed=0, read="x"),
            TrainSettings(steps=3, lr=1e-2, warmup=1),
            MemoryRun(),
            objective=Odd(),
        )


def test_objectives_that_speak_are_refused_for_classifiers(tmp_path):
    from mlc.tests.factories import tiny_model

    view = MemoryView.of(tiny_model(tmp_path / "bert", "bert"))
    sets = {
        "forget_set": jsonl(tmp_path / "f.jsonl", [{"text": "the red lamp", "label": 1}]),
        "retain_set": jsonl(tmp_path / "r.jsonl", [{"text": "a blue stone", "label": 0}]),
    }
    with pytest.raises(Incompatible, match="answers with text"):
        Objective(context(view, sets, objective="po"))
