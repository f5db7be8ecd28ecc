"""The embedded demo: small enough to ship, made by its own script, and knowing exactly what the tour says it knows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from mlc.cli.demo.make_demo import Settings, fact_document, make, make_world, schedule, write_data
from mlc.cli.demo.world import FIRST, RELATIONS, SECOND, prompt, wordings
from mlc.ops.evaluate.flips import compare
from mlc.ops.evaluate.predictions import from_arrow, outcomes
from mlc.ops.evaluate.runner import evaluate, load
from mlc.ops.evaluate.suite import load_suite
from mlc.ops.update.train import Update
from mlc.tests.ops.fakes import MemoryRun, MemoryView

DEMO = Path(__file__).resolve().parents[2] / "cli" / "demo"
MODEL, DATA = DEMO / "model", DEMO / "data"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def view():
    return MemoryView.of(MODEL)


@pytest.fixture(scope="module")
def model(view):
    return load(view)


def _texts(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_weights_tokenizer_and_data_take_less_than_two_megabytes():
    sizes = {path.relative_to(DEMO).as_posix(): path.stat().st_size for folder in (MODEL, DATA) for path in folder.iterdir()}
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json", "data/known.toml", "data/README.md"} <= set(sizes)
    assert sum(sizes.values()) < 2_000_000


def test_the_model_is_stored_in_half_precision_and_has_half_a_million_parameters(view, model):
    assert {view.entry(name).dtype for name in view.names()} == {"BF16"}
    assert 300_000 < model.num_parameters() < 700_000


def test_the_model_knows_what_it_was_taught_in_any_wording(view, model):
    result = evaluate(view, load_suite(DATA / "known.toml"), model=model)
    rows = from_arrow(result.rows)
    assert result.n == 800  # enough for a bound under 2 % with up to nine flips
    assert result.metrics["accuracy"] >= 0.99
    for wording in ("seen", "held-out"):
        part = [row.correct for row in rows if row.slice == wording]
        assert (len(part), sum(part) / len(part) >= 0.98) == (400, True)


def test_the_model_does_not_know_the_new_facts(view, model):
    result = evaluate(view, load_suite(DATA / "new.toml"), model=model)
    assert (result.n, result.metrics["accuracy"] <= 0.15) == (400, True)  # guessing among 12 to 16 objects gives 7 %


def test_the_model_reads_its_small_talk_with_ease(view, model):
    assert 2.0 < evaluate(view, load_suite(DATA / "text.toml"), model=model).metrics["perplexity"] < 3.0


@pytest.mark.slow
def test_replay_lets_the_model_learn_the_new_facts_and_keep_the_old(view, model):
    suites = [load_suite(DATA / f"{name}.toml") for name in ("known", "new", "text")]
    before = [evaluate(view, suite, model=model) for suite in suites]
    update = Update(data=str(DATA / "new-facts.jsonl"), replay=(f"{DATA / 'replay.jsonl'}:0.5",), steps=150, lr=1e-3)
    taught = view.after(update.apply(view, MemoryRun(seed=0, threads=1)))
    known, new, text = [evaluate(taught, suite) for suite in suites]
    flips = compare(outcomes(from_arrow(before[0].rows)), outcomes(from_arrow(known.rows)))
    assert new.metrics["accuracy"] >= 0.9
    assert flips.nfr_upper95 < 0.02
    assert text.metrics["perplexity"] <= 1.2 * before[2].metrics["perplexity"]


def test_the_data_are_what_the_script_writes(tmp_path):
    write_data(tmp_path, make_world(0), 0)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in DATA.iterdir() if path.name != "README.md"}


def test_no_held_out_wording_and_no_new_place_is_in_the_old_text():
    world = make_world(0)
    new, replay = "\n".join(_texts("new-facts.jsonl")), "\n".join(_texts("replay.jsonl"))
    lines = "\n" + new + "\n" + replay
    for fact in world.known + world.new:
        for wording in wordings(fact.relation, held_out=True):
            sentence = prompt(fact, wording)
            # The same core may stand behind a seen opening; as a sentence of its own it must not occur.
            assert f"\n{sentence}" not in lines
            assert f". {sentence}" not in lines
    places = {fact.subject for fact in world.known}, {fact.subject for fact in world.new}
    assert not places[0] & places[1]
    assert not [place for place in places[1] if place in replay]
    assert not [place for place in places[0] if place in new]


def test_every_new_fact_is_stated_and_every_old_one_can_be_replayed():
    world = make_world(0)
    for facts, name in ((world.new, "new-facts.jsonl"), (world.known, "replay.jsonl")):
        text = "\n".join(_texts(name))
        for fact in facts:
            stated = [prompt(fact, wording) + f" {fact.object}." for wording in wordings(fact.relation, held_out=False)]
            assert sum(sentence in text for sentence in stated) >= 2


def test_every_relation_names_all_it_needs():
    assert not set(FIRST) & set(SECOND)
    for name, relation in RELATIONS.items():
        assert len(set(relation.objects)) == len(relation.objects)
        assert all(core.count("{s}") == 1 for core in relation.cores)
        seen, held = (wordings(name, held_out) for held_out in (False, True))
        assert (len(seen), len(held)) == (36, 12)
        assert {core for _, core in seen} == set(range(8))
        assert {opening for opening, _ in seen} == set(range(6))


def test_a_document_marks_where_its_objects_stand():
    facts = make_world(0).known[:3]
    text, spans = fact_document(random.Random(0), facts)
    assert [text[a:b] for a, b in spans] == [fact.object for fact in facts]
    assert [text[b] for _, b in spans] == ["."] * 3


def test_the_script_makes_a_model_that_loads(tmp_path):
    said = []
    settings = Settings(vocabulary=300, hidden=8, layers=1, heads=2, mlp=8, steps=2, rows=2, threads=1)
    make(tmp_path, settings, said.append)
    fresh = load(MemoryView.of(tmp_path / "model"))
    assert fresh.config.vocab_size == 300
    assert said[0].endswith("vocabulary 300")
    again = tmp_path / "again"
    make(again, settings, said.append)
    for path in (tmp_path / "model").iterdir():
        assert (again / "model" / path.name).read_bytes() == path.read_bytes()


def test_the_learning_rate_rises_and_falls():
    settings = Settings(steps=100, warmup=10)
    assert [round(schedule(step, settings), 3) for step in (1, 10, 55, 100)] == [0.1, 1.0, 0.51, 0.02]
