"""Verbs that make history: their answers, what refuses them, and what they prove."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mlc.tests.cli.running import ok, run_cli

TRAIN = ("--steps", "2", "--seq-len", "16", "--batch", "2")


def sha256(directory: Path) -> dict[str, str]:
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.rglob("*") if p.is_file()}


# --- in and out ------------------------------------------------------------------------------------------


def test_an_import_starts_a_branch_and_says_what_was_stored(work):
    answer = ok("import", "model", "--branch", "copy", "-m", "again")
    assert answer["commit"]["branch"] == "copy"
    assert answer["commit"]["parents"] == []
    assert answer["commit"]["author"] == "Grace <grace@example.org>"
    assert answer["commit"]["verdict"] == {"outcome": "ungated", "rules": []}
    assert answer["warnings"] == []
    assert answer["ref_moved"] is True


def test_an_import_onto_other_content_is_refused_and_nothing_moves(work):
    answer = run_cli("import", "model", "--json")
    assert (answer.code, answer.error["kind"]) == (9, "RefMoved")
    assert ok("refs")["branches"] == {"main": work.second}


@pytest.mark.parametrize(
    ("source", "code"),
    [("nowhere", 3), ("suites", 2), ("mlc.toml", 2), ("hf://some/model", 8)],
    ids=["missing", "no weights", "no tensor file", "hub"],
)
def test_an_import_of_something_else_gives_its_exit_code_and_a_hint(work, source, code):
    answer = run_cli("import", source, "--branch", "x", "--json")
    assert answer.code == code
    assert answer.error["hint"]
    assert answer.out == ""


def test_a_truncated_weight_file_is_exit_2_and_leaves_no_branch(work):
    weights = work.root / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    answer = run_cli("import", "model", "--branch", "x", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadInputFile")
    assert "x" not in ok("refs")["branches"]


def test_an_export_gives_every_byte_back_and_names_each_file(work):
    answer = ok("export", "main~1", "out")
    assert {f["path"]: f["sha256"] for f in answer["files"]} == sha256(work.root / "model") == sha256(work.root / "out")
    assert answer["dir"] == "out"
    assert answer["snapshot"] == ok("show", work.first)["commit"]["snapshot"]
    again = run_cli("export", "main~1", "out", "--json")
    assert again.code == 2


def test_a_changed_directory_is_recorded_as_a_child(lenient):
    ok("export", "main", "out")
    (lenient.root / "out" / "note.txt").write_text("by hand")
    answer = ok("commit", "out", "-m", "a note")
    assert answer["commit"]["parents"] == [lenient.second]
    assert answer["commit"]["op"]["name"] == "commit"
    assert answer["ref_moved"] is True
    assert ok("diff", "HEAD~1")["files"]["added"] == ["note.txt"]


def test_a_directory_that_differs_in_nothing_is_no_commit(work):
    ok("export", "main", "out")
    answer = ok("commit", "out")
    assert answer["commit"]["id"] == work.second
    assert "nothing" in answer["warnings"][0]


# --- update ----------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(work):
    before = sorted(p for p in (work.root / ".mlc").rglob("*") if p.is_file())
    plan = ok("update", "--data", "new.txt", *TRAIN, "--dry-run")["plan"]
    assert plan["steps"] == 2
    assert plan["touches"]
    assert plan["bytes_touched"] > 0
    assert "Nothing was written." in run_cli("update", "--data", "new.txt", *TRAIN, "--dry-run").out
    assert sorted(p for p in (work.root / ".mlc").rglob("*") if p.is_file()) == before


def test_a_refused_update_keeps_the_candidate_moves_nothing_and_says_why(work):
    answer = run_cli("update", "--data", "new.txt", *TRAIN, "--json")
    assert answer.code == 4
    assert answer.json["ref_moved"] is False
    assert answer.json["commit"]["verdict"]["outcome"] == "refused"
    assert answer.error["kind"] == "GateRefused"
    assert "--waive frozen" in answer.error["hint"]
    assert ok("refs")["branches"] == {"main": work.second}
    assert ok("show", answer.json["commit"]["short"])["commit"]["verdict"]["outcome"] == "refused"


def test_people_read_the_failed_rule_the_metrics_and_the_way_out(work):
    answer = run_cli("update", "--data", "new.txt", *TRAIN)
    assert answer.code == 4
    assert "✗ frozen: " in answer.out
    assert "logprob" in answer.out
    assert "error: " in answer.err
    assert " hint: mlc accept " in answer.err
    assert "Traceback" not in answer.err


def test_the_same_seed_gives_the_same_snapshot(lenient):
    one = ok("update", "main~1", "--data", "new.txt", *TRAIN, "--branch", "one", "--seed", "7")
    two = ok("update", "main~1", "--data", "new.txt", *TRAIN, "--branch", "two", "--seed", "7")
    assert one["commit"]["snapshot"] == two["commit"]["snapshot"]
    assert one["commit"]["seeds"] == {"run": 7}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "--data"),
        (["--data", "nowhere.txt", *TRAIN], 3, "nowhere.txt"),
        (["--data", "new.txt", "--steps", "many"], 2, "whole number"),
        (["--data", "new.txt", "--steps", "0"], 2, "--steps"),
        (["--data", "new.txt", "--replay", "half"], 2, "FILE:RATIO"),
        (["--data", "new.txt", "--adapter", "qlora"], 2, "lora"),
        (["--data", "empty.txt", *TRAIN], 2, "empty"),
        (["--data", "bad.jsonl", *TRAIN], 2, "line 2"),
        (["main~1", "--data", "new.txt"], 2, "branch"),
        (["main~1", "--data", "new.txt", "--branch", "main"], 9, "main"),
        (["--resume", "nosuchrun"], 3, "nosuchrun"),
        (["--resume"], 3, "unfinished"),
    ],
)
def test_a_wrong_update_gives_its_exit_code_and_one_sentence(work, words, code, said):
    (work.root / "empty.txt").write_text("")
    (work.root / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    answer = run_cli("update", *words, "--json")
    assert answer.code == code, answer
    assert said in answer.error["message"] + (answer.error["hint"] or "")
    assert answer.out == ""
    assert ok("refs")["branches"] == {"main": work.second}


def test_an_adapter_is_a_child_that_can_be_shown_and_measured(lenient):
    answer = ok("update", "--data", "new.txt", *TRAIN, "--adapter", "lora:2", "--branch", "lora")
    assert answer["commit"]["parents"] == [lenient.second]
    assert any("lora" in tensor["name"].lower() for tensor in ok("show", "lora")["tensors"])
    assert ok("eval", "lora", "--suite", "facts")["cached"] is True


def test_a_recipe_supplies_what_flags_leave_out_and_flags_win(work):
    (work.root / "r.toml").write_text('data = "new.txt"\nsteps = 3\nseq_len = 16\n')
    plan = ok("update", "--recipe", "r.toml", "--steps", "4", "--dry-run")["plan"]
    assert plan["steps"] == 4
    shown = ok("recipe", "show", "r.toml", "--op", "update")
    assert shown["params"]["steps"] == 3
    assert shown["params"]["batch"] == 8
    assert ok("recipe", "validate", "r.toml", "--op", "update")["valid"] is True


def test_an_unknown_recipe_key_says_where_and_what_was_meant(work):
    (work.root / "r.yaml").write_text("data: new.txt\nstep: 3\n")
    for words in (("update", "--recipe", "r.yaml"), ("recipe", "validate", "r.yaml", "--op", "update")):
        answer = run_cli(*words, "--json")
        assert (answer.code, answer.error["kind"]) == (2, "BadRecipe")
        assert "line 2, column 1" in answer.error["message"]
        assert "steps" in answer.error["hint"]


# --- going back ------------------------------------------------------------------------------------------


def test_a_rollback_returns_to_the_same_snapshot_by_a_new_commit(work):
    answer = ok("rollback", "main~1", "-m", "back")
    assert answer["commit"]["snapshot"] == ok("show", work.first)["commit"]["snapshot"]
    assert answer["commit"]["parents"] == [work.second]
    assert answer["commit"]["op"]["name"] == "rollback"
    assert answer["ref_moved"] is True


def test_nothing_returns_to_a_refused_candidate(work):
    answer = run_cli("rollback", work.refused, "--json")
    assert (answer.code, answer.error["kind"]) == (4, "GateRefused")
    assert (answer.json["commit"]["id"], answer.json["ref_moved"]) == (work.refused, False)
    assert ok("refs")["branches"] == {"main": work.second}


def test_a_rollback_says_its_proof(work):
    snapshot = ok("show", work.first)["commit"]["snapshot"]
    assert f"Snapshot {snapshot} is that of {work.first[:12]}." in run_cli("rollback", work.first).out


def test_a_revert_takes_the_tip_back_and_is_judged(lenient):
    answer = ok("revert", "HEAD")
    assert answer["commit"]["snapshot"] == ok("show", lenient.first)["commit"]["snapshot"]
    assert answer["commit"]["verdict"]["outcome"] == "accepted"
    assert run_cli("revert", lenient.first, "--json").code == 2  # a root


def test_undo_and_redo_move_the_branch_back_and_forth(work):
    moved = ok("rollback", "main~1")["commit"]["id"]
    assert ok("undo")["moved"] == [{"name": "heads/main", "old": moved, "new": work.second}]
    assert ok("redo")["moved"] == [{"name": "heads/main", "old": work.second, "new": moved}]


def test_a_redo_with_nothing_to_repeat_is_an_error_with_a_hint(work):
    answer = run_cli("redo", "--json")
    assert answer.code in (2, 3, 9)
    assert answer.error["hint"]


# --- measuring and deciding ------------------------------------------------------------------------------


def test_an_evaluation_is_cached_by_snapshot_and_suite(work):
    first = ok("eval", "main", "--suite", "suites/facts.toml", "--limit", "5")
    assert set(first) == {"rev", "suite", "metrics", "n", "cached"}
    assert (first["rev"], first["suite"], first["n"], first["cached"]) == (work.second, "facts", 5, False)
    assert ok("eval", "main", "--suite", "facts", "--limit", "5") == {**first, "cached": True}
    assert "facts" in run_cli("eval").out


@pytest.mark.parametrize(("suite", "code"), [("nowhere.toml", 3), ("nosuch", 3), ("mlc.toml", 2)])
def test_a_suite_that_is_not_there_or_no_suite_gives_its_exit_code(work, suite, code):
    answer = run_cli("eval", "--suite", suite, "--json")
    assert answer.code == code
    assert answer.error["hint"]


def test_the_gate_answers_without_recording(lenient):
    before = ok("log", "--all")
    answer = ok("gate", "main", "--against", "main~1")
    assert answer["verdict"]["outcome"] == "accepted"
    assert {rule["rule"] for rule in answer["verdict"]["rules"]} >= {"negative-flips", "tested-accuracy"}
    assert ok("policy", "test", "main~1", "main")["verdict"] == answer["verdict"]
    assert ok("log", "--all") == before


def test_the_gate_refuses_with_exit_4_and_still_prints_the_verdict(work):
    answer = run_cli("gate", "main", "--json")
    assert answer.code == 4
    assert answer.json["verdict"]["outcome"] == "refused"
    assert "frozen" in answer.error["message"]


def test_a_waiver_promotes_the_refused_candidate_as_it_is(work):
    answer = ok("accept", work.refused, "--waive", "frozen", "--reason", "a test", "--until", "2999-01-01")
    assert answer["commit"]["id"] == work.refused
    assert answer["commit"]["verdict"]["outcome"] == "accepted"
    assert answer["commit"]["verdict"]["waivers"][0]["reason"] == "a test"
    assert ok("refs")["branches"] == {"main": work.second, "trial": work.refused}
    assert ok("show", "trial")["commit"]["verdict"]["outcome"] == "accepted"


@pytest.mark.parametrize("words", [[], ["--waive", "frozen"], ["--waive", "nosuch", "--reason", "x"]])
def test_an_acceptance_needs_a_failed_rule_and_a_reason(work, words):
    answer = run_cli("accept", work.refused, *words, "--json")
    assert answer.code == 2
    assert answer.error["hint"]


def test_policies_are_checked_explained_and_described(work):
    assert "frozen" in ok("policy", "check")["rules"]
    sentences = {rule["id"]: rule for rule in ok("policy", "explain")["rules"]}
    assert sentences["frozen"]["note"] == "nothing may move"
    assert "at most" in sentences["frozen"]["sentence"]
    assert "RuleTable" in ok("policy", "schema")["$defs"]
    assert "min_examples" in run_cli("policy", "schema").out


def test_a_broken_policy_says_line_column_and_what_was_meant(work):
    (work.root / "policies" / "bad.toml").write_text('[[rule]]\nid = "x"\nmetrik = "flips.nfr"\nmax = 1\n')
    answer = run_cli("policy", "check", "--json")
    assert answer.code == 2
    assert "line 3" in answer.error["message"]
    assert "metric" in answer.error["hint"]


def test_diff_reports_behaviour_weights_config_and_files(work):
    found = ok("diff", "main~1", "main")
    assert (found["a"], found["b"]) == (work.first, work.second)
    keys = {"n", "acc_a", "acc_b", "negative_flips", "positive_flips", "nfr", "pfr", "nfr_upper95", "mcnemar_p", "churn", "flips"}
    assert keys <= set(found["suites"]["facts"])
    assert found["suites"]["facts"]["n"] == 12
    assert found["weights"]["tensors_changed"] > 0
    layers = found["weights"]["layers"]
    assert {"layer", "role", "rel_l2", "max_abs"} <= set(layers[0])
    assert {row["role"] for row in layers} >= {"attn.q", "mlp.out"}
    assert all(row["rel_l2"] > 0 and row["max_abs"] > 0 for row in layers)
    assert found["config"] == {"changed": {}, "added": {}, "removed": {}}


def test_weight_distances_are_the_same_stored_and_computed(work):
    stored = ok("diff", "main~1", "main", "--stat")["weights"]
    ok("rollback", "main~1")
    computed = ok("diff", "HEAD", "HEAD~1", "--weights")["weights"]  # not parent and child: read from both
    assert [(r["layer"], r["role"]) for r in stored["layers"]] == [(r["layer"], r["role"]) for r in computed["layers"]]
    for one, other in zip(stored["layers"], computed["layers"], strict=True):
        assert one["rel_l2"] == pytest.approx(other["rel_l2"], rel=1e-5)
        assert one["max_abs"] == pytest.approx(other["max_abs"], rel=1e-6)


def test_flips_are_listed_by_example_with_both_answers(work, monkeypatch):
    rows = [{"prompt": "the river is", "answer": "amber"}, {"prompt": "the lamp", "answer": "speaks"}]
    (work.root / "suites" / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ok("diff", "main~1", "main", "--flips")["suites"]["facts"]
    assert found["n"] == 2  # the suite changed, so both sides were measured again
    assert len(found["flips"]) == found["negative_flips"] + found["positive_flips"]
    for flip in found["flips"]:
        assert set(flip) == {"example", "answer", "a", "b", "kind"}
        assert flip["answer"] == (flip["a"] if flip["kind"] == "negative" else flip["b"])
    page = run_cli("diff", "main~1", "main", "--flips").out
    assert "McNemar p" in page
    assert "weights" in page


def test_what_was_asked_is_found_by_suite_digest(work):
    from mlc.cli.context import Globals, Session
    from mlc.cli.measuring import texts

    [(digest, asked)] = texts(Session(Globals()), None).items()
    assert digest == ok("diff", "main~1")["suites"]["facts"]["suite_digest"]
    assert asked["f0"].startswith("the ")


def test_diff_exit_code_is_5_over_the_limit_and_the_answer_is_still_printed(work, monkeypatch):
    from mlc.cli import differences

    honest = differences.behaviour
    monkeypatch.setattr(differences, "behaviour", lambda *a: {**honest(*a), "nfr": 0.25, "negative_flips": 3})
    answer = run_cli("diff", "main~1", "main", "--exit-code", "--max-nfr", "0.1", "--json")
    assert (answer.code, answer.error["kind"]) == (5, "OverLimit")
    assert answer.json["suites"]["facts"]["nfr"] == 0.25
    assert run_cli("diff", "main~1", "main", "--exit-code", "--max-nfr", "0.3").code == 0


@pytest.mark.parametrize(("words", "code"), [(["--suite", "nosuch"], 3), (["--limit", "-1"], 2), (["--max-nfr", "2"], 2)])
def test_a_wrong_diff_gives_its_exit_code(work, words, code):
    answer = run_cli("diff", "main~1", "main", *words, "--json")
    assert answer.code == code
    assert answer.error["hint"]


def test_an_unfinished_run_is_listed_resumed_and_forgotten(lenient, monkeypatch):
    from mlc.ops.base import Check
    from mlc.ops.update.train import Update

    def stop(self, before, after, run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Update, "check", stop)
        answer = run_cli("update", "--data", "new.txt", *TRAIN, "--save-every", "1", "--json")
    assert answer.code == 130
    run = ok("runs")["runs"][0]
    assert (run["op"], run["state"], run["branch"]) == ("update", "resumable", "main")
    assert ok("status")["runs"][0]["id"] == run["id"]
    assert run["id"] in run_cli("runs").out
    assert all(f"mlc update --resume {run['id']}" in run_cli(verb).err for verb in ("runs", "status"))
    assert run_cli("update", "--resume", "--data", "new.txt", "--json").code == 2
    done = ok("update", "--resume")
    assert done["commit"]["parents"] == [lenient.second]
    assert ok("runs") == {"runs": []}
    with monkeypatch.context() as patch:
        patch.setattr(Update, "check", lambda *a: Check(False, {"landed": 0}, "it did not land", hint="train longer"))
        failed = run_cli("update", "--data", "new.txt", *TRAIN, "--json")
    assert (failed.code, failed.json["commit"], failed.json["check"]["landed"]) == (10, None, 0)
