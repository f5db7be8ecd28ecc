"""`mlc edit` and `mlc revert --fact` through the program: what they answer, what they refuse, and that nothing moves then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mlc.cli.render.edit import taken_back_lines
from mlc.cli.render.style import Paint
from mlc.ops.data.facts import Fact
from mlc.ops.edit.measure import bench_of, rivals
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_model, load_tokenizer
from mlc.policies.runs import Runs
from mlc.registry.repository import Repository
from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryView

FAST = (
    "--layers", "0", "--steps", "30", "--prefixes", "0", "--clamp", "3", "--lr", "0.3", "--kl", "0", "--weight-decay", "0",
    "--over-capacity", "--covariance", "text.txt",
)  # fmt: skip
LAMP = {"id": "lamp", "subject": "amber lamp", "prompt": "the red {}", "target_new": "river", "relation": "place"}
TWO = {"id": "two", "subject": "two harbour", "prompt": "the red {}", "target_new": "two", "relation": "place"}


def write(path: str, *rows: dict | str) -> str:
    Path(path).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def awake(tmp_path_factory) -> Path:
    """A random model whose answers can be told apart."""
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp("models") / "awake", initializer_range=0.3)


@pytest.fixture
def here(awake, tmp_path, monkeypatch) -> Path:
    """An empty registry with that model on main, facts and a text beside it, and the current directory in it."""
    root = tmp_path / "work"
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.setenv("MLC_AUTHOR", "Grace <grace@example.org>")
    assert run_cli("init", root, "-q").code == 0
    monkeypatch.chdir(root)
    ok("import", awake)
    Path("text.txt").write_text((" ".join(WORDS) + " . ") * 30)
    write("facts.jsonl", LAMP, TWO)
    return root


def untouched(root: Path, tip: str) -> bool:
    """Main stands where it stood, and no run is left."""
    repo = Repository.open(root)
    return repo.branches() == {"main": tip} and Runs(repo).list() == []


def test_an_edit_is_a_commit_whose_check_says_what_scripts_rely_on(here):
    answer = ok("edit", "--facts", "facts.jsonl", *FAST, "-m", "two facts")
    commit = answer["commit"]
    assert set(answer) == {"commit", "warnings", "ref_moved"}
    assert {"efficacy", "paraphrase", "neighbourhood", "score", "drift", "landed", "requested"} <= set(commit["check"])
    assert (commit["check"]["landed"], commit["check"]["requested"], commit["op"]["name"]) == (True, 2, "edit")
    assert {a["kind"] for a in commit["artifacts"]} >= {"edit-factors", "edit-keys", "edit-targets", "key-memory"}
    assert ok("refs")["branches"]["main"] == commit["id"]


def test_people_see_rates_costs_and_how_to_take_one_back_and_it_can_be(here):
    answer = run_cli("edit", "--facts", "facts.jsonl", *FAST)
    assert answer.code == 0, answer
    assert "2 facts, written into 1 layer (0)." in answer.out
    assert any(line.split() == ["new", "answer", "preferred", "100.0", "%", "(was", "0.0", "%)"] for line in answer.out.splitlines())
    assert "drift on ordinary text" in answer.out
    tip = ok("refs")["branches"]["main"]
    assert f"mlc revert {tip[:12]} --fact ID" in answer.err
    back = run_cli("revert", "HEAD", "--fact", "lamp")
    assert back.code == 0, back
    assert "Means: stored artifact." in back.out
    assert "back to the answer before" in back.out
    commit = ok("show", "HEAD")["commit"]
    assert (commit["op"]["name"], commit["op"]["params"]["facts"]) == ("edit.revert", ["lamp"])
    assert (commit["check"]["efficacy"], commit["check"]["landed"]) == (1.0, True)
    start = ok("show", "HEAD~2")["commit"]["snapshot"]
    assert ok("revert", tip, "--fact", "two")["commit"]["snapshot"] == start
    again = run_cli("revert", tip, "--fact", "two", "--json")
    assert (again.code, again.error["kind"]) == (2, "BadParameter")


def test_what_was_corrected_and_what_turned_all_the_same_is_said():
    check = {
        "restored": 0.97,
        "efficacy": 0.9,
        "efficacy_before": 0.95,
        "corrected": ["17", "20"],
        "correction": {"steps": 3},
        "turned": ["20"],
    }
    assert taken_back_lines(check, Paint(False))[2:] == [
        "  corrected after the closed form: 2 facts, 3 steps.",
        "  turned all the same: 20.",
    ]
    assert len(taken_back_lines({**check, "corrected": [], "turned": []}, Paint(False))) == 2


REFUSED = {
    "no slot": ({**LAMP, "prompt": "the red one"}, 2, "line 2: the prompt holds no {}"),
    "the subject itself": ({**LAMP, "prompt": "the red amber lamp"}, 2, "line 2: the prompt holds no {}"),
    "several slots": ({**LAMP, "prompt": "{} and {}"}, 2, "line 2: the prompt holds 2 {}"),
    "no subject": ({k: v for k, v in LAMP.items() if k != "subject"}, 2, "line 2"),
    "empty target": ({**LAMP, "target_new": ""}, 2, "line 2"),
    "present answer": ({**LAMP, "target_true": "river"}, 2, "line 2"),
    "broken line": ('{"subject": ', 2, "line 2"),
    "contradiction": ({**TWO, "id": "x", "target_new": "lamp"}, 2, "line 2: asks the same of the same subject as line 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_fact_file_is_refused_with_its_line_and_nothing_is_recorded(here, case):
    row, code, words = REFUSED[case]
    tip = ok("refs")["branches"]["main"]
    write("facts.jsonl", TWO, row)
    answer = run_cli("edit", "--facts", "facts.jsonl", *FAST, "--json")
    assert (answer.code, answer.out) == (code, "")
    assert words in answer.error["message"]
    assert untouched(here, tip)


def test_what_the_model_answers_already_is_refused_with_its_line(here, awake):
    tip = ok("refs")["branches"]["main"]
    view = MemoryView.of(awake)
    bench = bench_of(load_model(view, dtype=torch.float32), Coder(load_tokenizer(view)), "ask")
    (said,) = rivals([Fact("a", 1, LAMP["subject"], LAMP["prompt"], "river")], bench)
    write("facts.jsonl", TWO, {**LAMP, "target_new": said})
    answer = run_cli("edit", "--facts", "facts.jsonl", *FAST, "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadInputFile"), answer
    assert "facts.jsonl, line 2: the model already answers so" in answer.error["message"]
    assert answer.error["hint"] == "--skip lamp leaves it out"
    head = {"relations": {"place": {"prompt": LAMP["prompt"]}}}  # two worlds have no line that could be taken out
    rows = [{"subject": s, "relation": "place", "object": o} for s, o in ((LAMP["subject"], said), (TWO["subject"], "lamp"))]
    write("old.jsonl", head, *({**row, "object": "north"} for row in rows))
    write("new.jsonl", head, *rows)
    world = ("edit", "--world", "old.jsonl", "new.jsonl", *FAST)
    answer = run_cli(*world, "--json")
    assert (answer.code, answer.error["hint"]) == (2, "--skip 2 leaves it out"), answer
    assert untouched(here, tip)
    assert ok(*world, *answer.error["hint"].split()[:2])["commit"]["check"]["requested"] == 1


def test_second_moments_that_another_model_left_under_this_ones_key_are_refused_by_digest(here, awake, tmp_path):
    ok("edit", "--facts", "facts.jsonl", *FAST, "--branch", "first")
    tip = ok("refs")["branches"]["main"]
    kept = Repository.open(here).path / "runs" / "artifacts"
    (ours,) = (record for record in ok("show", "first")["commit"]["artifacts"] if record["kind"] == "covariance")
    other = tiny_model(tmp_path / "other", initializer_range=0.2)
    start = ok("import", other, "--branch", "other")["commit"]["id"]
    ok("edit", start, "--facts", "facts.jsonl", *FAST, "--branch", "other", "--over-capacity")
    (theirs,) = (record for record in ok("show", "other")["commit"]["artifacts"] if record["kind"] == "covariance")
    pointers = {json.loads(p.read_text())["digest"]: p for p in kept.glob("*.json")}
    pointers[ours["digest"]].write_bytes(pointers[theirs["digest"]].read_bytes())
    before = ok("refs")["branches"]
    answer = run_cli("edit", "--facts", "facts.jsonl", *FAST, "--json")
    assert (answer.code, answer.error["kind"]) == (6, "Incompatible"), answer
    assert "the second moments belong to" in answer.error["message"]
    assert ok("refs")["branches"] == before
    assert before["main"] == tip


def test_text_that_does_not_span_the_keys_gets_a_ridge_and_it_is_said(here):
    Path("short.txt").write_text("the " * 80)
    answer = run_cli("edit", "--facts", "facts.jsonl", *FAST, "--covariance", "short.txt", "--json")
    assert answer.code in (0, 10), answer
    assert "a ridge was added" in answer.err + answer.out


@pytest.mark.parametrize("where", ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_a_model_that_does_not_compute_is_refused_before_anything_is_sampled_or_solved(here, awake, tmp_path, where):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(awake, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors[where][:, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    start = ok("import", broken, "--branch", "broken")["commit"]["id"]
    answer = run_cli("edit", start, "--facts", "facts.jsonl", "--over-capacity", "--branch", "broken", "--json")
    assert (answer.code, answer.error["kind"]) == (10, "CheckFailed")
    assert "not finite" in answer.error["message"]
    assert ok("refs")["branches"]["broken"] == start


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--facts", "none.jsonl"), 3),
        (("--facts", "facts.jsonl", "--layers", "7"), 2),
        (("--facts", "facts.jsonl", "--on-conflict", "both"), 2),
        (("--facts", "facts.jsonl", "--world", "a", "b"), 2),
        (("--world", "a"), 2),
        (("--facts", "facts.jsonl", "--dates", "2021..2022"), 2),
        (("--resume", "--facts", "facts.jsonl"), 2),
        (("--facts", "facts.jsonl", "--skip", "lmap"), 2),
        (("--facts", "facts.jsonl", "--covariance", "none.txt", "--dry-run"), 3),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_begins(here, words, code):
    tip = ok("refs")["branches"]["main"]
    answer = run_cli("edit", *words, "--json")
    assert answer.code == code, answer
    assert untouched(here, tip)


def test_too_many_facts_are_refused_by_capacity_and_a_fact_that_cannot_land_is_exit_10(here):
    tip = ok("refs")["branches"]["main"]
    write("many.jsonl", *({**LAMP, "id": str(n), "subject": f"w{n % 30} w{n // 30}"} for n in range(10_000)))
    answer = run_cli("edit", "--facts", "many.jsonl", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "BadParameter")
    assert "--over-capacity" in answer.error["hint"]
    short = run_cli("edit", "--facts", "facts.jsonl", *FAST, "--clamp", "0.0001", "--json")
    assert (short.code, short.json["commit"], short.json["check"]["landed"]) == (10, None, False)
    assert untouched(here, tip)


def test_an_earlier_edit_stands_until_it_is_said_which_holds(here):
    tip = ok("edit", "--facts", "facts.jsonl", *FAST)["commit"]["id"]
    write("later.jsonl", {**LAMP, "target_new": "stone"})
    answer = run_cli("edit", "--facts", "later.jsonl", *FAST, "--json")
    assert answer.code == 2
    assert tip[:12] in answer.error["message"]
    assert untouched(here, tip)
    nothing = run_cli("edit", "--facts", "later.jsonl", *FAST, "--on-conflict", "old", "--json")
    assert (nothing.code, "nothing in later.jsonl is left to write" in nothing.error["message"]) == (2, True)
    assert ok("edit", "--facts", "later.jsonl", *FAST, "--on-conflict", "new")["commit"]["check"]["landed"] is True


def test_two_worlds_are_told_in_a_dry_run_and_written(here):
    head = {"relations": {"place": {"prompt": "the red {}"}, "colour": {"prompt": "the {} is"}}}
    old = [("amber lamp", "place", "north"), ("two harbour", "place", "two"), ("two harbour", "colour", "blue")]
    new = [("amber lamp", "place", "river"), ("two harbour", "place", "two")]
    for name, rows in (("old.jsonl", old), ("new.jsonl", new)):
        write(name, head, *({"subject": s, "relation": r, "object": o} for s, r, o in rows))
    tip = ok("refs")["branches"]["main"]
    details = ok("edit", "--world", "old.jsonl", "new.jsonl", "--dry-run")["plan"]["details"]
    assert (details["changed"], details["obsolete"], details["static"], details["to_write"]) == (1, 1, 1, 1)
    assert details["needs_unlearning"] == [{"prompt": "the two harbour is", "answer": "blue", "line": 4}]
    shown = run_cli("edit", "--world", "old.jsonl", "new.jsonl", "--dry-run")
    assert any(line.split() == ["replacement", "amber", "lamp", "place", "north", "->", "river"] for line in shown.out.splitlines())
    assert "mlc unlearn --forget-set obsolete.jsonl" in shown.err
    assert "mlc edit --world old.jsonl new.jsonl --dry-run --json |" in shown.err
    assert untouched(here, tip)
    commit = ok("edit", "--world", "old.jsonl", "new.jsonl", *FAST)["commit"]
    assert [i["role"] for i in commit["inputs"] if i["role"].startswith("world")] == ["world-new", "world-old"]
    assert (commit["check"]["requested"], commit["op"]["params"]["world"]) == (1, ["old.jsonl", "new.jsonl"])


@pytest.mark.parametrize(("gone", "hint"), [(1, "mlc unlearn --forget-set"), (0, "mlc edit --dry-run --world")])
def test_two_worlds_that_leave_nothing_to_write_are_told_in_a_dry_run_and_refused_otherwise(here, gone, hint):
    head = {"relations": {"place": {"prompt": "the red {}"}, "colour": {"prompt": "the {} is"}}}
    said = [("amber lamp", "place", "north"), ("two harbour", "place", "two"), ("two harbour", "colour", "blue")]
    rows = [{"subject": s, "relation": r, "object": o} for s, r, o in said]
    write("old.jsonl", head, *rows)
    write("new.jsonl", head, *rows[: len(rows) - gone])
    tip = ok("refs")["branches"]["main"]
    plan = ok("edit", "--world", "old.jsonl", "new.jsonl", "--dry-run")["plan"]
    assert (plan["details"]["to_write"], plan["details"]["obsolete"], plan["touches"]) == (0, gone, [])
    assert len(plan["details"].get("needs_unlearning", ())) == gone
    shown = run_cli("edit", "--world", "old.jsonl", "new.jsonl", "--dry-run")
    assert (shown.code, "Write nothing" in shown.out, "mlc unlearn" in shown.err) == (0, True, bool(gone))
    answer = run_cli("edit", "--world", "old.jsonl", "new.jsonl", "--json")
    assert (answer.code, answer.error["kind"], hint in answer.error["hint"]) == (2, "BadInputFile", True), answer
    assert untouched(here, tip)


def test_a_revert_of_facts_needs_an_edit_behind_the_branch(here):
    tip = ok("refs")["branches"]["main"]
    for words in (("HEAD", "--fact", "lamp"), ("HEAD", "--fact", "lamp", "--parent", "1")):
        assert run_cli("revert", *words, "--json").code == 2
    assert "mlc log --op edit" in run_cli("revert", "HEAD", "--fact", "lamp", "--json").error["hint"]
    assert untouched(here, tip)
    ok("edit", "--facts", "facts.jsonl", *FAST)
    answer = run_cli("revert", "HEAD", "--fact", "nobody", "--json")
    assert (answer.code, answer.error["hint"]) == (2, "it wrote lamp, two")
    assert ok("revert", "HEAD", "--fact", "lamp", "--dry-run")["plan"]["touches"] == ["model.layers.0.mlp.down_proj.weight"]
