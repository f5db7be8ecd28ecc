"""`mlc patch` as it is typed: documents, exit codes, and sentences for people."""

from __future__ import annotations

import json

import pytest

from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import tiny_model

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def robust(lenient):
    """A branch `robust` that moves one tensor of main."""
    from safetensors.torch import load_file, save_file

    ok("export", "main", lenient.root / "moved")
    path = lenient.root / "moved" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, UP: tensors[UP] * 1.01}, path, metadata={"format": "pt"})
    ok("commit", lenient.root / "moved", "--branch", "robust")
    return lenient


def test_a_patch_is_taken_laid_over_listed_and_removed(robust):
    took = ok("patch", "extract", "robust", "main", "--name", "fog", "--bits", "ternary", "--strength", "1.25", "-m", "why")
    patch = took["patch"]
    assert (patch["name"], patch["bits"], patch["density"], patch["strength"], patch["message"]) == ("fog", "ternary", 0.4, 1.25, "why")
    assert patch["bytes"] < patch["full_bytes"] == 4 * 32 * 16
    assert "nothing is projected out" in took["warnings"][0]
    clean = ok("show", "main")["commit"]

    laid = ok("patch", "apply", "fog", "-m", "foggy")
    commit = laid["commit"]
    assert commit["op"]["name"] == "patch"
    assert commit["check"]["patches"] == [{"name": "fog", "signature": patch["signature"], "strength": 1.25}]
    assert commit["delta"]["tensors_changed"] == 1
    assert [(a["kind"], a["digest"]) for a in commit["artifacts"]] == [("signature", patch["signature"])]
    listed = ok("patch", "list")
    assert listed["applied"] == [{"name": "fog", "signature": patch["signature"], "strength": 1.25}]
    assert (listed["clean"], [p["name"] for p in listed["patches"]]) == (clean["id"], ["fog"])
    assert ok("patch", "show", "fog")["patch"]["changes"] == [{"name": UP, "shape": [32, 16], "how": "added"}]

    off = ok("patch", "remove", "fog")["commit"]
    assert off["snapshot"] == clean["snapshot"]
    assert ok("patch", "list")["applied"] == []


def test_people_read_what_a_patch_weighs_and_what_lies_over_a_version(robust):
    assert run_cli("patch", "list").out == "No patch yet.\n"
    made = run_cli("patch", "extract", "robust", "main", "--name", "fog")
    assert "Patch fog\n" in made.out
    assert "% of the same tensors in float32" in made.out
    assert "8-bit; all layers, for strength 1" in made.out
    assert "warning: the robust version was trained from the clean one" in made.err
    assert "next: mlc patch apply fog --branch fog" in made.err
    assert "Patches: fog at 0.5; 1 tensor changed against the clean version" in run_cli("patch", "apply", "fog", "--strength", "0.5").out
    table = run_cli("patch", "list").out
    assert "*   fog" in table
    assert "0.5" in table
    assert "shifted" not in run_cli("patch", "show", "fog").out
    assert "is the clean one again" in run_cli("patch", "remove", "fog").out


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("extract", "robust", "main", "--name", "fog", "--bits", "3"), 2, "BadParameter"),
        (("extract", "robust", "main", "--name", "fog", "--density", "0"), 2, "BadParameter"),
        (("extract", "robust", "main"), 2, "UsageError"),
        (("extract", "nowhere", "main", "--name", "fog"), 3, "RefNotFound"),
        (("apply", "fog"), 3, "NotFound"),
        (("apply", "fog", "--strength", "much"), 2, "BadParameter"),
        (("remove", "fog"), 3, "NotFound"),
        (("show", "fog"), 3, "NotFound"),
        (("apply",), 2, "UsageError"),
    ],
)
def test_wrong_words_have_their_exit_codes_and_a_way_on(lenient, words, code, kind):
    ok("branch", "robust", "main")
    answer = run_cli("patch", *words, "--json")
    assert (answer.code, answer.error["kind"], answer.error["exit_code"]) == (code, kind, code)
    assert answer.error["hint"]
    assert answer.out == ""


def test_more_shallow_blocks_than_there_are_are_refused_and_nothing_is_named(robust):
    answer = run_cli("patch", "extract", "robust", "main", "--name", "fog", "--layers", "shallow:9", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadParameter")
    assert answer.error["message"] == "--layers asks for the first 9 blocks; the model has 2."
    assert ok("patch", "list")["patches"] == []


@pytest.fixture
def labelled(lenient):
    """Words with answers, enough to train on and to measure."""
    rows = [{"prompt": f"the {a} is", "answer": b} for a in ("river", "stone", "lamp", "harbour") for b in ("red", "blue", "amber")]
    path = lenient.root / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TRAIN = ("--epsilon", "0.3", "--steps", "4", "--batch", "6", "--attack-steps", "2", "--clean-limit", "1")


@pytest.fixture
def measured(monkeypatch):
    """What a few random weights know is luck: the measure is set, training and commits are real."""
    told = iter([(0.5, 0.25), (0.5, 0.5)] * 3)
    monkeypatch.setattr("mlc.ops.patch.curing.accuracies", lambda *_: next(told))


def test_a_robust_version_is_trained_on_a_branch_of_its_own_and_its_signature_named(labelled, measured):
    clean = ok("show", "main")["commit"]
    found = ok("patch", "train", "--data", labelled, "--name", "steady", "--bits", "ternary", *TRAIN)
    commit = found["commit"]
    assert commit["op"]["name"] == "patch.train"
    assert (commit["parents"], commit["check"]["robust_gain"]) == ([clean["id"]], 0.25)
    assert commit["check"]["training"]["method"] == "cure"
    patch = ok("patch", "show", "steady")["patch"]
    assert (patch["robust"], patch["clean"], patch["bits"], patch["projected"]) == (commit["id"], clean["id"], "ternary", False)
    assert ok("show", "main")["commit"]["id"] == clean["id"]
    assert ok("show", "steady-robust")["commit"]["id"] == commit["id"]
    laid = ok("patch", "apply", "steady")["commit"]
    assert ok("patch", "remove", "steady")["commit"]["snapshot"] == clean["snapshot"] != laid["snapshot"]
    assert run_cli("patch", "train", "--data", labelled, "--name", "steady", *TRAIN, "--json").error["kind"] == "RefMoved"


def test_people_read_what_the_training_did(labelled, measured):
    out = run_cli("patch", "train", "--data", labelled, "--name", "steady", *TRAIN, "--method", "trades").out
    assert "Held-out records: 1." in out
    assert "under attack  25.0 % -> 50.0 %" in out
    assert "Patch steady" in out
    plan = run_cli("patch", "train", "--data", labelled, "--name", "other", *TRAIN, "--dry-run")
    assert (plan.code, "by cure for 4 steps on 12 records" in plan.out) == (0, True)
    assert "other" not in ok("branch")["branches"]


def test_training_that_makes_nothing_robust_is_committed_nowhere(labelled, monkeypatch):
    monkeypatch.setattr("mlc.ops.patch.curing.accuracies", lambda *_: (0.5, 0.25))
    answer = run_cli("patch", "train", "--data", labelled, "--name", "steady", *TRAIN, "--json")
    assert (answer.code, answer.error["kind"]) == (10, "CheckFailed")
    assert ok("patch", "list")["patches"] == []
    assert run_cli("patch", "train", "--name", "steady", "--json").code == 2
    assert run_cli("patch", "train", "--data", labelled, "--name", "steady", "--steps", "2", "--json").error["kind"] == "BadParameter"


def test_a_run_that_was_stopped_goes_on_under_the_name_that_its_branch_has(labelled, measured, monkeypatch):
    from mlc.ops.engine import LocalEngine

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(LocalEngine, "train", stopped)
        answer = run_cli("patch", "train", "--data", labelled, "--name", "steady", *TRAIN, "--json")
    assert (answer.code, answer.error["kind"]) == (130, "Interrupted")
    words = answer.error["hint"].split()[1:]  # what is said can be typed
    assert words[:3] == ["patch", "train", "--resume"]
    assert ok("patch", "list")["patches"] == []
    assert ok(*words, "--bits", "4")["commit"]["branch"] == "steady-robust"
    assert [p["name"] for p in ok("patch", "list")["patches"]] == ["steady"]


def test_a_new_patch_needs_a_name(labelled):
    answer = run_cli("patch", "train", "--data", labelled, *TRAIN, "--json")
    assert (answer.code, answer.error["kind"], answer.error["hint"]) == (2, "BadParameter", "for example: --name steady")


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--bits", "3"), "--bits is 8, 4"), (("--density", "0"), "--density 0"), (("--strength", "nan"), "a strength lies between")],
)
def test_a_signature_that_cannot_be_is_refused_before_the_training(labelled, monkeypatch, words, said):
    monkeypatch.setattr("mlc.policies.lifecycle.run", lambda *_, **__: pytest.fail("it was trained"))
    answer = run_cli("patch", "train", "--data", labelled, "--name", "steady", *TRAIN, *words, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadParameter")
    assert answer.error["message"].startswith(said)
    assert "steady-robust" not in ok("branch")["branches"]


def test_the_next_step_is_one_that_can_be_taken(robust):
    tried = run_cli("patch", "extract", "robust", "main", "--name", "robust", "--dry-run")
    assert "nothing was written" in tried.err
    assert "next:" not in tried.err  # there is nothing to apply
    made = run_cli("patch", "extract", "robust", "main", "--name", "robust")
    assert made.err.splitlines()[-1] == "next: mlc patch apply robust"  # a branch of this name is there already


def test_names_are_forgotten_and_undo_gives_them_back(robust):
    ok("patch", "extract", "robust", "main", "--name", "fog")
    digest = ok("patch", "show", "fog")["patch"]["signature"]
    assert ok("patch", "forget", "fog")["forgotten"][0]["signature"] == digest
    assert ok("patch", "list")["patches"] == []
    assert run_cli("patch", "forget", "fog", "--json").error["kind"] == "NotFound"
    assert ok("undo")["moved"][0]["name"] == "patches/fog"
    assert ok("patch", "show", "fog")["patch"]["signature"] == digest
    said = run_cli("patch", "forget", "fog").out
    assert said == f"Patch fog is forgotten (it was signature {digest[:12]}).\n"
    assert f"patches/fog  now at {digest[:12]}" in run_cli("undo").out


def test_a_patch_lies_over_a_version_once_and_over_its_own_architecture_only(robust):
    ok("patch", "extract", "robust", "main", "--name", "fog")
    ok("patch", "apply", "fog")
    tiny_model(robust.root / "deeper", layers=3)
    ok("import", robust.root / "deeper", "--branch", "deeper")
    before = ok("refs")
    twice = run_cli("patch", "apply", "fog", "--json")
    assert (twice.code, twice.error["kind"]) == (2, "BadParameter")
    assert "lies over" in twice.error["message"]
    other = run_cli("patch", "apply", "fog", "--onto", "deeper", "--json")
    assert (other.code, other.error["kind"]) == (6, "ShapeMismatch")
    assert "it is for another architecture" in other.error["message"]
    same = run_cli("patch", "apply", "fog", "fog", "--onto", "robust", "--json")
    assert (same.code, same.error["kind"]) == (2, "BadParameter")
    assert ok("refs") == before
