"""A dampened version in a real registry: what its delta costs, what goes with it, and the way back."""

from __future__ import annotations

import json

import pytest

from mlc.ops.unlearn.dampening import Dampener
from mlc.ops.unlearn.exclusion import slots
from mlc.ops.unlearn.session import prepare
from mlc.ops.unlearn.ssd import by_sample
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.policies import lifecycle
from mlc.registry.errors import CheckFailed
from mlc.tests.ops.fakes import MemoryRun, MemoryView

LENIENT = '[[rule]]\nid = "any"\nmetric = "delta.max_abs"\nmax = 1e9\n'


@pytest.fixture(scope="module")
def facts(material, tmp_path_factory):
    """The people to forget and to keep, as two files."""
    place = tmp_path_factory.mktemp("facts")
    rows = [json.loads(line) for line in (material / "data/facts/train.jsonl").read_text(encoding="utf-8").splitlines()]
    paths = {}
    for name, wanted in (("forget_set", True), ("retain_set", False)):
        chosen = [r for r in rows if (r["split"] == "forget") == wanted]
        text = "".join(json.dumps({"prompt": r["prompt"], "answer": r["object"]}) + "\n" for r in chosen)
        paths[name] = str(place / f"{name}.jsonl")
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return paths


@pytest.fixture
def start(repo, material):
    """facts-small on main, under a policy that lets everything pass."""
    policy = repo.root / "policies" / "rules.toml"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text(LENIENT, encoding="utf-8")
    return lifecycle.import_model(repo, material / "models" / "facts-small", author="tester").commit_id


def test_on_real_weights_the_bound_is_nearly_touched_and_never_crossed(material, facts):
    import torch

    torch.set_num_threads(1)
    view = MemoryView.of(material / "models" / "facts-small")
    ctx = prepare(Unlearn(method="ssd", **facts), view, MemoryRun())
    places = slots(ctx.module, view, "norms")
    base = by_sample(ctx, ctx.task.losses, "square", places)
    damper = Dampener(ctx.module, places, base.forget, base.every)
    largest = max(float(r[torch.isfinite(r)].max()) for r in damper.ratios()) * base.share
    assert 0.99 < largest <= 1
    assert [damper.apply(a / base.share) for a in (1.0, 1.5, 10.0)] == [0, 0, 0]
    assert damper.values(1 / base.share) == {}


def test_half_a_per_cent_of_the_weights_costs_one_per_cent_of_the_bytes_and_can_be_taken_back(repo, start, facts):
    outcome = lifecycle.run(repo, Unlearn(method="ssd", strength="0.68", **facts), author="a")

    told, size = outcome.commit.check, sum(d.bytes_logical for d in outcome.deltas)
    selected = told["selected"] / sum(p.numel() for p in map(repo.view(start).tensor, repo.view(start).names()))
    assert 0.0045 <= selected <= 0.0055
    assert sum(d.nnz or 0 for d in outcome.deltas) <= told["selected"]
    assert {d.codec for d in outcome.deltas if d.nnz} == {"sparse"}
    model = sum(len(repo.view(start).raw(n)) for n in repo.view(start).names())
    assert size <= model
    assert sum(d.bytes_stored for d in outcome.deltas) <= 0.01 * model
    assert {a.kind for a in outcome.commit.artifacts} >= {"fisher", "mask"}

    back = lifecycle.rollback(repo, start, author="a")
    assert back.commit.snapshot == repo.commit(start).snapshot
    assert all(bytes(repo.view(back.commit_id).raw(n)) == bytes(repo.view(start).raw(n)) for n in repo.view(start).names())


def test_a_second_request_uses_the_stored_importance_and_the_same_one_gives_the_same_snapshot(repo, start, facts):
    first = lifecycle.run(repo, Unlearn(method="ssd", strength="0.8", **facts), author="a")
    again = lifecycle.run(repo, Unlearn(method="ssd", strength="0.8", **facts), ref=start, branch="again", author="a")
    fisher = [next(a for a in o.commit.artifacts if a.kind == "fisher") for o in (first, again)]
    assert first.commit.snapshot == again.commit.snapshot
    assert fisher[0].digest == fisher[1].digest

    stored = next(i for i in first.commit.inputs if i.role == "retain").digest
    alone = {**facts, "retain_set": f"blake3:{stored}"}
    third = lifecycle.run(repo, Unlearn(method="ssd", strength="0.8", **alone), ref=start, branch="third", author="a")
    assert third.commit.snapshot == first.commit.snapshot


def test_automatic_strength_says_honestly_that_single_records_are_out_of_reach(repo, start, facts):
    refs = repo.refs.all()
    with pytest.raises(CheckFailed, match="no strength forgets enough and keeps enough") as caught:
        lifecycle.run(repo, Unlearn(method="ssd", **facts), author="a")
    assert caught.value.exit_code == 10
    assert "--method dense --objective npo" in caught.value.hint
    tries = caught.value.details["check"]["search"]["tries"]
    assert [t["damping"] for t in tries] == [1.0, 0.3, 0.1]
    assert all(not (row["enough"] and row["kept"]) for t in tries for row in t["log"])
    assert repo.refs.all() == refs


NOTHING, EVERYTHING = "selected 0 of 851968 weights", "selected all 851968 of 851968 weights"


@pytest.mark.parametrize(("strength", "sentence"), [("0.99999", NOTHING), ("1e-12", EVERYTHING)])
def test_a_strength_that_selects_nothing_or_everything_commits_nothing(repo, start, facts, strength, sentence):
    refs = repo.refs.all()
    with pytest.raises(CheckFailed, match=sentence) as caught:
        lifecycle.run(repo, Unlearn(method="ssd", strength=strength, **facts), author="a")
    assert caught.value.exit_code == 10
    assert repo.refs.all() == refs
