"""Measuring: each suite once per snapshot, with the answers kept, and compared example by example."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mlc.ops.evaluate.suite import load_suite
from mlc.policies import lifecycle
from mlc.policies.facts import PARENT
from mlc.policies.measure import Bench, chance, gather, load_suites
from mlc.policies.outcome import Request
from mlc.registry.errors import BadInputFile, BadRecipe, Incompatible, InputNotFound
from mlc.tests.factories import facts_suite
from mlc.tests.policies.operations import Scale


def write_suite(folder, name: str, kind: str, rows: list[dict], more: str = ""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\nkind = "{kind}"\ndata = "{name}.jsonl"\n{more}')
    return path


ENDS = [("red", "blue"), ("one", "two"), ("near", "north"), ("south", "stone"), ("amber", "lamp"), ("opens", "sells")]
PAIRS = [
    {"id": f"p{i}", "good": f"the river is {good}", "bad": f"the river is {bad}", "topic": "ab"[i % 2]}
    for i, (good, bad) in enumerate(ENDS)
]


@pytest.fixture
def suites(repo, settings):
    """Three configured suites: cloze, pairs with slices, perplexity."""
    folder = repo.root / "suites"
    facts_suite(folder)
    write_suite(folder, "pairs", "pairs", PAIRS, 'slices = ["topic"]\n')
    (folder / "text.txt").write_text("the river is red and the stone is near the harbour " * 6)
    (folder / "text.toml").write_text('name = "text"\nkind = "perplexity"\ndata = "text.txt"\nseq_len = 16\n')
    settings('[eval]\nsuites = ["suites/*.toml"]')
    return [load_suite(path) for path in sorted(folder.glob("*.toml"))]


def test_a_version_is_measured_once_per_suite_and_again_when_the_data_changes(repo, root, suites):
    first = lifecycle.evaluate_rev(repo, "main", "facts", author="a")
    again = lifecycle.evaluate_rev(repo, "main", suites[0].path, author="a")
    assert (first.cached, again.cached) == (False, True)
    assert (again.id, again.metrics, again.n) == (first.id, first.metrics, 12)

    assert not lifecycle.evaluate_rev(repo, "main", "facts", limit=5, author="a").cached
    assert lifecycle.evaluate_rev(repo, "main", "facts", limit=5, author="a").n == 5
    data = repo.root / "suites" / "facts.jsonl"
    data.write_text(data.read_text().replace("f0", "g0"))
    assert not lifecycle.evaluate_rev(repo, "main", "facts", author="a").cached
    with pytest.raises(InputNotFound) as caught:
        lifecycle.evaluate_rev(repo, "main", "fact", author="a")
    assert caught.value.hint == "configured: facts, pairs, text"


def test_gathered_facts_agree_with_the_stored_answers(repo, root, suites):
    made = lifecycle.run(repo, Scale(factor=-30.0), author="a", config=_lenient(repo))
    bench = Bench(repo, Request.of(repo, author="a"))
    before, after = repo.commit(root).snapshot, made.commit.snapshot

    found = {s.name: s for s in gather(bench, suites, after, {PARENT: before}).suites}

    assert list(found) == ["facts", "pairs", "text"]
    rows_a, rows_b = ({a.example: a.correct for a in bench.answers(bench.measure(s, suites[1]))} for s in (before, after))
    pairs = found["pairs"].against[PARENT]
    assert pairs.flips.negative_flips == sum(rows_a[e] and not rows_b[e] for e in rows_a)
    assert pairs.flips.positive_flips == sum(rows_b[e] and not rows_a[e] for e in rows_a)
    assert pairs.flips.n == 6
    assert {name: report.n for name, report in pairs.slices.items()} == {"a": 3, "b": 3}
    assert found["pairs"].chance == 0.5
    assert found["text"].against[PARENT].flips is None
    assert found["text"].after["perplexity"] != found["text"].against[PARENT].before["perplexity"]


def test_the_commit_names_what_was_measured(repo, root, suites):
    outcome = lifecycle.run(repo, Scale(factor=1.01), author="a", config=_lenient(repo))
    commit = outcome.commit
    assert set(commit.metrics) == set(commit.evaluations) == {"facts", "pairs", "text"}
    assert commit.metrics["text"]["perplexity"] == pytest.approx(
        lifecycle.evaluate_rev(repo, "main", "text", author="a").metrics["perplexity"]
    )
    assert {r.name for r in commit.inputs if r.role == "suite"} == {"facts.toml", "pairs.toml", "text.toml"}


def test_a_perplexity_that_grows_past_its_rule_is_refused_by_the_built_in_policy(repo, root, suites):
    from mlc.registry.errors import GateRefused

    with pytest.raises(GateRefused, match=r"rule perplexity: perplexity of text went from .* over 1\.2 times"):
        lifecycle.run(repo, Scale(tensor="model.embed_tokens.weight", factor=8.0), author="a")
    assert repo.branches() == {"main": root}


def test_a_suite_that_the_model_cannot_answer_is_named(repo, root, suites):
    labels = write_suite(repo.root / "suites", "labels", "classify", [{"text": "the river", "label": 0}, {"text": "a stone", "label": 1}])
    with pytest.raises(Incompatible):
        lifecycle.evaluate_rev(repo, "main", labels, author="a")
    outcome = lifecycle.run(repo, Scale(factor=1.01), author="a", config=_lenient(repo))
    assert any(text.startswith("labels was not measured") for text in outcome.warnings)
    assert "labels" not in outcome.commit.metrics


def test_two_suites_of_one_name_and_a_broken_row_are_found_before_any_work(repo, tmp_path):
    one, two = write_suite(tmp_path / "a", "x", "pairs", PAIRS), write_suite(tmp_path / "b", "x", "pairs", PAIRS)
    with pytest.raises(BadRecipe, match="two suites are called 'x'"):
        load_suites([one, two])
    with pytest.raises(BadInputFile):
        load_suites([write_suite(tmp_path / "c", "y", "pairs", [{"good": "x"}])])


def test_what_guessing_gives_depends_on_the_kind(tmp_path):
    choice = [{"prompt": "x", "choices": ["a", "b"], "index": 0}, {"prompt": "x", "choices": ["a", "b", "c", "d"], "index": 1}]
    labels = [{"text": "x", "label": label} for label in (0, 0, 0, 1)]
    assert chance(load_suite(write_suite(tmp_path, "p", "pairs", PAIRS))) == 0.5
    assert chance(load_suite(write_suite(tmp_path, "c", "choice", choice))) == pytest.approx(0.375)
    assert chance(load_suite(write_suite(tmp_path, "l", "classify", labels))) == 0.75
    assert chance(load_suite(facts_suite(tmp_path))) == 0.0


def _lenient(repo):
    return dataclasses.replace(Request.of(repo, author="a").config, policy_files=())
