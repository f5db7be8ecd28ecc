"""The operation `unlearn`: it forgets and keeps, it repeats itself to the bit, it resumes, and it never says what it forgot."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mlc.ops.base import SetTensor
from mlc.ops.data.items import read_items
from mlc.ops.models import load_model
from mlc.ops.unlearn.check import verdict
from mlc.ops.unlearn.choosing import spared
from mlc.ops.unlearn.goal import goal_of
from mlc.ops.unlearn.strength import Ladder
from mlc.ops.unlearn.task import batches, task_of
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.registry.errors import CheckFailed
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView
from mlc.tests.ops.forgetting import OWNERS, context, jsonl, pairs, texts, thing_of, world

QUICK = {"steps": 60, "batch": 6, "lr": 1e-2}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def unlearn(sets, **more):
    return Unlearn(**{**sets, **QUICK, **more})


def result(op, view, run=None):
    return view.after(op.apply(view, run or MemoryRun()))


@pytest.fixture(scope="module")
def forgotten(small):
    """(operation, run, view) of a search that was let loose on the small world."""
    op, run = unlearn(small[1]), MemoryRun()
    return op, run, result(op, small[0], run)


# --- it forgets, and keeps the rest ---


def test_the_forget_set_goes_and_the_rest_stays(small, forgotten):
    op, run, after = forgotten
    check = op.check(small[0], after, run)
    assert check.passed, check.reason
    values = check.values
    assert values["forget_before"] == 1.0
    assert values["forget_after"] <= 0.2
    assert values["retain_after"] >= 0.95 * values["retain_before"]
    assert values["forget_loss_after"] > values["forget_loss_before"] + 1
    assert values["text_perplexity_after"] <= 1.1 * values["text_perplexity_before"]
    json.dumps(values, allow_nan=False)


def test_the_search_is_recorded_with_what_was_tried_and_why(forgotten):
    _, run, _ = forgotten
    search = run.records["search"]
    assert search["target"] >= 0.05
    assert search["attempts"][search["chosen"]]["lr"] == run.records["lr"]
    assert search["why"]
    steps = [look[0] for look in search["attempts"][0]["looks"]]
    assert steps == sorted(steps)
    assert run.records["steps"] == search["attempts"][search["chosen"]]["steps"]
    assert run.records["selected"] == run.records["weights"]


@pytest.mark.parametrize("objective", ["graddiff", "npo", "simnpo", "po"])
def test_every_objective_on_likelihoods_lowers_the_recall(small, objective):
    op, run = unlearn(small[1], objective=objective, strength="1", refusal="was in"), MemoryRun()
    check = op.check(small[0], result(op, small[0], run), run)
    assert check.values["forget_after"] <= 0.5


def test_plain_text_is_forgotten_by_its_tokens(small, tmp_path):
    sets = {**small[1], "forget_set": jsonl(tmp_path / "f.jsonl", [{"text": f"{o} sells the {thing_of(o)}"} for o in OWNERS[:3]])}
    sets["holdout_set"] = jsonl(tmp_path / "h.jsonl", [{"text": "stone of w20 amber lamp"}])
    op, run = unlearn(sets, method="wagle"), MemoryRun()
    check = op.check(small[0], result(op, small[0], run), run)
    assert check.values["forget_after"] < check.values["forget_before"]
    assert check.values["forget_probability_after"] is None
    assert run.records["search"]["guess"] == goal_of(context(small[0], sets)).guess < 0.5


@pytest.mark.parametrize("family", ["gpt2", "neox", "qwen3"])
def test_other_families_forget_as_well(family, tmp_path):
    view, sets = world(tmp_path, family)
    op, run = unlearn(sets, strength="1", method="wagle", keep_ratio=0.5), MemoryRun()
    values = op.check(view, result(op, view, run), run).values
    assert values["forget_after"] < values["forget_before"]
    assert values["forget_loss_after"] > values["forget_loss_before"] + 0.5


def test_a_classifier_forgets_a_class(tmp_path):
    view, sets = classes(tmp_path)
    op, run = unlearn(sets, steps=40, strength="1"), MemoryRun()
    check = op.check(view, result(op, view, run), run)
    assert check.values["forget_before"] == 1.0
    assert check.values["forget_after"] <= 1 / 3 + 0.02
    assert check.values["retain_after"] >= 0.95
    assert "text_perplexity_after" in check.values


def classes(folder):
    """A vision model that tells three patterns apart, and the records of one of them to forget."""
    from mlc.tests.ops.forgetting import taught

    generator = torch.Generator().manual_seed(0)

    def image(label):
        pattern = torch.zeros(8, 8)
        pattern[:, label * 2 : label * 2 + 3] = 1
        return {"image": (pattern + 0.2 * torch.rand(8, 8, generator=generator)).tolist(), "label": label}

    sets = {
        "forget_set": jsonl(folder / "f.jsonl", [image(2) for _ in range(12)]),
        "retain_set": jsonl(folder / "r.jsonl", [image(i % 2) for i in range(24)]),
    }
    return taught(MemoryView.of(tiny_model(folder / "vit", "vit")), sets, steps=40), sets


def test_a_bf16_model_stays_bf16(small, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, dtype="bfloat16"))
    after = result(unlearn(small[1], strength="1", steps=4), view)
    assert {after.entry(n).dtype for n in after.names()} == {"BF16"}
    assert after.digests() != view.digests()


# --- it repeats itself ---


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(small):
    op = unlearn(small[1], steps=10, strength="1")
    one, again, other = (result(op, small[0], MemoryRun(seed=s)).digests() for s in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("more", [{"strength": "1"}, {"method": "wagle", "weight_decay": 0.1}])
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(small, more):
    op = unlearn(small[1], steps=12, save_every=4, target=0.0, **more)
    plain = MemoryRun()
    whole = result(op, small[0], plain).digests()
    run = MemoryRun(die_after=10)
    with pytest.raises(Killed):
        result(op, small[0], run)
    assert run.state[0] == 8
    run.die_after, run.steps = None, []
    assert result(op, small[0], run).digests() == whole
    assert next(done for phase, done, _, _ in run.steps if phase == "train") == 9
    assert run.records == plain.records


def test_the_rows_that_steer_depend_on_the_records_and_not_on_their_order(small, tmp_path):
    rows = pairs(OWNERS[3:]) * 8 + texts(40)
    kept = []
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        ctx = context(small[0], {**small[1], "retain_set": jsonl(tmp_path / f"{name}.jsonl", ordered)})
        kept.append(sorted(ctx.retain.items.items[ctx.retain.rows.owner[i]].normal() for i in spared(ctx)))
    assert kept[0] == kept[1]
    assert 16 <= len(kept[0]) <= len(rows) // 4


# --- what it aims at ---


def test_the_target_is_what_guessing_gives_and_not_less_than_one_in_twenty(small, tmp_path):
    ctx = context(*small)
    answers = [thing_of(o) for o in OWNERS[3:]]
    guess = sum(answers.count(thing_of(o)) for o in OWNERS[:3]) / (3 * len(answers))
    assert goal_of(ctx).guess == pytest.approx(guess, abs=1e-6)
    assert goal_of(ctx).target == pytest.approx(max(0.05, guess), abs=1e-6)
    apart = jsonl(tmp_path / "r.jsonl", [{"prompt": "the north", "answer": "south"}])
    assert goal_of(context(small[0], {**small[1], "retain_set": apart})).target == 0.05
    assert goal_of(context(*small, target=0.3)).target == 0.3


def test_the_ladder_doubles_halves_and_then_goes_between():
    ladder = Ladder(1e-3, fixed=False)
    for done, whole, following in ((False, True, 2e-3), (True, False, 1.41e-3), (False, True, 1.68e-3)):
        ladder.next()
        ladder.judge(done, whole)
        assert ladder.rate == pytest.approx(following, rel=1e-2)
    ladder.judge(True, True)
    assert ladder.next() is None
    lone = Ladder(1e-3, fixed=True)
    lone.judge(False, True)
    assert lone.next() is None


# --- what is kept about it ---


def test_the_forget_set_stands_under_a_keyed_digest_and_the_others_under_their_own(small, forgotten):
    _, run, _ = forgotten
    forget = next(r for r in run.inputs if r.role == "forget")
    assert forget.digest == run.pseudonym(read_items(small[1]["forget_set"], "forget").payload)
    retain = next(r for r in run.inputs if r.role == "retain")
    assert retain.digest == read_items(small[1]["retain_set"], "retain").digest


def test_scores_of_single_records_are_kept_without_their_text_or_order(small):
    run, op = MemoryRun(), unlearn(small[1], steps=4, strength="1")
    op.check(small[0], result(op, small[0], run), run)
    ((key, data),) = ((key, data) for (kind, key), data in run.artifacts.items() if kind == "forget-items")
    lines = [json.loads(line) for line in data.splitlines()]
    items = read_items(small[1]["forget_set"], "forget").items
    assert [line["id"] for line in lines] == sorted(run.pseudonym(item.normal()) for item in items)
    assert {tuple(sorted(line)) for line in lines} == {("id", "kind", "loss_after", "loss_before", "right_after", "right_before")}
    said = data.decode() + key + json.dumps(run.records) + str(run.inputs) + str(run.notes)
    assert not any(word in said for word in ("sells", *(f'"{o}' for o in OWNERS), *(thing_of(o) for o in OWNERS)))


def test_a_holdout_and_a_reference_are_compared_with(small, tmp_path):
    view, sets = small
    run = MemoryRun()
    run.versions["retrained"] = view
    strangers = [{"prompt": f"w{i} sells the", "answer": "lamp"} for i in range(20, 26)]
    op = unlearn(
        sets, steps=6, strength="1", holdout_set=jsonl(tmp_path / "h.jsonl", strangers), reference="retrained", measure="full", batch=3
    )
    values = op.check(view, result(op, view, run), run).values
    assert values["mia_auc_before"] > 0.9
    assert values["mia_auc_reference"] == values["mia_auc_before"]
    assert values["forget_reference"] == values["forget_before"]
    assert 0 <= values["ks_p"] <= 1
    assert {"relearn_after", "relearn_resistance", "forget_int8", "forget_int4", "extraction_before"} <= set(values)
    json.dumps(values, allow_nan=False)


def test_records_that_stand_out_after_forgetting_are_said_to_tell_what_was_removed(small, tmp_path):
    view, sets = small
    strangers = [{"prompt": f"w{i} sells the", "answer": "lamp"} for i in range(20, 26)]
    op = unlearn(sets, objective="graddiff", steps=40, strength="4", retain_weight=0.0, holdout_set=jsonl(tmp_path / "h.jsonl", strangers))
    loud, still = MemoryRun(), MemoryRun()
    values = op.check(view, result(op, view, loud), loud).values
    assert values["mia_auc_after"] < 0.25
    assert any("can tell that it was removed" in note for note in loud.notes)
    op.check(view, view, still)
    assert not still.notes


# --- the check ---

FINE = {
    **{f"forget_{when}": v for when, v in (("before", 1.0), ("after", 0.05))},
    **{f"forget_loss_{when}": v for when, v in (("before", 0.1), ("after", 3.0))},
    **{f"retain_{when}": 1.0 for when in ("before", "after")},
    **{f"retain_loss_{when}": 0.1 for when in ("before", "after")},
    **{f"text_perplexity_{when}": 20.0 for when in ("before", "after")},
}


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"forget_after": 1.0}, "was not forgotten"),
        ({"forget_loss_after": None}, "no numbers on the forget set"),
        ({"retain_after": 0.94}, "lost too much"),
        ({"retain_loss_after": 0.31}, "above the limit of 0.305 nats"),
        ({"retain_loss_after": None}, "no number"),
        ({"text_perplexity_after": 22.1}, "above 1.1 times before"),
        ({"text_perplexity_after": None}, "no number"),
    ],
)
def test_a_result_beyond_a_limit_is_refused_with_advice(odd, words):
    op = Unlearn(forget_set="f", retain_set="r", method="ssd", strength="0.2")
    assert verdict(op, FINE).passed
    check = verdict(op, FINE | odd)
    assert not check.passed
    assert words in check.reason
    assert "--method dense --objective npo" in check.hint


def test_a_model_that_was_left_alone_fails_the_check(small):
    check = unlearn(small[1], strength="1").check(small[0], small[0], MemoryRun())
    assert not check.passed
    assert "was not forgotten" in check.reason


def test_a_model_that_computes_no_numbers_fails_the_check_and_can_be_recorded(small):
    broken = small[0].after([SetTensor("model.norm.weight", torch.full((32,), math.nan))])
    check = unlearn(small[1], strength="1").check(small[0], broken, MemoryRun())
    assert not check.passed
    json.dumps(check.values, allow_nan=False)


def test_weights_that_are_no_numbers_stop_the_run(small):
    with pytest.raises(CheckFailed, match=r"no longer a number|not finite"):
        result(unlearn(small[1], strength="1", lr=1e30, clip=0.0), small[0])


# --- plans, rows ---


def test_a_plan_counts_without_reading_a_tensor_and_says_what_auto_will_do(small):
    view, sets = small
    view.reads.clear()
    dense, wagle, ssd = (unlearn(sets, **m).plan(view) for m in ({}, {"method": "wagle"}, {"method": "ssd", "strength": "0.2"}))
    assert view.reads == []
    total = sum(math.prod(view.entry(n).shape) for n in view.names())
    assert (dense.trainable, wagle.trainable, ssd.trainable) == (total, int(0.3 * total), 0)
    assert (dense.steps, ssd.steps) == (60, 0)
    assert "forget 6 records, keep 30 by dense with npo" in dense.summary
    assert "suites are not read" in dense.details["auto"]
    assert "auto" not in ssd.details
    assert dense.seconds > 0 < dense.memory


def test_long_texts_are_cut_into_rows_of_one_owner_and_every_token_counts_once(small, tmp_path):
    path = jsonl(tmp_path / "long.jsonl", [{"text": " ".join(["lamp"] * 150)}, *pairs(["w0"])[:1]])
    rows = task_of(small[0]).rows(read_items(path, "retain"))
    assert rows.owner == (0, 0, 0, 1)
    assert rows.scored == (63, 63, 24, 1)
    assert rows.lengths == (64, 64, 25, 4)
    assert rows.pairs == (False, False, False, True)
    assert batches(rows, range(4), 130) == [[0, 1], [2, 3]]


def test_measuring_agrees_with_the_evaluation_of_the_same_records(small, tmp_path):
    from mlc.ops.evaluate.runner import evaluate
    from mlc.ops.evaluate.suite import load_suite

    jsonl(tmp_path / "rows.jsonl", pairs(OWNERS[:8]))
    (tmp_path / "suite.toml").write_text('name = "s"\nkind = "cloze"\ndata = "rows.jsonl"\n')
    task, module = task_of(small[0]), load_model(small[0])
    found = task.measure(module, task.rows(read_items(tmp_path / "suite.toml", "forget")))
    metrics = evaluate(small[0], load_suite(tmp_path / "suite.toml")).metrics
    assert found.accuracy == metrics["accuracy"]
    assert -found.loss == pytest.approx(metrics["logprob"], abs=1e-5)


@pytest.mark.material
def test_tofu_records_load_and_score(material):
    view = MemoryView.of(material / "models" / "facts-small")
    task = task_of(view)
    rows = task.rows(read_items(material / "data" / "tofu" / "forget01.jsonl", "forget"))
    found = task.measure(load_model(view), rows)
    assert len(rows) == 40
    assert found.accuracy == 0.0
    assert found.loss > 0
