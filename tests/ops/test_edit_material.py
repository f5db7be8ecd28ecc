"""Edits on small models that really know facts: they land where the facts are kept, and nowhere else is anything committed."""

from __future__ import annotations

import json

import pytest

from mlc.ops.edit import keep
from mlc.ops.edit.edit import Edit
from mlc.registry.errors import BadParameter
from mlc.tests.ops.fakes import MemoryRun, MemoryView

pytestmark = [pytest.mark.material, pytest.mark.slow]
SHARED = ("covariance", "self-replay", "edit-text", "edit-prefixes")  # artifacts that do not depend on the facts


def fact_file(material, folder, path, count, each=1):
    """`count` facts about as many subjects (or `each` per subject), learnt from the prompt and three training wordings."""
    place = material / "data" / folder
    templates = json.loads((place / "templates.json").read_text())
    chosen, seen = [], {}
    for text in (place / "train.jsonl").read_text().splitlines():
        row = json.loads(text)
        if len(chosen) < count and seen.get(row["subject"], 0) < each and (each > 1 or row["id"] % 6 == len(seen) % 6):
            seen[row["subject"]] = seen.get(row["subject"], 0) + 1
            wordings = [t.replace("{s}", "{}") for t in templates[row["relation"]]["train"][2:5]]
            neighbours = [{"prompt": n["prompt"], "answer": n["object"]} for n in row["neighbourhood"]]
            kept = {k: row[k] for k in ("id", "subject", "relation", "paraphrases")}
            kept |= {"target_new": row["alternatives"][0], "target_true": row["object"], "prompt": row["prompt_template"]}
            chosen.append({**kept, "wordings": wordings, "neighbourhood": neighbours})
    assert len(chosen) == count
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return str(path)


@pytest.fixture(scope="module")
def small(material, tmp_path_factory):
    """The model, a file of ten facts about ten people, and the run that edited them."""
    view = MemoryView.of(material / "models" / "facts-small")
    facts = fact_file(material, "facts", tmp_path_factory.mktemp("facts") / "ten.jsonl", 10)
    op, run = Edit(facts=facts), MemoryRun()
    return view, facts, op, run, view.after(op.apply(view, run))


def test_ten_facts_land_in_the_block_that_tracing_finds(small):
    view, _, op, run, after = small
    check = op.check(view, after, run)
    assert run.records["layers"]["layers"] == [0, 0]
    assert check.passed
    assert check.values["efficacy"] >= 0.9
    assert check.values["exact_match"] >= 0.8
    assert check.values["paraphrase_exact"] >= 0.5
    assert check.values["neighbourhood"] >= 0.92
    assert check.values["capacity_used"] < 0.5


def test_a_block_that_cannot_carry_facts_leaves_nothing_to_commit(small):
    view, facts, _, run, _ = small
    op, other = Edit(facts=facts, layers="3-3", steps=8), MemoryRun()
    other.artifacts = {k: v for k, v in run.artifacts.items() if k[0] in SHARED}
    after = view.after(op.apply(view, other))
    check = op.check(view, after, other)
    assert not check.passed
    assert check.values["efficacy"] == 0
    assert check.values["drift"] < 1e-3


def test_two_hundred_facts_are_more_than_the_model_can_hold(small, material, tmp_path):
    view, _, _, run, _ = small
    facts = fact_file(material, "facts", tmp_path / "many.jsonl", 200, each=2)
    other = MemoryRun()
    other.artifacts = {k: v for k, v in run.artifacts.items() if k[0] in SHARED}
    with pytest.raises(BadParameter, match="100 subjects exceed what layer 0 can hold"):
        list(Edit(facts=facts, layers="0").apply(view, other))
    assert not any(k[0] == keep.TARGETS for k in other.artifacts)
