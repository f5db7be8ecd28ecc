"""The contract of operations, over the whole catalog. A new operation is tested by being listed here with its examples."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path

import pytest

from mlc.ops import catalog
from mlc.ops.base import Check, CopyTensor, DropTensor, Expectations, SetFile, SetTensor
from mlc.registry.errors import BadParameter
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView
from mlc.tests.ops.patching import signature

SHORT = {"steps": 3, "batch": 2, "seq_len": 8, "lr": 1e-2}
SETS = {"forget_set": "{forget}", "retain_set": "{retain}"}
# Per operation: parameters of a short run on the tiny model; {data} stands for the path of a small text, {forget} and {retain} for records.
EXAMPLES = {
    "update": [
        {"data": "{data}", **SHORT},
        {"data": "{data}", **SHORT, "expand": 2},
        {"data": "{data}", **SHORT, "expand": 1, "where": "importance"},
        {"data": "{data}", **SHORT, "replay": ("self:0.5",)},
        {"data": "{data}", **SHORT, "adapter": "lora:2"},
    ],
    "unlearn": [
        {**SETS, "strength": "1", "steps": 3, "batch": 4},
        {**SETS, "steps": 6, "batch": 4, "objective": "graddiff"},
        {**SETS, "strength": "1", "steps": 3, "batch": 4, "objective": "rmu"},
        {**SETS, "strength": "1", "steps": 3, "batch": 4, "method": "wagle"},
        {**SETS, "strength": "0.3", "method": "ssd"},
        {**SETS, "strength": "0.3", "method": "lfssd"},
        {**SETS, "method": "assd"},
        {**SETS, "strength": "0.1", "method": "slug"},
    ],
}
EXAMPLES["edit"] = [
    {"facts": "{facts}", "layers": "1", "steps": 4, "prefixes": 1},
    {"facts": "{facts}", "layers": "0-1", "steps": 4, "method": "alphaedit", "threshold": 0.2, "covariance": "{data}"},
]
EXAMPLES["edit.revert"] = []  # needs the commit of an edit behind it: tests/policies/test_edits.py
EXAMPLES["patch"] = [{"names": ("fog",), "signatures": "{signature}", "strengths": (0.5,)}]
EXAMPLES["patch.train"] = [{"data": "{retain}", "epsilon": 0.3, "steps": 3, "batch": 4, "attack_steps": 2, "clean_limit": 1.0}]
EXAMPLES["align"] = []  # needs an older version: tests/ops/test_align.py
EXAMPLES["align.embeddings"] = []  # needs an older version and an encoder: tests/ops/test_embed.py
EXAMPLES["merge"] = [{"ingredients": ("main",), "weights": (2.0,), "normalize": False}]
EXAMPLES |= {name: [] for name in ("merge.adapters", "merge.rmm", "merge.rebuild", "merge.informed")}  # tests/policies
EXAMPLES["merge.opcm"] = [{"ingredients": ("main",), "base": "main"}]
CASES = [(name, example) for name, examples in EXAMPLES.items() for example in examples]


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    found = MemoryView.of(tiny_model(tmp_path_factory.mktemp("model"), layers=3))
    found.objects.keep(signature(found, seed=1))
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory, view):
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text(" ".join(WORDS * 20))
    for role, words in (("forget", WORDS[:8]), ("retain", WORDS[8:])):
        rows = [{"prompt": f"the {a} is {b}", "answer": f"{b} {a}"} for a in words for b in WORDS[:3]]
        rows += [{"text": " ".join(WORDS[::-1])}] if role == "retain" else []
        path.with_name(f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = [{"subject": a, "prompt": "the {} is", "target_new": b} for a, b in (("amber lamp", "red"), ("river", "blue"))]
    path.with_name("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    path.with_name("signature").write_text(next(iter(view.objects.blobs)))
    return str(path)


def build(name, example, text):
    facts = text.replace("data.txt", "facts.jsonl")
    known = {
        "{facts}": facts,
        "{data}": text,
        "{forget}": text.replace("data.txt", "forget.jsonl"),
        "{retain}": text.replace("data.txt", "retain.jsonl"),
        "{signature}": (Path(text).with_name("signature").read_text(),),
    }
    return catalog.load(name)(**{k: known.get(v, v) if isinstance(v, str) else v for k, v in example.items()})


def key(change):
    """A change as comparable bytes."""
    if isinstance(change, SetTensor):
        return ("set", change.name, str(change.data.dtype), change.data.contiguous().view(-1).numpy().tobytes(), change.base)
    return (type(change).__name__, *dataclasses.astuple(change))


def test_every_operation_of_the_catalog_has_an_example():
    assert set(EXAMPLES) == set(catalog.CATALOG)


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_an_operation_knows_its_name_and_every_option_has_help(name):
    described = catalog.describe(name)
    assert described["name"] == name
    assert described["version"] >= 1
    assert described["summary"].endswith(".")
    assert all(o["help"] for o in described["options"])


def test_an_unknown_operation_is_refused():
    with pytest.raises(BadParameter, match="no operation 'improve'"):
        catalog.load("improve")


@pytest.mark.parametrize(("name", "example"), CASES)
class TestContract:
    def test_parameters_survive_the_json_round_trip(self, name, example, text):
        op = build(name, example, text)
        assert type(op).from_params(json.loads(json.dumps(op.params()))) == op
        with pytest.raises(BadParameter, match="no parameter 'tempo'"):
            type(op).from_params({**op.params(), "tempo": 1})

    def test_a_plan_reads_no_tensor_and_is_a_sentence_and_numbers(self, name, example, text, view):
        view.reads.clear()
        plan = build(name, example, text).plan(view)
        assert view.reads == []
        assert plan.summary
        assert plan.bytes_touched > 0
        json.dumps(plan.details)

    def test_touched_names_lie_within_the_plan(self, name, example, text, view):
        op = build(name, example, text)
        plan = op.plan(view)
        for change in op.apply(view, MemoryRun()):
            if isinstance(change, SetTensor | CopyTensor | DropTensor):
                assert any(fnmatch.fnmatchcase(change.name, pattern) for pattern in plan.touches), change.name
            else:
                assert isinstance(change, SetFile)

    def test_the_input_is_not_mutated(self, name, example, text, view):
        before = view.digests()
        list(build(name, example, text).apply(view, MemoryRun()))
        assert view.digests() == before

    def test_the_same_seed_gives_the_same_bytes(self, name, example, text, view):
        op = build(name, example, text)
        one, two = ([key(c) for c in op.apply(view, MemoryRun(seed=5))] for _ in range(2))
        assert one == two

    def test_check_and_expectations_can_be_recorded(self, name, example, text, view):
        op, run = build(name, example, text), MemoryRun()
        after = view.after(op.apply(view, run), adapter=op.output_kind() == "adapter")
        assert isinstance(op.expects(), Expectations)
        if op.output_kind() == "model":
            check = op.check(view, after, run)
            assert isinstance(check, Check)
            json.dumps(check.values, allow_nan=False)
        assert run.inputs or name.startswith("merge")  # a merge reads versions, which the run records
        json.dumps(run.records, allow_nan=False)
