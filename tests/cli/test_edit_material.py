"""`mlc edit` on a small model that knows facts: a block that cannot carry them, more than it holds, and one of many taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlc.tests.benchmarks.edits import draw, write
from mlc.tests.cli.running import ok, run_cli

pytestmark = [pytest.mark.material, pytest.mark.slow]


@pytest.fixture(scope="module")
def here(material, tmp_path_factory) -> Path:
    """A registry with the model on main."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("edit") / "work"
    assert run_cli("init", root, "-q").code == 0
    ok("import", material / "models" / "facts-small", "-R", root)
    return root


@pytest.fixture
def edit(here, material, tmp_path):
    """Call `mlc edit` for so many facts, one about each subject."""
    text = material / "data" / "wikitext-2" / "valid.txt"

    def run(count: int, *words: str):
        facts = write(tmp_path / f"{count}.jsonl", draw("facts-small", count, 0, False))
        return run_cli("edit", "--facts", facts, "--covariance", text, *words, "-R", here, "--json")

    return run


def tip(root: Path) -> str:
    return ok("refs", "-R", root)["branches"]["main"]


@pytest.mark.parametrize(
    ("more", "reason"), [((), "layer 3 does not carry these facts"), (("--over-capacity",), "did not land in layers 3")]
)
def test_the_last_block_cannot_carry_facts_exit_10_and_nothing_is_committed(here, edit, more, reason):
    before = tip(here)
    answer = edit(10, "--layers", "3-3", "--steps", "8", *more)
    assert answer.code == 10, answer
    assert answer.json["commit"] is None
    assert reason in answer.error["message"]
    assert answer.error["hint"] == "--layers auto finds where this model keeps its facts"
    assert tip(here) == before


def test_two_hundred_facts_are_refused_with_a_sentence_about_capacity(here, edit):
    before = tip(here)
    answer = edit(200)
    assert (answer.code, answer.out, answer.error["kind"]) == (2, "", "BadParameter"), answer
    assert "200 subjects" in answer.error["message"]
    assert "hold" in answer.error["message"]
    assert answer.error["hint"].endswith("--over-capacity to try all the same")
    assert tip(here) == before


def test_one_of_many_facts_is_taken_back_the_others_stay_and_a_rollback_is_exact(here, edit):
    first = tip(here)
    written = edit(10, "--layers", "0")
    assert written.code == 0, written
    fact = draw("facts-small", 10, 0, False)[3]["id"]
    check = ok("revert", "HEAD", "--fact", fact, "-R", here)["commit"]["check"]
    assert check["restored"] >= 0.95
    assert check["efficacy"] >= check["efficacy_before"] - 0.005
    assert check["others"] == 9
    ok("rollback", first, "-R", here)
    snapshots = [ok("show", rev, "-R", here)["commit"]["snapshot"] for rev in ("HEAD", first)]
    assert snapshots[0] == snapshots[1]
