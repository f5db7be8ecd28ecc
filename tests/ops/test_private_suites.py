"""Private suites: their texts are in no object, no row and no file of the registry, and versions can be compared all the same."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mlc.ops.evaluate.predictions import Prediction, from_arrow, outcomes, veiled
from mlc.ops.evaluate.suite import load_suite
from mlc.policies import lifecycle
from mlc.policies.facts import PARENT
from mlc.policies.measure import Bench, gather, key_scope
from mlc.policies.outcome import Request
from mlc.registry.errors import BadInputFile, Incompatible
from mlc.tests.factories import tiny_model
from mlc.tests.ops.suites import suite
from mlc.tests.policies.operations import Scale

torch.set_num_threads(1)

# Phrases that no other part of the registry holds: the tokenizer's file has their words, but never in this order.
SECRETS = ["amber lamp speaks", "harbour sells stone", "river opens north", "person-7f", "topic-9c"]
ROWS = {
    "cloze": [
        {"id": "person-7f", "prompt": "the amber lamp speaks", "answer": "harbour sells stone", "topic": "topic-9c"},
        {"id": "person-7f-b", "prompt": "one", "answer": "river opens north", "topic": "topic-9c"},
    ],
    "generate": [{"prompt": "the amber lamp speaks", "reference": "harbour sells stone", "topic": "topic-9c"}],
    "truth": [
        {"id": f"person-7f-{i}", "prompt": f"{start} amber lamp speaks", "answer": "harbour sells stone",
         "perturbed_answer": ["river opens north", "two"], "topic": "topic-9c"}
        for i, start in enumerate(("the", "a", "one"))
    ],
    "membership": [
        {"text": "amber lamp speaks", "member": True, "topic": "topic-9c"},
        {"prompt": "harbour sells stone", "answer": "river opens north", "member": False, "topic": "topic-9c"},
    ],
    "pairs": [{"id": "person-7f", "good": "amber lamp speaks", "bad": "harbour sells stone", "topic": "topic-9c"}],
    "perplexity": [{"id": "person-7f", "text": "amber lamp speaks harbour sells stone", "topic": "topic-9c"}],
    "choice": [
        {"id": "person-7f", "prompt": "amber lamp speaks", "choices": ["harbour sells stone", "river opens north"], "index": 0,
         "topic": "topic-9c"}
    ],
}  # fmt: skip
MORE = {"truth": "rouge = true\nmax_tokens = 3\n", "generate": "max_tokens = 3\n"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def root(repo, tiny):
    return lifecycle.import_model(repo, tiny, author="t").commit_id


def _suites(directory, private):
    settings = 'slices = ["topic"]\n' + ("private = true\n" if private else "")
    return [suite(directory, kind, rows, settings + MORE.get(kind, ""), name=kind) for kind, rows in ROWS.items()]


def _measure_two_versions(repo, directory, private):
    """Every kind on two versions, within a commit that a policy judged: everything that is ever written about a suite."""
    folder = repo.root / "suites"
    suites = _suites(folder, private)
    (repo.root / "mlc.toml").write_text('[eval]\nsuites = ["suites/*.toml"]\n')
    config = dataclasses.replace(Request.of(repo, author="a").config, policy_files=())
    made = lifecycle.run(repo, Scale(factor=-30.0), author="a", config=config)
    for each in folder.iterdir():  # what is looked through afterwards is the registry, not the user's own files
        each.unlink()
    return suites, made.commit


def _written(repo):
    """Everything that the registry holds, decoded: objects, rows of the catalog, and every other file as it lies there."""
    for info in list(repo.objects.iter_infos()):
        if info.kind == "blob":
            data = repo.objects.blob(info.digest)
            yield bytes(data)
            if bytes(data[:6]) == b"ARROW1":
                yield repr(from_arrow(bytes(data))).encode()

    def rows(connection):
        tables = [name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()]
        return [repr(connection.execute(f'select * from "{table}"').fetchall()) for table in tables]

    yield from (text.encode() for text in repo.catalog.read(repo, rows))
    yield from (path.read_bytes() for path in repo.root.rglob("*") if path.is_file())


def _found(repo):
    return {secret for text in _written(repo) for secret in SECRETS if secret.encode() in text}


def test_no_text_of_a_private_suite_is_stored(repo, root, tmp_path):
    _, commit = _measure_two_versions(repo, tmp_path, private=True)
    assert set(commit.metrics) == set(ROWS)  # all were measured
    assert _found(repo) == set()


def test_the_search_finds_what_an_open_suite_stores(repo, root, tmp_path):
    _measure_two_versions(repo, tmp_path, private=False)
    assert {"person-7f", "topic-9c", "harbour sells stone"} <= _found(repo)


def test_scores_metrics_and_flips_are_those_of_the_open_suite(repo, root, tmp_path):
    opened, hidden = _suites(tmp_path / "open", private=False), _suites(tmp_path / "private", private=True)
    config = dataclasses.replace(Request.of(repo, author="a").config, policy_files=())
    made = lifecycle.run(repo, Scale(factor=-30.0), author="a", config=config)
    bench = Bench(repo, Request.of(repo, author="a"))
    before, after = repo.commit(root).snapshot, made.commit.snapshot
    for plain, private in zip(opened, hidden, strict=True):
        sides = [bench.measure(side, each) for each in (plain, private) for side in (before, after)]
        assert [side.metrics for side in sides[:2]] == [side.metrics for side in sides[2:]]
        for a, b in zip(bench.rows(sides[1]), bench.rows(sides[3]), strict=True):
            assert (a.score, a.logprob, a.correct) == (b.score, b.logprob, b.correct)
            assert b.example.startswith("hmac:")
            assert b.slice.startswith("hmac:")
        plain_facts, private_facts = (gather(bench, [each], after, {PARENT: before}).suites[0].against[PARENT] for each in (plain, private))
        assert private_facts.flips == plain_facts.flips
        assert list(private_facts.slices.values()) == list(plain_facts.slices.values())


def test_equal_answers_of_two_examples_do_not_show_and_of_one_example_do(repo):
    def pseudonym(data):
        return repo.keys.pseudonym("suite-s", data)

    rows = [
        Prediction("a", "Oslo", True, 1.0, -1.0, "x"),
        Prediction("b", "Oslo", True, 1.0, -1.0, "x"),
        Prediction("c", "", None, 1.0, -1.0),
    ]
    first, second = veiled(rows, pseudonym), veiled([*rows], pseudonym)
    assert first == second
    assert outcomes(first)[0].answer != outcomes(first)[1].answer
    assert first[0].slice == first[1].slice
    assert (first[2].answer, first[2].slice) == ("", None)


def test_each_suite_has_a_key_of_its_own_and_an_open_one_has_none(repo, root, tmp_path):
    cloze = suite(tmp_path, "cloze", ROWS["cloze"], "private = true")
    lifecycle.evaluate_rev(repo, "main", suite(tmp_path / "o", "cloze", ROWS["cloze"]).path, author="a")
    assert repo.keys.scopes() == []
    measured = lifecycle.evaluate_rev(repo, "main", cloze.path, author="a")
    assert repo.keys.scopes() == [key_scope(cloze)] == ["suite-s"]
    assert lifecycle.evaluate_rev(repo, "main", cloze.path, author="a").cached
    key = repo.keys.key_id("suite-s")
    assert all(row.example.startswith(f"hmac:{key}:") for row in Bench(repo, Request.of(repo, author="a")).rows(measured))


def test_whether_a_suite_is_private_is_part_of_its_digest(tmp_path):
    assert suite(tmp_path / "a", "cloze", ROWS["cloze"], "private = true").digest != suite(tmp_path / "b", "cloze", ROWS["cloze"]).digest


def test_what_is_wrong_with_a_row_is_said_without_its_text(repo, root, tmp_path):
    broken = [
        ("cloze", {"prompt": ["amber lamp speaks"], "answer": "x"}),
        ("choice", {"prompt": "x", "choices": "amber lamp speaks", "index": 0}),
        ("truth", {"id": ["amber lamp speaks"], "prompt": "x", "answer": "y"}),
        ("generate", {"prompt": "x", "reference": [["amber lamp speaks"]]}),
        ("membership", {"text": "x", "member": "amber lamp speaks"}),
    ]
    for number, (kind, row) in enumerate(broken):
        with pytest.raises(BadInputFile, match="line 1") as caught:
            suite(tmp_path / str(number), kind, [row], "private = true").examples()
        assert "amber lamp" not in f"{caught.value.message} {caught.value.hint} {caught.value.details}"
    twice = [{"id": "person-7f", "good": "a", "bad": "b"}] * 2
    with pytest.raises(BadInputFile, match="its id is already used in line 1") as caught:
        suite(tmp_path / "twice", "pairs", twice, "private = true").examples()
    assert "person-7f" not in caught.value.message
    long = [{"id": "person-7f", "prompt": "x", "answer": "amber " * 80}]
    with pytest.raises(Incompatible, match="a row of the private suite 's' cannot be scored") as caught:
        lifecycle.evaluate_rev(repo, "main", suite(tmp_path / "long", "cloze", long, "private = true").path, author="a")
    assert "person-7f" not in str(caught.value.message)
    assert caught.value.__cause__ is None


def test_truth_ratios_of_two_versions_are_tested_and_a_rule_may_ask(repo, root, tmp_path):
    from mlc.cli import differences
    from mlc.ops.evaluate.ks import ks_test
    from mlc.policies.rules.measures import Subject, read
    from mlc.policies.rules.rule import Rule
    from mlc.registry.catalog.behaviour import evaluations

    folder = repo.root / "suites"
    _suites(folder, private=True)
    (repo.root / "mlc.toml").write_text('[eval]\nsuites = ["suites/truth.toml", "suites/cloze.toml"]\n')
    config = dataclasses.replace(Request.of(repo, author="a").config, policy_files=())
    made = lifecycle.run(repo, Scale(factor=-30.0), author="a", config=config)
    sides = [{row.suite: row for row in evaluations(repo, repo.commit(c).snapshot)} for c in (root, made.commit_id)]
    found = differences.behaviour(repo, sides[0]["truth"], sides[1]["truth"], None)
    ratios = [[row.score for row in from_arrow(repo.blob(side["truth"].predictions))] for side in sides]
    expected = ks_test(*ratios)
    assert (found["ks"], found["ks_p"]) == (expected.statistic, expected.p)
    assert "ks" not in differences.behaviour(repo, sides[0]["cloze"], sides[1]["cloze"], None)
    json.dumps(found)

    bench = Bench(repo, Request.of(repo, author="a", config=config))
    suites = [load_suite(folder / name) for name in ("truth.toml", "cloze.toml")]
    truth, cloze = gather(bench, suites, made.commit.snapshot, {PARENT: repo.commit(root).snapshot}).suites
    rule = Rule(id="quality", metric="flips.ks_p", min=0.05)
    assert read(rule, Subject(truth), None).got == expected.p
    assert read(rule, Subject(cloze), None).quiet  # no truth ratios there: nothing to judge
    assert truth.chance == pytest.approx(1 / 3)
