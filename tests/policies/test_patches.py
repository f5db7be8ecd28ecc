"""Patches in a registry: any order ends in the same snapshot, the last one gone is the clean one again, and what cannot be is refused."""

from __future__ import annotations

import random

import pytest

from mlc.ops.update.train import Update
from mlc.policies import lifecycle, patches
from mlc.policies.impact import impact
from mlc.policies.traces import sought
from mlc.registry.errors import BadParameter, GateRefused, Incompatible, NotFound, RefMoved, ShapeMismatch
from mlc.registry.ids import short
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.maintenance.reindex import reindex
from mlc.tests.factories import tiny_model
from mlc.tests.policies.operations import GATE, NORM, UP, Scale

BITS = {"fog": "ternary", "rain": "8", "night": "4"}


def scaled(repo, tensor=UP, factor=1.1, **how):
    return lifecycle.run(repo, Scale(tensor=tensor, factor=factor), author="a", **how)


def laid(repo, rev="main"):
    return [(p.name, p.strength) for p in sorted(patches.overlay(repo, repo.resolve(rev)).patches, key=lambda p: p.name)]


def snapshot_at(repo, rev):
    return repo.commit(repo.resolve(rev)).snapshot


def apply(repo, *names, **how):
    return patches.apply(repo, names, author="a", **how)


def remove(repo, *names, **how):
    return patches.remove(repo, names, author="a", **how)


@pytest.fixture
def weather(repo, root):
    """Three robust versions of main, each with its signature; two of them move the same tensor."""
    for name, changes in {"fog": ((UP, 1.2), (NORM, 0.9)), "rain": ((UP, 0.8),), "night": ((GATE, 1.3),)}.items():
        for number, (tensor, factor) in enumerate(changes):
            scaled(repo, tensor, factor, ref=f"{name}-robust" if number else "main", branch=None if number else f"{name}-robust")
        patches.extract(repo, f"{name}-robust", "main", name=name, bits=BITS[name], author="a")
    return root


def test_twenty_random_changes_end_in_the_snapshot_that_the_set_alone_has(repo, weather):
    chance, here, known = random.Random(4), set(), {frozenset(): snapshot_at(repo, "main")}
    for _ in range(20):
        name = chance.choice(sorted(BITS))
        outcome = remove(repo, name) if name in here else apply(repo, name)
        here ^= {name}
        assert known.setdefault(frozenset(here), outcome.commit.snapshot) == outcome.commit.snapshot
        assert {p["name"] for p in outcome.check["patches"]} == here
    assert len(set(known.values())) == len(known) >= 5
    if here:
        remove(repo, *here)
    assert snapshot_at(repo, "main") == repo.commit(weather).snapshot
    assert repo.commit(repo.resolve("main")).check["equal_to_clean"]
    assert fsck(repo, 3).findings == ()


def test_several_at_once_are_the_same_as_one_by_one_whatever_the_order_and_have_their_strengths(repo, weather):
    one = apply(repo, "fog", "rain", strengths=[0.5, 2.0])
    apply(repo, "rain", strengths=[2.0], ref=weather, branch="other")
    two = apply(repo, "fog", strengths=[0.5], ref="other")
    assert one.commit.snapshot == two.commit.snapshot
    assert laid(repo) == laid(repo, "other") == [("fog", 0.5), ("rain", 2.0)]
    assert two.commit.op.params["clean"] == weather
    assert {a.kind for a in two.commit.artifacts} == {"signature"}


def test_a_patched_commit_is_replayed_and_taken_back_like_any_other(repo, weather):
    outcome = apply(repo, "fog")
    assert lifecycle.replay(repo, "main", author="a")[1]
    lifecycle.revert(repo, outcome.commit_id, author="a")
    assert snapshot_at(repo, "main") == repo.commit(weather).snapshot
    assert laid(repo) == []
    again = apply(repo, "fog")
    assert again.commit.snapshot == outcome.commit.snapshot
    lifecycle.rollback(repo, weather, author="a")
    assert laid(repo) == []
    assert apply(repo, "fog", "rain").commit.check["clean_snapshot"] == repo.commit(weather).snapshot
    lifecycle.rollback(repo, again.commit_id, author="a")
    assert laid(repo) == [("fog", 1.0)]
    assert remove(repo, "fog").commit.snapshot == repo.commit(weather).snapshot


def test_a_revert_from_the_middle_frees_the_patch(repo, weather):
    outcome = apply(repo, "night")
    scaled(repo, NORM)
    lifecycle.revert(repo, outcome.commit_id, author="a")
    assert patches.overlay(repo, repo.resolve("main")).grown == {}
    assert apply(repo, "night").ref_moved
    gone = remove(repo, "night")
    scaled(repo, NORM)
    lifecycle.revert(repo, gone.commit_id, author="a")  # and back it is, though not as a patch of its own
    assert [name for name, _ in patches.overlay(repo, repo.resolve("main")).grown.values()] == ["night"]


def test_a_patch_is_carried_over_to_a_later_clean_version(repo, weather):
    later = scaled(repo, NORM, 1.05)
    patched = apply(repo, "night", "rain")
    assert patched.commit.check["clean"] == later.commit_id
    assert repo.view(patched.commit_id).entry(NORM).digest == repo.view(later.commit_id).entry(NORM).digest
    assert remove(repo, "rain", "night").commit.snapshot == later.commit.snapshot


def test_what_grew_on_a_patch_cannot_be_taken_apart_and_the_way_is_said(repo, weather):
    applied = apply(repo, "fog")
    scaled(repo, GATE)
    before = repo.refs.all()
    for act in (remove, apply):
        with pytest.raises(
            Incompatible, match=f"fog was applied by {short(applied.commit_id)} and the weights were changed since"
        ) as caught:
            act(repo, "fog")
        assert f"clean version {short(weather)}" in caught.value.hint
    assert repo.refs.all() == before
    grown = apply(repo, "rain")  # another one lies over what is there now
    assert laid(repo) == [("rain", 1.0)]
    assert remove(repo, "rain").commit.snapshot == repo.commit(grown.commit.parents[0]).snapshot


def test_wrong_requests_are_refused_and_nothing_is_committed(repo, weather, tmp_path):
    apply(repo, "fog")
    lifecycle.import_model(repo, tiny_model(tmp_path / "other", layers=3), branch="other", author="a")
    before, records = repo.refs.all(), repo.journal.head()
    cases = [
        (lambda: apply(repo, "frog"), NotFound, "there is no patch 'frog'", 3),
        (lambda: remove(repo, "frog"), NotFound, "there is no patch 'frog'", 3),
        (lambda: apply(repo, "fog"), BadParameter, "fog lies over .* already, at strength 1", 2),
        (lambda: apply(repo, "rain", "rain"), BadParameter, "the same signature as one named before", 2),
        (lambda: remove(repo, "rain"), BadParameter, "rain does not lie over this version; fog does", 2),
        (lambda: remove(repo, "fog", "fog"), BadParameter, "fog is named twice", 2),
        (lambda: apply(repo, "rain", strengths=[1.0, 2.0]), BadParameter, "2 strengths are given for 1 patch$", 2),
        (lambda: apply(repo, "rain", strengths=[-1.0]), BadParameter, "a strength lies between 0 and 100", 2),
        (lambda: apply(repo, "rain", ref="other"), ShapeMismatch, "patch rain was made for a model of .* another architecture", 6),
        (lambda: patches.extract(repo, "other", "main", name="x"), Incompatible, "share no ancestor", 6),
        (lambda: patches.extract(repo, "other", "main", name="x", base="main"), ShapeMismatch, r"has a tensor model\.layers\.2", 6),
        (lambda: patches.extract(repo, "main", "main", name="x"), BadParameter, "exactly the clean weights", 2),
        (lambda: patches.extract(repo, weather, "fog-robust", name="x"), BadParameter, "the clean version follows from the robust one", 2),
        (lambda: patches.extract(repo, "fog-robust", weather, name="a/b"), BadParameter, "a patch cannot be called 'a/b'", 2),
        (lambda: patches.extract(repo, "fog-robust", weather, name="rain"), RefMoved, "the name rain is taken by signature", 9),
    ]
    for act, kind, said, code in cases:
        with pytest.raises(kind, match=said) as caught:
            act()
        assert caught.value.exit_code == code
        assert caught.value.hint
    assert repo.refs.all() == before
    assert repo.journal.head() == records


def test_a_gate_that_refuses_leaves_the_branch_where_it_was(repo, weather, strict):
    before = repo.refs.all()
    with pytest.raises(GateRefused):
        apply(repo, "rain", strengths=[100.0])
    assert repo.refs.all() == before
    assert apply(repo, "rain", strengths=[0.1]).ref_moved


def test_a_dry_run_says_what_would_change_and_writes_nothing(repo, weather):
    before = repo.journal.head()
    plan = apply(repo, "fog", dry_run=True).plan
    assert plan.summary == "the clean version with fog at 1"
    assert set(plan.touches) == {UP, NORM}
    named, said = patches.extract(repo, "fog-robust", "main", name="other", bits="4", dry_run=True)
    assert named.facts["bytes"] > 0
    assert "nothing was written" in said
    assert repo.journal.head() == before


def test_the_common_origin_is_projected_out_where_there_is_one(repo, root):
    scaled(repo, UP, 1.2, branch="robust")
    plain, said = patches.extract(repo, "robust", "main", name="plain", author="a")
    assert "trained from the clean one: nothing is projected out" in said[0]
    assert not plain.facts["projected"]
    scaled(repo, GATE, 1.1)  # main has gone on: what both come from is the import
    found, said = patches.extract(repo, "robust", "main", name="projected", author="a", message="why")
    assert (found.facts["base"], found.facts["projected"], found.facts["message"], said) == (root, True, "why", [])
    assert patches.describe(repo, "projected")["changes"] == [{"name": UP, "shape": [32, 16], "how": "added"}]
    given, _ = patches.extract(repo, "robust", "main", name="given", base=root, author="a")
    assert given.signature == found.signature


def test_names_survive_a_new_catalog_move_only_by_force_and_are_looked_for_by_fsck(repo, weather):
    old = patches.find(repo, "fog").signature
    apply(repo, "fog")
    _, said = patches.extract(repo, "fog-robust", weather, name="fog", bits="ternary")
    assert "nothing was recorded" in said[-1]
    fresh, _ = patches.extract(repo, "fog-robust", weather, name="fog", bits="8", force=True, author="a")
    assert fresh.signature != old
    with pytest.raises(BadParameter, match=r"fog lies over .* already"):  # the one that had the name before
        apply(repo, "fog")
    assert remove(repo, "fog").commit.op.params["removed"] == (old,)
    listed = patches.signatures(repo)
    reindex(repo)
    assert patches.signatures(repo) == listed
    assert list(listed) == ["fog", "night", "rain"]
    assert fsck(repo, 1).findings == ()
    repo.record({"kind": "signature", "name": "lost", "signature": "ab" * 32, "bytes": 3}, author="a")
    assert any("patch lost" in finding.sentence for finding in fsck(repo, 1).findings)


def test_a_forgotten_name_is_free_and_undo_gives_it_back(repo, weather):
    apply(repo, "fog")
    before, tip = patches.signatures(repo), repo.refs.all()
    gone = patches.forget(repo, ["fog", "rain"], author="a")
    assert [named.name for named in gone] == ["fog", "rain"]
    assert list(patches.signatures(repo)) == ["night"]
    with pytest.raises(NotFound, match="there is no patch 'fog'"):
        apply(repo, "fog", ref=weather, branch="other")
    with pytest.raises(NotFound, match="there is no patch 'fog'"):
        patches.forget(repo, ["night", "fog"], author="a")  # all or none
    with pytest.raises(BadParameter, match="given twice"):
        patches.forget(repo, ["night", "night"], author="a")
    assert list(patches.signatures(repo)) == ["night"]
    reindex(repo)
    assert list(patches.signatures(repo)) == ["night"]
    moved = repo.undo("a")
    assert [(u.name, u.old, u.new) for u in moved] == [("patches/rain", None, before["rain"].signature)]
    assert list(patches.signatures(repo)) == ["night", "rain"]
    repo.redo("a")
    assert list(patches.signatures(repo)) == ["night"]
    repo.undo("a")
    repo.undo("a")
    assert {n: p.signature for n, p in patches.signatures(repo).items()} == {n: p.signature for n, p in before.items()}
    assert patches.find(repo, "fog").facts["bytes"] == before["fog"].facts["bytes"]
    assert repo.refs.all() == tip
    assert fsck(repo, 3).findings == ()
    repo.undo("a")  # now the patch itself
    assert laid(repo) == []


def test_a_patch_whose_name_is_forgotten_still_comes_off_and_the_name_can_be_given_anew(repo, weather):
    apply(repo, "fog")
    patches.forget(repo, ["fog"], author="a")
    assert laid(repo) == [("fog", 1.0)]
    assert remove(repo, "fog").commit.snapshot == repo.commit(weather).snapshot
    fresh, _ = patches.extract(repo, "fog-robust", weather, name="fog", bits="8", author="a")
    assert patches.find(repo, "fog").signature == fresh.signature
    with pytest.raises(RefMoved, match="is taken"):
        patches.require_free(repo, "fog")


def test_several_patches_come_to_as_far_as_the_strongest_alone_unless_a_sum_is_asked_for(repo, weather):
    norm = apply(repo, "fog", "rain")
    assert (norm.commit.op.params["combine"], norm.commit.check["combine"]) == ("norm", "norm")
    night = apply(repo, "night", ref=weather, branch="other")
    assert night.commit.op.params["combine"] == "norm"
    plain = apply(repo, "fog", "rain", combine="sum", ref=weather, branch="plain")
    assert plain.commit.snapshot != norm.commit.snapshot
    kept = apply(repo, "night", ref="plain")  # what lies there says how
    assert kept.commit.op.params["combine"] == "sum"
    assert apply(repo, "night").commit.snapshot != kept.commit.snapshot
    again = remove(repo, "night", ref="plain")
    assert again.commit.snapshot == plain.commit.snapshot
    alone = remove(repo, "rain", ref="plain")
    assert alone.commit.snapshot == apply(repo, "fog", ref=weather, branch="alone").commit.snapshot
    with pytest.raises(BadParameter, match="--combine is norm or sum"):
        apply(repo, "night", combine="mean", ref="alone")


def test_a_patched_version_carries_what_its_robust_version_learned(repo, root, tmp_path):
    text = tmp_path / "noisy.txt"
    text.write_text("the river is amber . the stone speaks near the lamp .\n" * 40)
    op = Update(data=str(text), steps=1, seq_len=8, batch=2, lr=1e-3)
    robust = lifecycle.run(repo, op, branch="robust", author="a").commit
    patches.extract(repo, "robust", "main", name="noise", author="a")
    before = repo.resolve("main")
    patched = apply(repo, "noise")
    (data,) = [i for i in robust.inputs if i.role == "data"]
    assert patched.commit.check["data"] == [{"name": "noisy.txt", "digest": data.digest}]
    removed = remove(repo, "noise")
    assert "data" not in removed.commit.check
    found = {a.id: a.mark.state for a in impact(repo, sought(repo, str(text))).commits}
    assert found[patched.commit_id] == "carries"
    assert removed.commit_id not in found
    assert before not in found
