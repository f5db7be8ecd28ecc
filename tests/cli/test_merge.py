"""`mlc merge` and `mlc unmerge` through the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc.tests.cli.running import ok, run_cli
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import sibling


@pytest.fixture
def pair(lenient):
    """The history of the command line's tests, with a branch `side` that starts at its root; no suites, so that no model is run."""
    settings = lenient.root / "mlc.toml"
    settings.write_text(settings.read_text().replace('suites = ["suites/*.toml"]', "suites = []"))
    sibling(MemoryView.of(lenient.root / "model"), 1).save(Path("side"))
    ok("commit", "side", lenient.first, "--branch", "side")
    return lenient


def test_the_answer_is_a_commit_with_both_parents_and_it_can_be_taken_apart_again(pair):
    side = ok("refs")["branches"]["side"]
    made = ok("merge", "main", "side", "--weights", "0.7,0.3", "-m", "both")["commit"]
    assert made["parents"] == [pair.second, side]
    assert made["op"]["params"]["weights"] == [0.7, 0.3]
    assert set(made["check"]["parents"]) == {pair.second, side}
    assert made["delta"]["bytes_stored"] <= 4096
    answer = run_cli("unmerge", "main", "--remove", "side")
    assert answer.code == 0, answer
    assert f"is that of {pair.second[:12]}." in answer.out
    assert ok("show", "main")["commit"]["snapshot"] == ok("show", pair.second)["commit"]["snapshot"]


def test_what_cannot_be_merged_ends_with_the_code_of_its_kind(pair):
    for words, code, said in (
        (("main",), 2, "two versions"),
        (("main", "side", "--weights", "a,b"), 2, "not a list of numbers"),
        (("main", "side", "--method", "tiess"), 2, "did you mean ties"),
        (("main", "nowhere"), 3, "nowhere"),
        (("side", pair.refused, "--branch", "new"), 4, "was refused"),
        (("main", "side", "--config", "no.yml"), 2, "names the versions"),
    ):
        answer = run_cli("merge", *words, "--json")
        assert (answer.code, said in answer.err) == (code, True), (words, answer)
    assert run_cli("unmerge", "main", "--remove", "side").code == 2


def test_a_dry_run_says_what_would_be_touched_and_a_recipe_gives_options(pair):
    Path("merge.toml").write_text('ingredients = ["main", "side"]\nmethod = "ties"\ndensity = [0.5]\n')
    plan = ok("merge", "--recipe", "merge.toml", "--dry-run")["plan"]
    assert "by ties" in plan["summary"]
    assert ok("refs")["branches"]["main"] == pair.second


def test_a_greedy_soup_says_what_it_tried_and_every_parent_is_compared_with(lenient):
    sibling(MemoryView.of(lenient.root / "model"), 1).save(Path("side"))
    (lenient.root / "policies").joinpath("default.toml").write_text('[[rule]]\nid = "any"\nmetric = "delta.max_abs"\nmax = 100\n')
    side = ok("commit", "side", lenient.first, "--branch", "side")["commit"]["id"]
    made = ok("merge", "main", "side", "--method", "soup-greedy")["commit"]
    soup = made["check"]["soup"]
    assert soup["suite"] == "facts"
    assert [row["members"] for row in soup["tried"][:2]] == [["main"], ["side"]]
    assert made["op"]["params"]["weights"] == [float(one in soup["members"]) for one in (lenient.second, side)]
    assert made["op"]["params"]["method"] == "soup"
    told = made["check"]["parents"][side]["facts"]
    assert told["n"] == 12
    assert told["after"]["accuracy"] >= told["before"]["accuracy"]
    refused = run_cli("unmerge", "main", "--remove", "side", "--json")
    assert refused.code == 6
    assert "chosen anew" in refused.err
    assert "against each version that was merged:" in run_cli("merge", "main", "side", "--branch", "mean", "--weights", "0.9,0.1").out


def test_adapters_are_merged_as_adapters_and_one_comes_back(lenient, tmp_path):
    from mlc.tests.policies.test_adapter_merges import lora

    settings = lenient.root / "mlc.toml"
    settings.write_text(settings.read_text().replace('suites = ["suites/*.toml"]', "suites = []"))
    for seed, name in enumerate("ab"):
        ok("import", str(lora(lenient.root / "model", tmp_path / name, seed)), "--adapter-of", lenient.first, "--branch", name)
    (lenient.root / "policies").joinpath("default.toml").write_text('[[rule]]\nid = "any"\nmetric = "delta.max_abs"\nmax = 100\n')
    made = ok("merge", "a", "b", "--branch", "both", "--method", "rmm", "--set", "p=1")["commit"]
    assert made["check"]["rmm"]["exact"] is True
    assert run_cli("unmerge", "both").code == 2
    assert run_cli("unmerge", "a", "--only", "b").code == 2
    answer = run_cli("unmerge", "both", "--only", "b", "--branch", "again")
    assert answer.code == 0, answer
    assert "byte for byte" in answer.out
    assert run_cli("merge", "a", "b", "--method", "ties", "--branch", "no").code == 6


def test_checkpoints_are_averaged_by_an_exponential_mean_or_by_coefficients_that_a_suite_finds(lenient):
    (lenient.root / "policies").joinpath("default.toml").write_text('[[rule]]\nid = "any"\nmetric = "delta.max_abs"\nmax = 100\n')
    sibling(MemoryView.of(lenient.root / "model"), 1).save(Path("side"))
    ok("commit", "side", lenient.first, "--branch", "side")
    made = ok("merge", "main", "side", "--branch", "ema", "--method", "ema", "--set", "rate=0.25")["commit"]
    assert made["op"]["params"]["weights"] == [0.25, 0.75]
    assert made["check"]["average"]["coefficients"] == [0.25, 0.75]
    assert "belong to all" in run_cli("unmerge", "ema", "--remove", "side").err
    found = ok("merge", "main", "side", "--branch", "lcsc", "--method", "lcsc", "--set", "suite=facts", "--set", "budget=5")["commit"]
    told = found["check"]["average"]
    assert (told["tried"], told["suite"]) == (5, "facts")
    assert sum(told["coefficients"]) == 1
    assert found["op"]["params"]["weights"] == told["coefficients"]
    for words in (("ema", "--set", "rate=2"), ("ema", "--set", "suite=facts"), ("lcsc", "--set", "budget=0")):
        assert run_cli("merge", "main", "side", "--branch", "no", "--method", *words).code == 2


def test_a_sparse_soup_keeps_its_mask_and_refuses_another_one(pair):
    base = MemoryView.of(pair.root / "model")
    files = {f.path: base.file(f.path) or b"" for f in base.files()}
    mask = {n: (base.tensor(n).abs() > base.tensor(n).abs().median()).float() if base.tensor(n).dim() > 1 else 1.0 for n in base.names()}
    for seed, name in enumerate(("s1", "s2", "s3"), 1):
        moved = sibling(base, seed)
        MemoryView({n: moved.tensor(n) * mask[n] for n in base.names()}, files).save(Path(name))
        ok("commit", name, pair.first, "--branch", name)
    ok("merge", "s1", "s2", "s3", "--method", "sparse-soup", "--branch", "soup")
    ok("export", "soup", "out")
    found, one = MemoryView.of(Path("out")), MemoryView.of(Path("s1"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert (found.tensor(name) == 0).equal(one.tensor(name) == 0)
    assert not found.tensor(name).equal(one.tensor(name))
    other = run_cli("merge", "s1", "side", "--method", "sparse-soup", "--branch", "no", "--json")
    assert (other.code, "would be less sparse" in other.err) == (10, True), other
    assert "no" not in ok("refs")["branches"]
    ok("merge", "s1", "side", "--method", "sparse-soup", "--set", "union=true", "--branch", "union")
