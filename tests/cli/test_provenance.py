"""`mlc provenance` through the program, the data policies of `mlc update`, and what is refused."""

from __future__ import annotations

import random
import shutil

import pytest

from mlc.tests.cli.conftest import lay
from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import WORDS

TRAIN = ("--steps", "60", "--seq-len", "12", "--batch", "4", "--lr", "0.02", "--decay", "constant", "--clip", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A registry with an update on words without an order; not to be changed."""
    root = lay(tmp_path_factory.mktemp("trained") / "work")
    (root / "mlc.toml").write_text((root / "mlc.toml").read_text().replace('suites = ["suites/*.toml"]', "suites = []"))
    generator = random.Random(3)
    for name in ("a", "b"):
        (root / f"{name}.txt").write_text(" ".join(generator.choice(WORDS) for _ in range(3000)))
    ok("import", root / "model", "-R", root)
    ok("tag", "base", "main", "-R", root)
    ok("update", "--data", root / "a.txt", *TRAIN, "-R", root)
    return root


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    root = tmp_path / "work"
    shutil.copytree(trained, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.setenv("MLC_AUTHOR", "Grace <grace@example.org>")
    return root


def test_the_answer_says_rho_and_both_p_values(here):
    made = ok("show", "main")["commit"]
    answer = ok("provenance", "main", "main", "--data", "a.txt", "--permutations", "199")
    assert (answer["a"], answer["b"], answer["reference"]) == (made["id"], made["id"], made["parents"][0])
    assert (answer["rows"], answer["steps"], answer["times_seen"], answer["permutations"]) == (240, 60, 1, 199)
    assert answer["stream"] == made["check"]["stream"]["digest"]
    assert answer["rho"] < 0
    assert answer["p"] == pytest.approx(answer["p_permutation"], abs=0.05)
    assert sum(part["rows"] for part in answer["course"]) == 240
    assert answer["descends"] is (answer["p"] < 1e-4)


def test_a_version_that_never_saw_the_run_does_not_descend_from_it(here):
    answer = ok("provenance", "main", "base", "--data", "a.txt", "--permutations", "99")
    assert (answer["rho"], answer["p"], answer["descends"]) == (0.0, 1.0, False)
    said = run_cli("provenance", "main", "base", "--data", "a.txt", "--permutations", "99", "--exit-code")
    assert said.code == 5
    assert "does not show the order of" in said.out
    assert "steps" in said.out


def test_what_cannot_be_tested_is_refused(here):
    (here / "c.txt").write_text("the river is red\n" * 50)

    def refused(*words):
        answer = run_cli("provenance", *words, "--json")
        assert answer.out == ""
        return answer.code, answer.error["message"]

    assert refused("base", "main", "--data", "a.txt") == (2, refused("base", "main", "--data", "a.txt")[1])
    assert "is no update: it was made by import" in refused("base", "main", "--data", "a.txt")[1]
    code, said = refused("main", "main", "--data", "c.txt")
    assert (code, "was not read by that run" in said) == (2, True)
    assert refused("main", "main", "--data", "none.txt")[0] == 3
    assert refused("main", "nosuch", "--data", "a.txt")[0] == 3
    assert refused("main", "main", "--data", "a.txt", "--alpha", "2")[0] == 2
    assert refused("main", "main", "--data", "a.txt", "--limit", "5")[0] == 2


def test_two_corpora_are_mixed_and_weights_are_learned_from_the_record(here):
    short = ("--steps", "8", "--seq-len", "12", "--batch", "4", "--lr", "0.02")
    first = ok("update", "base", "--data", "a.txt", "--mix", "b.txt:3", *short, "--branch", "one")["commit"]
    assert first["check"]["stream"]["windows"][0]["counts"] == [8, 24]
    learned = ok("update", "base", "--data", "a.txt", "--mix", "b.txt", "--mix-policy", "learned", *short, "--branch", "two")["commit"]
    assert learned["op"]["params"]["mix_from"] == [first["id"]]
    assert learned["check"]["stream"]["windows"][0]["counts"] == [8, 24]
    answer = run_cli("update", "base", "--data", "b.txt", "--mix", "new.txt", "--mix-policy", "learned", *short, "--branch", "x", "--json")
    assert (answer.code, "nothing to learn" in answer.error["message"]) == (2, True)
    turning = ok("update", "base", "--data", "a.txt", "--mix", "b.txt", "--mix-policy", "skillit", *short, "--branch", "three")["commit"]
    assert len(turning["check"]["stream"]["windows"]) > 2
