"""`mlc align` and `mlc update --compat-with` through the program: what they answer, and what they refuse with which exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mlc.ops.update.train import Update
from mlc.policies import lifecycle
from mlc.registry.repository import Repository
from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import WORDS
from mlc.tests.ops.encoders import tiny_encoder

FAST = ("--steps", "3", "--batch", "4", "--lr", "0.001")


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def ready(lenient):
    """A registry without suites and rules, and anchors beside it, some of which the first version has right."""
    settings = lenient.root / "mlc.toml"
    settings.write_text(settings.read_text().replace('suites = ["suites/*.toml"]', "suites = []"))
    write("anchors.jsonl", [{"prompt": f"the {a} is", "answer": b} for a in WORDS[:3] for b in WORDS])
    return lenient


def test_the_answer_is_a_commit_on_the_new_versions_branch(ready):
    answer = run_cli("align", "main", "--to", "main~1", "--data", "anchors.jsonl", *FAST, "-m", "old answers", "--json")
    assert answer.code in (0, 10), answer
    if answer.code == 10:  # three steps may lose as well as win; then nothing is committed
        assert answer.json["commit"] is None
        assert ok("refs")["branches"]["main"] == ready.second
        return
    commit = answer.json["commit"]
    assert commit["op"]["params"]["to"] == ready.first
    assert commit["parents"] == [ready.second]
    assert {"nfr_before", "nfr_after", "agreement", "compat_teacher"} <= set(commit["check"])
    assert "compat-teacher" in {artifact["kind"] for artifact in commit["artifacts"]}
    assert ok("refs")["branches"]["main"] == commit["id"]


def test_an_update_beside_an_older_version_records_what_was_kept_and_can_be_replayed(ready):
    words = ("--data", "new.txt", "--seq-len", "16", "--compat-with", "main~1", "--compat-data", "anchors.jsonl:0.5", *FAST)
    commit = ok("update", *words)["commit"]
    assert commit["op"]["params"]["compat_with"] == ready.first
    assert commit["check"]["compat"]["examples"] == 66
    assert {i["role"] for i in commit["inputs"]} >= {"data", "compat", "commit"}
    from mlc.policies import lifecycle

    _, same = lifecycle.replay(Repository.open(ready.root), commit["id"])
    assert same


def test_a_weight_that_an_older_version_recorded_without_effect_is_replayed_and_refused_where_it_is_typed(ready):
    plain = Update(data="new.txt", steps=2, seq_len=16, batch=2)
    repo = Repository.open(Path())
    outcome = lifecycle.run(repo, dataclasses.replace(plain, compat_beta=2.0), ref="main", author="Ada")
    assert outcome.commit.op.params["compat_beta"] == 2.0
    assert outcome.commit.snapshot == lifecycle.run(repo, plain, ref="main~1", branch="plain", author="Ada").commit.snapshot
    assert lifecycle.replay(repo, outcome.commit_id)[1]
    Path("recipe.toml").write_text('op = "update"\ndata = "new.txt"\ncompat_beta = 2.0\n')
    for words in (("update", "--recipe", "recipe.toml"), ("recipe", "validate", "recipe.toml")):
        answer = run_cli(*words, "--json")
        assert (answer.code, answer.error["message"]) == (2, "--compat-beta is given without --compat-with.")


def test_a_dry_run_names_the_anchors_and_writes_nothing(ready):
    answer = ok("align", "main", "--to", "main~1", "--data", "anchors.jsonl", "--dry-run")
    assert "66 answers" in json.dumps(answer)
    assert ok("refs")["branches"]["main"] == ready.second


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("align", "main", "--to", "nobody", "--data", "anchors.jsonl"), 3, "nobody"),
        (("align", "main", "--to", "main~1", "--data", "missing.jsonl"), 3, "missing.jsonl"),
        (("align", "main", "--to", "main~1", "--data", "empty.jsonl"), 2, "empty"),
        (("align", "main", "--to", "main~1", "--data", "wrong.jsonl"), 2, "there is nothing to keep"),
        (("align", "main", "--to", "main~1"), 2, "--data"),
        (("align", "main", "--to", "main", "--data", "anchors.jsonl", "--method", "muscle-new"), 2, "two teachers"),
        (("update", "--data", "new.txt", "--compat-with", "nobody", "--compat-data", "anchors.jsonl"), 3, "nobody"),
        (("update", "--data", "new.txt", "--compat-with", "main~1"), 2, "--compat-data"),
        (("update", "--data", "new.txt", "--compat-beta", "2"), 2, "--compat-beta is given without --compat-with"),
        (("align", "main", "--to", "main~1", "--data", "anchors.jsonl", "--text", "old.txt:2"), 2, "--text 'old.txt:2' is not FILE:RATIO"),
        (("align", "main", "--to", "encoder", "--data", "anchors.jsonl"), 6, "not on a BertModel"),
        (("update", "--data", "new.txt", "--compat-with", "main~1", "--compat-data", "empty.jsonl"), 2, "empty"),
        (("align", "main", "--to", "foreign", "--data", "anchors.jsonl"), 6, "another vocabulary"),
        (("update", "--data", "new.txt", "--seq-len", "16", "--compat-with", "foreign", "--compat-data", "anchors.jsonl"), 6, "vocabulary"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_moves(ready, words, code, said):
    Path("empty.jsonl").write_text("")
    write("wrong.jsonl", [{"prompt": "the river is", "answer": "w3 w4 w5 w6 w7"}])
    if "foreign" in words:
        foreign()
    if "encoder" in words:
        ok("import", tiny_encoder(Path("encoder")), "--branch", "encoder")
    answer = run_cli(*words, "--steps", "2", "--json")
    assert answer.code == code, answer
    assert said in answer.error["message"]
    assert answer.error["hint"]
    assert ok("refs")["branches"]["main"] == ready.second


def foreign() -> None:
    """A version whose tokenizer knows other words, on a branch of its own."""
    place = Path("foreign")
    ok("export", "main~1", place)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {(f"{text}q" if text in WORDS else text): i for text, i in vocabulary.items()}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    ok("import", place, "--branch", "foreign")
