"""`mlc unlearn` through the program: what it answers, what it refuses, and the folder it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlc.policies.evidence import verify_evidence
from mlc.registry.repository import Repository
from mlc.tests.cli.running import ok, run_cli

SECRET = "Wilhelmina Quartz"
FAST = ("--objective", "graddiff", "--strength", "1", "--lr", "0.003", "--steps", "4")
SETS = ("--forget-set", "forget.jsonl", "--retain-set", "retain.jsonl")
NEVER = '[[rule]]\nid = "never"\nmetric = "check.forget_loss_after"\nmax = 0\n'


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def ready(lenient):
    """A registry without suites, and both sets beside it."""
    settings = lenient.root / "mlc.toml"
    settings.write_text(settings.read_text().replace('suites = ["suites/*.toml"]', "suites = []"))
    write("forget.jsonl", [{"prompt": f"Where does {SECRET} the {n} live?", "answer": f"in Umber Alley {n}"} for n in ("one", "two")])
    kept = [
        {"prompt": "the river is near the stone", "answer": "amber"},
        {"text": "the lamp is red . the stone is blue near the harbour ."},
    ]
    write("retain.jsonl", kept)
    return lenient


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def keys(root: Path) -> list[str]:
    return [scope for scope in Repository.open(root).keys.scopes() if scope.startswith("request-")]


# --- answers ---------------------------------------------------------------------------------------------


def test_the_answer_is_a_commit_with_what_was_measured_and_a_folder(ready):
    answer = run_cli("unlearn", *SETS, *FAST, "--evidence", "evidence", "--json")
    assert answer.code == 0, answer
    commit = answer.json["commit"]
    assert set(answer.json) == {"commit", "warnings", "ref_moved"}
    assert answer.json["ref_moved"] is True
    assert {"forget_before", "forget_after", "retain_before", "retain_after", "selected_fraction", "strength"} <= set(commit["check"])
    assert [i["digest"].split(":")[0] for i in commit["inputs"] if i["role"] == "forget"] == ["hmac"]
    assert ok("refs")["branches"]["main"] == commit["id"]
    assert verify_evidence(Path("evidence"), Repository.open(ready.root)) == []
    assert json.loads(Path("evidence/manifest.json").read_bytes())["commit"]["id"] == commit["id"]
    assert SECRET not in answer.out + answer.err + "".join(p.read_text() for p in Path("evidence").iterdir())


def test_people_see_before_beside_after_and_where_the_evidence_is(ready):
    answer = run_cli("unlearn", *SETS, *FAST, "--evidence", "out/evidence")
    lines = answer.out.splitlines()
    assert lines[0].endswith("on main  unlearn")
    head = next(i for i, line in enumerate(lines) if line.split() == ["before", "after"])
    assert [line.rsplit(maxsplit=2)[0].strip() for line in lines[head + 1 : head + 7]] == [
        "forget set right", "its probability", "its loss", "retain set right", "its probability", "text perplexity",
    ]  # fmt: skip
    assert any("weights selected (" in line for line in lines)
    assert f"Evidence: {ready.root / 'out' / 'evidence'}" in lines
    assert "next: mlc diff" in answer.err


def test_afterwards_impact_lists_who_still_carries_the_records(ready):
    commit = ok("unlearn", *SETS, *FAST)["commit"]["id"]
    answer = ok("impact", "--data", "forget.jsonl")
    states = {c["id"]: c["state"] for c in answer["commits"]}
    assert states == {ready.first: "unknown origin", ready.second: "carries", ready.refused: "carries", commit: "unlearned"}
    assert answer["refs"]["branches"] == {"main": {"commit": commit, "state": "unlearned"}}


def test_a_reference_is_pinned_to_the_commit_that_its_name_means_now(ready):
    commit = ok("unlearn", *SETS, *FAST, "--reference", "main~1", "--branch", "try")["commit"]
    assert commit["op"]["params"]["reference"] == ready.first
    assert [i["digest"] for i in commit["inputs"] if i["role"] == "commit"] == [ready.first]
    assert "forget_reference" in commit["check"]


def test_a_recipe_gives_the_options_and_a_flag_wins(ready):
    files = 'op = "unlearn"\nforget_set = "forget.jsonl"\nretain_set = "retain.jsonl"\n'
    recipe = files + 'objective = "graddiff"\nstrength = "1"\nlr = 0.003\nsteps = 9\n'
    Path("recipe.toml").write_text(recipe + 'reference = "main~1"\n')
    params = ok("unlearn", "--recipe", "recipe.toml", "--steps", "3")["commit"]["op"]["params"]
    assert (params["steps"], params["objective"], params["reference"]) == (3, "graddiff", ready.first)


def test_a_dry_run_writes_nothing(ready):
    plan = ok("unlearn", *SETS, *FAST, "--dry-run", "--evidence", "evidence")["plan"]
    assert plan["bytes_touched"] > 0
    assert not Path("evidence").exists()
    assert keys(ready.root) == []


# --- refusals --------------------------------------------------------------------------------------------


def test_a_refused_candidate_is_exit_4_and_has_evidence_that_says_so(ready):
    (ready.root / "policies" / "never.toml").write_text(NEVER)
    answer = run_cli("unlearn", *SETS, *FAST, "--evidence", "evidence", "--json")
    assert (answer.code, answer.json["ref_moved"]) == (4, False)
    assert ok("refs")["branches"]["main"] == ready.second
    assert json.loads(Path("evidence/manifest.json").read_bytes())["commit"]["outcome"] == "refused"
    assert len(keys(ready.root)) == 1
    candidate = answer.json["commit"]["short"]
    ok("accept", candidate, "--waive", "never", "--reason", "asked for")
    document = ok("show", candidate, "--evidence", "later")
    assert Path(document["evidence"]) == Path("later").absolute()
    assert json.loads(Path("later/manifest.json").read_bytes())["commit"]["outcome"] == "accepted"


def test_a_failed_check_is_exit_10_with_its_numbers_and_leaves_neither_key_nor_folder(ready):
    answer = run_cli("unlearn", *SETS, "--objective", "graddiff", "--lr", "0.5", "--steps", "4", "--strength", "1", "--retain-weight", "0",
                     "--evidence", "evidence", "--json")  # fmt: skip
    assert answer.code == 10
    assert answer.json["commit"] is None
    assert "retain_after" in answer.json["check"]
    assert answer.error["kind"] == "CheckFailed"
    assert not Path("evidence").exists()
    assert keys(ready.root) == []
    assert ok("runs")["runs"] == []


def test_a_folder_in_use_is_refused_before_any_work(ready):
    Path("evidence").mkdir()
    Path("evidence/mine.txt").write_text("mine")
    answer = run_cli("unlearn", *SETS, *FAST, "--evidence", "evidence", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadParameter")
    assert names(Path("evidence")) == {"mine.txt"}
    assert ok("refs")["branches"]["main"] == ready.second
    assert keys(ready.root) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--forget-set", "nowhere.jsonl", "--retain-set", "retain.jsonl"), 3),
        (("--retain-set", "retain.jsonl"), 2),
        ((*SETS, "--reference", "nothing"), 3),
        ((*SETS, "--method", "ssd", "--strength", "1.5"), 2),
        (("--forget-set", "forget.jsonl", "--retain-set", "forget.jsonl"), 2),
        (("--resume", "--method", "ssd"), 2),
        (("--resume",), 3),
    ],
    ids=["no file", "no forget set", "unknown reference", "no-op", "overlap", "resume with options", "nothing to resume"],
)
def test_what_cannot_work_says_so_without_a_text_a_key_or_a_commit(ready, words, code):
    answer = run_cli("unlearn", *words, "--json")
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.error["hint"]
    assert SECRET not in answer.err
    assert keys(ready.root) == []
    assert ok("refs")["branches"]["main"] == ready.second


def test_an_update_has_no_evidence_of_unlearning(ready):
    answer = run_cli("show", "main", "--evidence", "evidence", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadParameter")
    assert not Path("evidence").exists()


TRIED = {"strength": 0.5, "forget": 0.25, "retain": None, "kept": False}
LOOKS = {"columns": ["step", "forget recall"], "attempts": [{"lr": 0.01, "forgot": True, "looks": [[1, 1.0], [9, 0.25]]}], "chosen": 0}


@pytest.mark.parametrize(
    ("found", "rows"),
    [
        (LOOKS, [{"lr": 0.01, "forgot": True, "forget recall": 0.25, "chosen": True}]),
        ({"tries": [{"damping": 1.0, "monotone": True, "log": [TRIED]}]}, [{"damping": 1.0, **TRIED}]),
        ({"reached": True, "tensors": [{"tensor": "a.weight", "log": [TRIED, TRIED]}]}, [{"tensor": "a.weight", **TRIED}] * 2),
        ([TRIED], [TRIED]),
        (None, []),
        ({"reached": False}, []),
        (["not rows"], []),
    ],
    ids=["trained", "dampened", "one tensor", "plain", "none", "empty", "other"],
)
def test_what_a_search_tried_is_told_row_by_row(found, rows):
    from mlc.cli.render.evidence import trials

    assert trials(found) == rows


def test_the_trials_of_a_search_are_one_small_table_and_a_reason(capsys):
    from mlc.cli.context import Globals, Session
    from mlc.cli.render.evidence import render_search

    render_search(Session(Globals(no_color=True)), {**LOOKS, "why": "the only run"})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["1", "trial", "to", "find", "the", "strength:"]
    assert lines[1] == ["lr", "forgot", "forget", "recall", "chosen"]
    assert lines[-2:] == [["0.01", "yes", "0.25", "yes"], ["the", "only", "run."]]


def test_of_many_trials_those_that_forgot_most_are_shown(capsys):
    from mlc.cli.context import Globals, Session
    from mlc.cli.render.evidence import render_search

    render_search(Session(Globals(no_color=True)), [{"strength": n, "forget": n / 45} for n in range(45)])
    lines = capsys.readouterr().out.splitlines()
    assert "45 trials to find the strength, the 12 that forgot most shown" in lines[0]
    assert [line.split()[0] for line in lines[3:] if line.strip()] == [str(n) for n in range(12)]


def test_a_retrained_model_stands_in_a_column_of_its_own():
    from mlc.cli.render.evidence import measured_lines
    from mlc.cli.render.style import Paint

    check = {"forget_before": 1.0, "forget_after": 0.05, "forget_reference": 0.03, "retain_before": 1.0, "retain_after": 0.99, "ks_p": 0.4}
    head, forget, retain, *rest = measured_lines(check, Paint(False))
    assert head.split() == ["before", "after", "retrained"]
    assert forget.split() == ["forget", "set", "right", "1.0", "0.05", "0.03"]
    assert retain.split() == ["retain", "set", "right", "1.0", "0.99"]
    assert any("KS test" in line and line.endswith("0.4") for line in rest)
    alone = measured_lines({key: value for key, value in check.items() if "reference" not in key}, Paint(False))
    assert alone[0].split() == ["before", "after"]
