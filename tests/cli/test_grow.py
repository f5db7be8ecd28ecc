"""Growing through the program: the picture of a dry run, what the commit shows, taking blocks out, and input that does not fit."""

from __future__ import annotations

import json
import shutil

import pytest

from mlc.tests.cli.conftest import TEXT, lay
from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import WORDS, tiny_model

TRAIN = ("--steps", "6", "--seq-len", "12", "--batch", "4", "--lr", "0.01")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A registry with a model of four blocks; not to be changed."""
    root = lay(tmp_path_factory.mktemp("deep") / "work")
    (root / "mlc.toml").write_text((root / "mlc.toml").read_text().replace('suites = ["suites/*.toml"]', "suites = []"))
    shutil.rmtree(root / "model")
    tiny_model(root / "model", layers=4)
    (root / "pattern.txt").write_text(" ".join(WORDS[i * 7 % len(WORDS)] for i in range(600)))
    ok("import", root / "model", "-R", root)
    return root


@pytest.fixture
def here(deep, tmp_path, monkeypatch):
    root = tmp_path / "work"
    shutil.copytree(deep, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.setenv("MLC_AUTHOR", "Grace <grace@example.org>")
    return root


def files(root):
    return sorted(p for p in (root / ".mlc").rglob("*") if p.is_file())


# --- the picture -----------------------------------------------------------------------------------------


def test_a_dry_run_draws_every_block_and_writes_nothing(here):
    before = files(here)
    words = ("update", "--data", "pattern.txt", *TRAIN, "--where", "importance", "--dry-run")
    answer = ok(*words)
    details = answer["plan"]["details"]
    assert [row["plan"] for row in details["blocks"]].count("new") == 1
    assert len(details["blocks"]) == 5
    assert [row["ranked"] for row in details["blocks"] if row["plan"] != "new"] == [False, True, True, False]
    assert details["importance"]["old_text"] == "self"
    assert details["duplicates"]["dropped"] == 0
    said = run_cli(*words)
    assert said.code == 0
    assert [word in said.out for word in ("new data", "old data", "difference", "█", "(not ranked)", "Nothing was written.")] == [True] * 6
    assert "that the model wrote" in said.out
    assert "blocks " not in said.out.split("Train ")[1]  # the table is drawn once, not told again below
    assert files(here) == before


def test_the_run_does_what_its_dry_run_drew_and_show_draws_it_again(here):
    words = ("update", "--data", "pattern.txt", *TRAIN, "--expand", "1", "--where", "importance", "--replay", "new.txt:0.25")
    drawn = ok(*words, "--dry-run")["plan"]["details"]
    made = ok(*words)["commit"]
    assert made["check"]["blocks"] == drawn["blocks"]
    assert made["check"]["importance"] == drawn["importance"] == {**drawn["importance"], "old_text": "new.txt"}
    page = run_cli("show").out
    assert "blocks   block  from  heat" in page
    assert page.count("frozen") == 4 + 1  # four blocks, and the option --source


def test_trials_are_told_by_the_run_and_drawn_again_by_show(here):
    train = ("--steps", "80", "--seq-len", "16", "--batch", "32", "--lr", "0.003", "--auto-keep", "0.5")
    said = run_cli("update", "--data", "pattern.txt", *train, "--auto")
    assert said.code == 0
    assert [word in said.out for word in ("trial", "learnt", "spu 30%", "chosen", "at least 50%")] == [True] * 5
    page = run_cli("show").out
    assert "trials     trial" in page
    assert "check    auto" not in page
    check = ok("show")["commit"]["check"]
    assert check["auto"]["keep"] == 0.5
    assert check["auto"]["choice"] in page


def test_an_update_without_a_picture_is_shown_as_before(here):
    ok("update", "--data", "pattern.txt", *TRAIN)
    assert "blocks   " not in run_cli("show").out


def test_tuned_blocks_are_named_without_angles_where_none_were_measured(here):
    ok("update", "--data", "pattern.txt", *TRAIN, "--expand", "1", "--where", "1", "--source", "tuned")
    page = run_cli("show").out
    assert "blocks     0  from 0    frozen" in page
    assert "  1  from 1    tuned" in page
    assert "  2  from 1    new" in page


def test_copies_in_the_data_are_warned_of(here):
    (here / "twice.jsonl").write_text("".join(json.dumps({"text": f"{TEXT} {n % 5}"}) + "\n" for n in range(10)))
    answer = ok("update", "--data", "twice.jsonl", *TRAIN, "--dry-run")
    assert answer["plan"]["details"]["duplicates"]["exact"] == 5
    assert any("copies" in warning for warning in answer["warnings"])
    assert ok("update", "--data", "twice.jsonl", *TRAIN, "--dedup", "exact", "--dry-run")["plan"]["details"]["duplicates"]["dropped"] == 5


# --- retract ---------------------------------------------------------------------------------------------


def test_retract_proves_that_the_parent_stands_again(here):
    root = ok("show", "main")["commit"]
    grown = ok("update", "--data", "pattern.txt", *TRAIN, "--expand", "2")["commit"]
    assert ok("retract", "main", "--dry-run")["plan"]["details"] == {"blocks_removed": grown["check"]["insertion"]["positions"]}
    answer = ok("retract", grown["short"], "-m", "not these")
    assert answer["proved"] is True
    assert answer["commit"]["snapshot"] == root["snapshot"]
    assert answer["commit"]["parents"] == [grown["id"]]
    assert answer["commit"]["branch"] == "main"
    ok("export", "main", "out")
    for path in (here / "model").iterdir():
        assert (here / "out" / path.name).read_bytes() == path.read_bytes()
    assert ok("fsck")["clean"] is True


def test_retract_says_the_proof_to_people(here):
    ok("update", "--data", "pattern.txt", *TRAIN, "--expand", "1")
    said = run_cli("retract", "HEAD")
    assert said.code == 0
    assert "is that of" in said.out


def test_retract_refuses_with_its_exit_code_and_one_sentence(here):
    def refused(*words):
        answer = run_cli("retract", *words, "--json")
        assert answer.out == ""
        return answer.code, answer.error["message"] + " " + (answer.error["hint"] or "")

    code, said = refused("main")
    assert (code, "added no blocks: it was made by import" in said) == (2, True)
    assert refused("nosuch")[0] == 3
    grown = ok("update", "--data", "pattern.txt", *TRAIN, "--expand", "1")["commit"]
    ok("tag", "grown", "main")
    code, said = refused("grown")
    assert (code, "--branch NAME" in said) == (2, True)
    ok("update", "--data", "pattern.txt", *TRAIN)
    code, said = refused(grown["short"])
    assert (code, "later commits changed" in said) == (6, True)
    assert refused("grown", "--branch", "main")[0] == 9
    assert ok("retract", "grown", "--branch", "beside")["proved"] is True
    ok("update", "beside", "--data", "pattern.txt", *TRAIN, "--tune", "1", "--expand", "1")
    code, said = refused("beside")
    assert (code, "trained old blocks as well" in said) == (6, True)


# --- input that does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--seq-len", "65"), 2, "longer than the model's context of 64"),
        (("--data", "few.txt"), 2, "fewer than one batch"),
        (("--expand", "3", "--where", "importance"), 2, "importance can place at most 2"),
        (("--tune", "3"), 2, "importance ranks 2 of the 4"),
        (("--expand", "5", "--where", "stack-side"), 2, "at most the 4 blocks"),
        (("--expand", "1", "--where", "7"), 2, "blocks 0 to 3"),
        (("--expand", "1", "--init", "ones"), 2, "--init is one of"),
        (("--init", "copy"), 2, "there are none"),
        (("--dedup", "fuzzy"), 2, "--dedup is one of"),
        (("--tune", "-1"), 2, "--tune"),
    ],
)
def test_input_that_does_not_fit_is_refused(here, words, code, said):
    (here / "few.txt").write_text("the river\n")
    data = () if "--data" in words else ("--data", "pattern.txt")
    lengths = () if "--seq-len" in words else ("--seq-len", "12")
    answer = run_cli("update", *data, "--steps", "2", *lengths, *words, "--json")
    assert answer.code == code, answer
    assert said in answer.error["message"]
    assert answer.out == ""
    assert len(ok("log")["commits"]) == 1


@pytest.mark.parametrize("words", [("--seq-len", "65"), ("--data", "few.txt", "--seq-len", "12"), ("--tune", "3")])
def test_a_dry_run_refuses_it_as_well(here, words):
    (here / "few.txt").write_text("the river\n")
    answer = run_cli("update", "--data", "pattern.txt", *words, "--dry-run", "--json")
    assert (answer.code, answer.out) == (2, "")


def test_the_tokenizer_of_another_model_is_refused(here):
    tokenizer = here / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"w36": 62', '"w36": 9062'))
    ok("import", "model", "--branch", "foreign")
    for dry in ((), ("--dry-run",)):
        answer = run_cli("update", "foreign", "--data", "pattern.txt", *TRAIN, *dry, "--json")
        assert (answer.code, answer.error["kind"]) == (6, "VocabularyMismatch")
        assert "9062" in answer.error["message"]


def test_scaling_by_the_block_number_allows_no_new_blocks(here):
    ok("import", tiny_model(here / "scaled", "gpt2", layers=3, scale_attn_by_inverse_layer_idx=True), "--branch", "scaled")
    for dry in ((), ("--dry-run",)):
        answer = run_cli("update", "scaled", "--data", "pattern.txt", *TRAIN, "--expand", "1", *dry, "--json")
        assert (answer.code, answer.error["kind"]) == (6, "Incompatible")
        assert "depends on the number of the block" in answer.error["message"]
    assert ok("update", "scaled", "--data", "pattern.txt", *TRAIN, "--tune", "1")["commit"]["check"]["expansion"]["new_tensors"] == 0


def test_a_loss_that_is_no_number_stops_at_the_last_good_step_and_can_be_resumed(here):
    words = ("--data", "pattern.txt", *TRAIN[:-2], "--lr", "1e30", "--clip", "0")
    answer = run_cli("update", *words, "--json")
    assert answer.code == 10
    assert answer.json["commit"] is None
    assert "no longer a number at step" in answer.error["message"]
    assert len(ok("log")["commits"]) == 1
    waiting = ok("runs")["runs"]
    assert [run["op"] for run in waiting] == ["update"]
    assert waiting[0]["step"] >= 1
    again = run_cli("update", "--resume", "--json")
    assert again.code == 10
    assert len(ok("log")["commits"]) == 1
