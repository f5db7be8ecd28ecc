"""`mlc impact` through the program: what it answers, in which words, and with which exit code."""

from __future__ import annotations

import json

import pytest

from mlc.registry.ids import blob_digest
from mlc.tests.cli.conftest import TEXT
from mlc.tests.cli.running import ok, run_cli


def test_the_update_that_read_a_file_is_found_by_file_and_by_digest(work):
    ok("tag", "v2", "main")
    ok("alias", "champion", "main")
    answer = ok("impact", "--data", "new.txt")
    assert answer["data"]["name"] == "new.txt"
    assert answer["data"]["records"] == 1  # twelve equal lines
    # the refused candidate read it as well: it is a version, though no name stands on it
    assert [(c["id"], c["op"], c["state"], c["refs"]) for c in answer["commits"]] == [
        (work.second, "update", "carries", ["aliases/champion", "heads/main", "tags/v2"]),
        (work.refused, "update", "carries", []),
    ]
    assert answer["commits"][0]["why"] == "read new.txt as its data"
    here = {"commit": work.second, "state": "carries"}
    assert answer["refs"] == {"branches": {"main": here}, "tags": {"v2": here}, "aliases": {"champion": here}}
    assert answer["carriers"] == 2
    digest = blob_digest((work.root / "new.txt").read_bytes())
    for words in (digest, digest[:8], f"blake3:{digest}"):
        assert ok("impact", "--data", words)["commits"] == answer["commits"]


def test_one_record_in_another_file_finds_it_too(work):
    (work.root / "request.jsonl").write_text(json.dumps({"text": TEXT.strip()}) + "\n" + json.dumps({"text": "unheard of"}) + "\n")
    answer = ok("impact", "--data", "request.jsonl")
    assert {c["why"] for c in answer["commits"]} == {"its corpus holds 1 of 2 records"}
    assert [c["records"] for c in answer["commits"]] == [1, 1]


def test_people_get_a_table_the_names_and_the_next_command(work):
    answer = run_cli("impact", "--data", "new.txt")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "2 versions still carry new.txt (1 record)."
    assert "update (refused)" in answer.out
    assert "Names that stand on a version with the data: main." in answer.out
    assert "mlc unlearn --forget-set new.txt" in answer.err


def test_a_file_that_nobody_read_is_an_empty_answer_and_a_digest_that_nobody_knows_is_not_found(work):
    (work.root / "other.jsonl").write_text('{"text": "unheard of"}\n')
    assert (ok("impact", "--data", "other.jsonl")["commits"], ok("impact", "--data", "other.jsonl")["carriers"]) == ([], 0)
    assert "Nothing recorded here read other.jsonl (1 record)." in run_cli("impact", "--data", "other.jsonl").out
    for words in ("00000000", "nowhere.jsonl"):
        answer = run_cli("impact", "--data", words, "--json")
        assert (answer.code, answer.out) == (3, "")
        assert answer.error["hint"]


@pytest.mark.parametrize(("text", "line"), [('{"text": "a"}\n{"secret words"\n', "line 2"), ('{"secret words": 1}\n', "line 1")])
def test_a_bad_file_is_exit_2_with_its_line_and_not_its_text(work, text, line):
    (work.root / "bad.jsonl").write_text(text)
    answer = run_cli("impact", "--data", "bad.jsonl")
    assert answer.code == 2
    assert line in answer.err
    assert "secret" not in answer.err


def test_without_data_it_says_what_is_missing(work):
    answer = run_cli("impact", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "UsageError")


def test_the_doctor_counts_keys_and_sees_one_that_others_may_read(work):
    def said():
        return next(check for check in run_cli("doctor", "--json").json["checks"] if check["name"] == "keys")

    assert (said()["ok"], said()["detail"].split(":")[0]) == (True, "1 key in .mlc/keys")
    key = work.root / ".mlc" / "keys" / "registry"
    key.chmod(0o644)
    assert not said()["ok"]
    assert said()["hint"] == f"chmod 600 {key}"
