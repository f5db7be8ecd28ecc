"""What an update may not damage: masks to the bit, pulls that are nothing at the parent, means, ways back, embeddings drawn anew."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch import nn

from mlc.ops.base import SetTensor
from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.engine.local import language_loss
from mlc.ops.models import load_model
from mlc.ops.unlearn.importance import importance
from mlc.ops.update.objective import SelfTaught, UpdateLoss
from mlc.ops.update.pathwise import path_importance, walked
from mlc.ops.update.protect import Anchored, first_matrices, layer_coefficients, normalised
from mlc.ops.update.riders import SLOW, Blend, Ema, Renewal, blended
from mlc.ops.update.rows import prepare
from mlc.ops.update.train import Update
from mlc.registry.errors import BadParameter, CheckFailed, Incompatible
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView

SMALL = {"steps": 8, "batch": 4, "seq_len": 12, "lr": 1e-2, "holdout": 0.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), layers=2))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "new.txt"
    path.write_text(" ".join(random.Random(i // 3).choice(WORDS) for i in range(900)), encoding="utf-8")
    return path


def update(text, **more):
    return Update(**{"data": str(text), **SMALL, **more})


def changed(op, view, run=None):
    return view.after(op.apply(view, run or MemoryRun()))


def moved(before, after):
    """name -> bool tensor: which elements have other bits."""
    return {n: before.tensor(n) != after.tensor(n) for n in before.names()}


# --- SPU ---


@pytest.mark.parametrize(("family", "parts"), [("llama", ("mlp.gate_proj", "mlp.up_proj")), ("gpt2", ("mlp.c_fc",))])
def test_spu_moves_a_tenth_of_the_first_mlp_matrices_and_nothing_else(family, parts, text, tmp_path):
    view, run = MemoryView.of(tiny_model(tmp_path, family)), MemoryRun()
    after = changed(update(text, protect="spu", weight_decay=0.2, clip=0.5), view, run)
    free = 0
    for name, elements in moved(view, after).items():
        if name.endswith(tuple(f"{part}.weight" for part in parts)):
            assert 0 < elements.sum() <= int(0.1 * elements.numel())
            free += int(0.1 * elements.numel())
        elif not name.endswith(tuple(f"{part}.bias" for part in parts)):
            assert not elements.any(), name
    assert run.records["controls"]["spu"] == {"rate": 0.1, "free": free}
    biases = sum(view.tensor(n).numel() for n in view.names() if n.endswith(tuple(f"{part}.bias" for part in parts)))
    assert update(text, protect="spu").plan(view).trainable == free + biases


@pytest.mark.parametrize("more", [{"ema": "dynamic"}, {"blend": 0.5}, {"ema": "0.1", "blend": 0.7}, {"replay": ("self:0.5",)}])
def test_untouched_weights_keep_their_bits_whatever_rides_along(llama, text, more):
    run = MemoryRun()
    after = changed(update(text, protect="spu", protect_rate=0.2, weight_decay=0.1, **more), llama, run)
    alone = changed(update(text, protect="spu", protect_rate=0.2), llama, run)
    assert sum(kind == "mask" for kind, _ in run.artifacts) == (2 if "replay" in more else 1)  # half as much new text chooses
    one, other = moved(llama, after), moved(llama, alone)
    free = {n for n in one if "gate_proj" in n or "up_proj" in n}
    assert {n for n, m in one.items() if m.any()} == free
    for name in free:
        assert one[name].sum() <= int(0.2 * one[name].numel())
        assert "replay" in more or (one[name] | other[name]).sum() <= int(0.2 * one[name].numel())


def test_spu_needs_a_model_whose_mlp_it_knows(llama):
    odd = MemoryView({"w": torch.zeros(1)}, {"config.json": b'{"model_type": "something"}'})
    with pytest.raises(Incompatible, match="MLP"):
        first_matrices(odd, load_model(llama))


# --- pulls ---


def batch_of(llama, text):
    return prepare(update(text), llama, MemoryRun()).mixture.at(0)


@pytest.mark.parametrize("kind", ["ewc", "hle", "l2sp"])
def test_a_pull_is_exactly_nothing_at_the_parent_and_grows_away_from_it(kind, llama, text):
    module, batch = load_model(llama), batch_of(llama, text)
    pulls = {n: torch.rand(p.shape) for n, p in module.named_parameters()}
    loss = Anchored(lambda m, b: 0.0, module, pulls)
    value = loss(module, batch)
    value.backward()
    assert value.item() == 0
    assert all(not p.grad.any() for p in module.parameters())
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5)
    assert loss(module, batch).item() == pytest.approx(sum(p.sum().item() for p in pulls.values()) / 8, rel=1e-4)


@pytest.mark.parametrize("kind", ["ewc", "hle", "l2sp"])
def test_an_endless_weight_keeps_the_parent(kind, llama, text):
    after = changed(update(text, protect=kind, protect_weight=1e30), llama)
    free = changed(update(text), llama)
    gaps = {n: (after.tensor(n) - llama.tensor(n)).abs().max().item() for n in llama.names()}
    if kind == "l2sp":
        assert max(gaps.values()) == 0
    plain = {n: (free.tensor(n) - llama.tensor(n)).abs().max().item() for n in llama.names()}
    matrices = [n for n in gaps if "self_attn.v_proj" in n or "down_proj" in n]
    assert max(gaps[n] for n in matrices) < 1e-6 < min(plain[n] for n in matrices)


def test_pulls_hold_back_and_stronger_ones_more(llama, text):
    run = MemoryRun()
    way = []
    for weight in (None, 1.0, 50.0):
        op = update(text) if weight is None else update(text, protect="ewc", protect_weight=weight)
        after = changed(op, llama, run)
        way.append(sum((after.tensor(n) - llama.tensor(n)).square().sum().item() for n in llama.names()))
    assert way[0] > way[1] > way[2]
    assert sum(kind == "fisher" for kind, _ in run.artifacts) == 1  # measured once


def test_methods_can_be_laid_over_each_other(llama, text):
    run = MemoryRun()
    changed(update(text, protect="ewc,hle,spu"), llama, run)
    assert set(run.records["controls"]) == {"ewc", "hle", "spu", "held_still"}


def test_importance_has_mean_one_and_nothing_is_refused():
    found = normalised({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([4.0])})
    assert sum(v.sum().item() for v in found.values()) / 3 == pytest.approx(1)
    with pytest.raises(CheckFailed, match="importance"):
        normalised({"a": torch.zeros(3)})


def test_the_fisher_of_a_linear_gaussian_model_is_its_exact_curvature():
    # y = theta x + r with r = +1 and -1 equally often: E r^2 is the model's own variance, so F is exactly the mean of x^2.
    xs = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    rs = torch.tensor([1.0, -1.0] * 3)
    module = nn.Linear(1, 1, bias=False)
    ys = xs * module.weight.item() + rs
    found = importance(module, lambda rows: (ys[rows] - module(xs[rows, None])[:, 0]).square() / 2, [[0, 1, 2], [3, 4, 5]])
    assert found["weight"].item() == pytest.approx(xs.square().mean().item(), rel=1e-5)


def test_layers_weigh_by_their_share_of_the_importance(llama):
    module = load_model(llama)
    omega = {n: torch.zeros(p.shape) for n, p in module.named_parameters()}
    equal = layer_coefficients(llama, {n: v + 1 / math.sqrt(v.numel()) for n, v in omega.items() if "v_proj" in n})
    assert set(round(c, 6) for c in equal.values()) == {1.0}
    lone = layer_coefficients(llama, {n: v + ("layers.1." in n) for n, v in omega.items()})
    assert {round(c, 6) for n, c in lone.items() if "layers.1." in n} == {3.0}  # two blocks and what lies outside
    assert {c for n, c in lone.items() if "layers.1." not in n} == {0.0}


# --- path importance ---


def test_with_small_plain_steps_the_importances_add_up_to_the_drop_in_loss(llama, text):
    module, rows = load_model(llama), prepare(update(text), llama, MemoryRun()).mixture.sources[0].rows[:8]

    def loss():
        logits = module(input_ids=rows).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()).item()

    before = loss()
    worth, _ = walked(module, rows, None, steps=30, rate=1e-2, sgd=True)
    assert sum(w.sum().item() for w in worth.values()) == pytest.approx(before - loss(), rel=0.02)


def test_measuring_the_path_leaves_the_module_as_it_was(llama, text):
    module = load_model(llama)
    kept = copy.deepcopy(module.state_dict())
    found = path_importance(module, prepare(update(text), llama, MemoryRun()).mixture.sources[0].rows, steps=3)
    assert all(torch.equal(v, kept[n]) for n, v in module.state_dict().items())
    assert all((v >= 0).all() for v in found.values())
    assert any(v.any() for v in found.values())


# --- means ---


class Line(nn.Module):
    """One number, and its gradient on a parabola."""

    def __init__(self, at):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([at]))


def stepped(ema, module, at, gradient):
    with torch.no_grad():
        module.theta.fill_(at)
    module.theta.grad = torch.tensor([gradient])
    ema.after_step(module, 1)


def test_a_fixed_share_is_a_plain_exponential_mean(llama, text):
    rows = prepare(update(text), llama, MemoryRun())
    module = load_model(llama)
    seen = []

    class Watch(Ema):
        def after_step(self, module, done):
            seen.append({n: p.detach().clone().double() for n, p in module.named_parameters()})
            super().after_step(module, done)

    start = {n: p.detach().clone().double() for n, p in module.named_parameters()}
    settings = TrainSettings(steps=6, lr=1e-2, warmup=1)
    LocalEngine().train(module, rows.mixture, settings, MemoryRun(), objective=language_loss, attached=(Watch(module, 0.25),))
    for name, parameter in module.named_parameters():
        mean = start[name]
        for weights in seen:
            mean = 0.75 * mean + 0.25 * weights[name]
        assert torch.allclose(parameter.double(), mean, atol=1e-6)


def test_where_nothing_can_be_said_the_mean_moves_slowly_or_not_at_all():
    module = Line(2.0)
    ema = Ema(module, "dynamic")
    stepped(ema, module, 2.0, 1.0)  # no gradient before: SLOW, and nothing to move towards
    assert ema.mean["theta"].item() == 2.0
    stepped(ema, module, 3.0, 1.0)  # the same gradient again
    assert ema.mean["theta"].item() == pytest.approx(2 + SLOW)
    assert ema.facts() == {"rule": "dynamic", "fallback": 1.0}


def test_on_a_parabola_the_paper_weighs_the_old_mean_by_its_formula():
    bend, low, last, theta, mean = 4.0, 1.0, 3.0, 9.0, 8.5
    module = Line(mean)
    ema = Ema(module, "paper")
    stepped(ema, module, mean, bend * (last - low))
    stepped(ema, module, theta, bend * (theta - low))
    beta = (bend * (theta - low) + 1) / ((theta - mean) * bend * (theta - last))
    assert beta > 2  # out of range: the old mean nearly stays
    assert ema.mean["theta"].item() == pytest.approx(mean + SLOW * (theta - mean))
    far = Ema(Line(0.0), "paper")
    stepped(far, module, 0.0, bend * (last - low))
    stepped(far, module, theta, bend * (theta - low))
    beta = (bend * (theta - low) + 1) / (theta * bend * (theta - last))
    assert far.mean["theta"].item() == pytest.approx((1 - beta) * theta, abs=1e-5)
    assert 0 < beta < 1


@pytest.mark.parametrize("more", [{"ema": "dynamic"}, {"ema": "paper", "blend": 0.5}, {"renew_embeddings": 3}, {"protect": "spu,ewc"}])
def test_a_controlled_run_that_was_killed_ends_with_the_same_bits(llama, text, more):
    op = update(text, save_every=2, **more)
    whole = changed(op, llama).digests()
    run = MemoryRun(die_after=5)
    with pytest.raises(Killed):
        changed(op, llama, run)
    run.die_after = None
    assert run.state[0] == 4
    assert changed(op, llama, run).digests() == whole


# --- the way back ---


def test_the_result_lies_the_given_share_of_the_way(llama, text):
    whole, part = (changed(update(text, blend=share), llama) for share in (1.0, 0.25))
    for name in llama.names():
        start = llama.tensor(name)
        assert torch.equal(part.tensor(name), blended(start, whole.tensor(name), 0.25))


def test_what_did_not_move_keeps_its_bits_on_any_way_back():
    start = torch.randn(1000)
    assert torch.equal(blended(start, start.clone(), 0.3), start)
    module = Line(1.0)
    rider = Blend(module, 0.5)
    with torch.no_grad():
        module.theta.fill_(3.0)
    rider.finish(module)
    assert module.theta.item() == 2.0


# --- embeddings drawn anew ---


def test_only_the_embedding_is_drawn_anew_and_its_moments_start_again(llama, text):
    module = load_model(llama)
    body = {n: p.detach().clone() for n, p in module.named_parameters()}
    renewal = Renewal(module, 3, 8, seed=0)
    assert {n for n, p in module.named_parameters() if not torch.equal(p, body[n])} == {renewal.name}
    first = renewal.weight.detach().clone()
    assert [done for done in range(1, 9) if renewal.after_step(module, done)] == [3]  # 6 would leave less than a round
    assert not torch.equal(renewal.weight, first)
    assert {n for n, p in module.named_parameters() if not torch.equal(p, body[n])} == {renewal.name}
    assert renewal.weight.std().item() == pytest.approx(renewal.spread, rel=0.2)
    rows, run = prepare(update(text), llama, MemoryRun()), MemoryRun(die_after=4)
    fresh = load_model(llama)
    with pytest.raises(Killed):
        LocalEngine().train(
            fresh, rows.mixture, TrainSettings(steps=8, lr=1e-2, warmup=1, save_every=3), run,
            objective=language_loss, attached=(Renewal(fresh, 3, 8, seed=0),),
        )  # fmt: skip
    state = run.state[1]
    assert f"m.{renewal.name}" not in state  # none: they begin at zero
    assert sum(name.startswith("m.") for name in state) == len(body) - 1


def test_the_draws_follow_the_seed(llama):
    one, same, other = (Renewal(load_model(llama), 3, 8, seed=s).weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- losses over each other ---


def test_equal_weights_and_no_terms_change_nothing_and_others_do(llama, text):
    module, batch = load_model(llama), batch_of(llama, text)
    plain = language_loss(module, batch)
    assert UpdateLoss()(module, batch).item() == pytest.approx(plain.item(), rel=1e-6)
    assert UpdateLoss(weigh=torch.ones_like)(module, batch).item() == pytest.approx(plain.item(), rel=1e-6)
    first = UpdateLoss(weigh=lambda rows: torch.eye(len(rows))[0] * len(rows))(module, batch)
    assert first.item() != pytest.approx(plain.item(), rel=1e-6)
    term = UpdateLoss(terms=(lambda m, b, logits: logits.new_tensor(0.5),))
    assert term(module, batch).item() == pytest.approx(plain.item() + 0.5, rel=1e-6)
    own = UpdateLoss(taught=SelfTaught(load_model(llama), 0))  # every row is taught by the model's own equal
    assert own(module, batch).item() == pytest.approx(0, abs=1e-6)


def test_sampled_text_can_be_learnt_as_text_or_matched_as_distributions(llama, text):
    run = MemoryRun()
    results = {kind: changed(update(text, replay=(f"{kind}:0.5",)), llama, run) for kind in ("self", "sample")}
    assert results["self"].digests() != results["sample"].digests()
    assert sum(kind == "self-replay" for kind, _ in run.artifacts) == 1  # the same rows
    check = update(text, replay=("sample:0.5",)).check(llama, results["sample"], run)
    assert set(check.values["replay"]) == {"sample"}


# --- what is refused ---


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"protect": "walls"}, "--protect"),
        ({"protect": "ewc,ewc"}, "twice"),
        ({"protect": "spu", "protect_rate": 0.0}, "--protect-rate"),
        ({"protect": "ewc", "protect_weight": -1.0}, "--protect-weight"),
        ({"protect": "spu", "protect_weight": 1.0}, "--protect-weight"),
        ({"protect": "ewc", "adapter": "lora:2"}, "--protect"),
        ({"protect": "ewc", "expand": 1}, "--protect"),
        ({"ema": "fast"}, "--ema"),
        ({"ema": "0"}, "--ema"),
        ({"blend": 0.0}, "--blend"),
        ({"blend": math.nan}, "--blend"),
        ({"renew_embeddings": -1}, "--renew-embeddings"),
        ({"renew_embeddings": 9}, "--renew-embeddings"),
        ({"renew_embeddings": 2, "protect": "spu"}, "embeddings"),
        ({"begin": "end"}, "--from"),
        ({"begin": "stable", "expand": 1}, "--from stable"),
        ({"begin": "stable", "protect": "ewc"}, "--from stable"),
        ({"slow": ("3",)}, "--slow"),
        ({"slow": ("0:0.5",)}, "--slow"),
        ({"slow": ("3:2",)}, "--slow"),
    ],
)
def test_controls_that_cannot_work_are_refused_at_once(text, more, words):
    with pytest.raises(BadParameter) as caught:
        update(text, **more)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_model_without_numbers_has_no_importance(llama, text):
    broken = llama.after([SetTensor("model.norm.weight", torch.full((16,), math.nan))])
    with pytest.raises(CheckFailed):
        changed(update(text, protect="ewc", replay=(f"{text}:0.5",)), broken)


# --- going on from the stable state ---


def carried(run):
    """What a commit of this run hands on to the next one."""
    following = MemoryRun()
    following.ancestry = {kind: data for (kind, _), data in run.artifacts.items()}
    return following


def test_an_update_goes_on_from_the_stable_state_of_the_last_one(llama, text):
    run = MemoryRun()
    first = changed(update(text, steps=30, decay="wsd"), llama, run)
    assert run.records["stable"]["rate"] == SMALL["lr"]
    following = carried(run)
    second = changed(update(text, steps=10, decay="infinite", lr=None, begin="stable"), first, following)
    assert following.records["training"]["lr"] == SMALL["lr"]  # the rate goes on, too
    assert following.records["training"]["warmup_steps"] == 0
    assert following.records["begun"]["step"] == run.records["stable"]["step"]
    afresh = changed(update(text, steps=10, decay="wsd", warmup=0.0), first, MemoryRun())
    assert second.digests() != afresh.digests()
    assert second.digests() == changed(update(text, steps=10, decay="wsd", begin="stable"), first, carried(run)).digests()


def test_a_stable_state_of_other_weights_is_refused(llama, text):
    run = MemoryRun()
    first = changed(update(text, steps=12, decay="wsd"), llama, run)
    edited = first.after([SetTensor("model.norm.weight", first.tensor("model.norm.weight") * 2)])
    with pytest.raises(Incompatible, match="changed since"):
        changed(update(text, begin="stable"), edited, carried(run))
    with pytest.raises(Incompatible, match="keeps no stable state"):
        changed(update(text, begin="stable"), llama, MemoryRun())


def test_no_stable_state_is_kept_where_the_rate_just_falls(llama, text):
    run = MemoryRun()
    changed(update(text), llama, run)
    assert "stable" not in run.records
    assert "stable-state" not in {kind for kind, _ in run.artifacts}
