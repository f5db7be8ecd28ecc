"""The operation `align`, and `update` with an older version beside it: they keep answers, repeat themselves, resume, and refuse."""

from __future__ import annotations

import json

import pytest

from mlc.ops.compat.align import Align
from mlc.ops.update.train import Update
from mlc.registry.errors import BadInputFile, BadParameter
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView

SHORT = {"steps": 12, "batch": 8, "lr": 1e-2}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("old"), seed=4))


@pytest.fixture(scope="module")
def anchors(tmp_path_factory, old):
    """Prompts with the answers that the old version gives, and some that it does not."""
    import torch

    from mlc.ops.models import load_model, load_tokenizer

    module, tokenizer = load_model(old, dtype=torch.float32), load_tokenizer(old)
    rows = []
    for n, (a, b) in enumerate((a, b) for a in ("the", "a", "of") for b in WORDS[:14]):
        ids = tokenizer(f"{a} {b} is", return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            best = module(input_ids=ids).logits[0, -1, 4:26].argmax() + 4
        rows.append({"prompt": f"{a} {b} is", "answer": WORDS[n % 5] if n % 4 == 0 else tokenizer.decode([int(best)])})
    path = tmp_path_factory.mktemp("data") / "anchors.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def text(anchors, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "new.txt"
    path.write_text(" ".join(WORDS[(i * 7 + 3) % len(WORDS)] for i in range(900)), encoding="utf-8")
    return str(path)


def running(old, **more):
    run = MemoryRun(**more)
    run.versions["old"] = old
    return run


@pytest.fixture(scope="module")
def new(old, text):
    """The old version after an update that asks nobody."""
    op = Update(data=text, steps=12, batch=4, seq_len=12, lr=2e-2)
    return old.after(op.apply(old, MemoryRun()))


@pytest.mark.parametrize("method", ["focal-kl", "focal-logits", "kd", "muscle-student", "muscle-new"])
def test_an_alignment_loses_fewer_of_the_old_versions_answers(method, old, new, anchors):
    op, run = Align(to="old", data=anchors, method=method, holdout=0.0, **{**SHORT, "steps": 25}), running(old)
    check = op.check(new, new.after(op.apply(new, run)), run)
    assert check.values["nfr_before"] > 0.1
    assert check.values["nfr_after"] < check.values["nfr_before"]
    assert check.passed is (check.values["accuracy_after"] >= check.values["accuracy_before"] - 0.005)
    assert check.values["accuracy_after"] - check.values["accuracy_old"] == pytest.approx(
        check.values["pfr_after"] - check.values["nfr_after"]
    )
    assert [(i.role, i.name) for i in run.inputs if i.role == "compat"] == [("compat", "anchors.jsonl")] * 2
    assert run.records["compat_teacher"]["kept"] == 64


def test_an_update_beside_an_older_version_loses_fewer_answers_than_one_alone(old, anchors, text):
    common = {"data": text, "steps": 12, "batch": 8, "seq_len": 12, "lr": 2e-2}
    lost = []
    for more in ({}, {"compat_with": "old", "compat_data": anchors}):
        op, run = Update(**common, **more), running(old)
        after = old.after(op.apply(old, run))
        beside = Update(**common, compat_with="old", compat_data=anchors).check(old, after, running(old))
        lost.append(beside.values["compat"]["nfr_after"])
        assert beside.values["compat"]["nfr_before"] == 0
    assert lost[1] < lost[0]


def test_equal_seeds_give_equal_bytes_and_a_killed_run_ends_with_the_same(old, new, anchors):
    op = Align(to="old", data=anchors, save_every=4, **SHORT)
    whole = new.after(op.apply(new, running(old))).digests()
    assert new.after(op.apply(new, running(old))).digests() == whole
    run = running(old, die_after=10)
    with pytest.raises(Killed):
        new.after(op.apply(new, run))
    run.die_after = None
    assert new.after(op.apply(new, run)).digests() == whole


def test_an_adapter_is_all_that_an_adapter_run_yields_and_text_can_be_gone_on_with(old, new, anchors, text):
    op = Align(to="old", data=anchors, adapter="lora:2", text=(f"{text}:0.5",), **SHORT)
    run = running(old)
    plan = op.plan(new)
    adapter = new.after(op.apply(new, run), adapter=True)
    assert all(name in plan.touches for name in adapter.names())
    assert op.output_kind() == "adapter"
    assert {i.role for i in run.inputs} == {"compat", "text"}


def test_parameters_survive_the_round_trip_and_the_plan_reads_no_tensor(new, anchors):
    op = Align(to="old", data=anchors, text=("a.txt:0.2",))
    assert Align.from_params(json.loads(json.dumps(op.params()))) == op
    new.reads.clear()
    plan = Align(to="old", data=anchors).plan(new)
    assert new.reads == []
    assert plan.details["anchors"] == 42
    assert set(plan.touches) == set(new.names())


def labelled(tmp_path, count):
    import torch

    generator = torch.Generator().manual_seed(1)
    rows = [{"image": torch.rand(8, 8, generator=generator).tolist(), "label": n % 3} for n in range(count)]
    path = tmp_path / "images.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("method", ["focal-logits", "muscle-student"])
def test_a_classifier_is_aligned_too(tmp_path, method):
    was, view = (MemoryView.of(tiny_model(tmp_path / str(seed), "vit", seed=seed)) for seed in (0, 1))
    op, run = Align(to="old", data=labelled(tmp_path, 60), method=method, holdout=0.0, **{**SHORT, "steps": 30}), running(was)
    check = op.check(view, view.after(op.apply(view, run)), run)
    assert check.values["nfr_after"] <= check.values["nfr_before"]


# --- refusals --------------------------------------------------------------------------------------------


def test_an_old_version_that_gets_nothing_right_has_nothing_to_keep(old, new, tmp_path):
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps({"prompt": "the river is", "answer": "w3 w4 w5 w6"}) + "\n")
    with pytest.raises(BadInputFile, match="gets none of the 1 records of wrong"):
        list(Align(to="old", data=str(path), **SHORT).apply(new, running(old)))


def test_muscle_needs_two_versions(old, anchors):
    with pytest.raises(BadParameter, match="two teachers"):
        list(Align(to="old", data=anchors, method="muscle-new", **SHORT).apply(old, running(old)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"compat_data": "a.jsonl"}, "without --compat-with"),
        ({"compat_with": "old"}, "needs --compat-data"),
        ({"compat_with": "old", "compat_data": "a.jsonl", "compat": "magic"}, "one of focal-kl"),
        ({"compat_with": "old", "compat_data": "a.jsonl", "compat_new": "x"}, "one teacher"),
        ({"compat_with": "old", "compat_data": "a.jsonl:2"}, "between 0 and 1"),
        ({"compat_tau": -1.0}, "tau"),
    ],
)
def test_options_of_an_update_that_contradict_each_other_are_refused(more, words):
    with pytest.raises(BadParameter, match=words):
        Update(data="new.txt", **more).as_typed()


@pytest.mark.parametrize(
    "more", [{"steps": 0}, {"method": "x"}, {"lam": 0.0}, {"holdout": 0.9}, {"adapter": "lora"}, {"text": ("self:0.5",)}]
)
def test_options_of_an_alignment_that_mean_nothing_are_refused(more):
    with pytest.raises(BadParameter):
        Align(to="old", data="a.jsonl", **more)
