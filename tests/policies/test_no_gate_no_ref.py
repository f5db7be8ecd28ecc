"""The law: new content moves a ref only after evaluation and the policy's verdict. Every way in, tried against a closed gate."""

from __future__ import annotations

import shutil

import pytest

from mlc.policies import lifecycle
from mlc.registry.errors import GateRefused, MlcError
from mlc.tests.policies.operations import NORM, UP, Remembering, Scale

CLOSED = '[[rule]]\nid = "closed"\nmetric = "delta.tensors_total"\nmax = 0\n'


@pytest.fixture
def closed(repo, root, rules, tiny, tmp_path):
    """Two commits on main, a refused candidate, a changed directory; then a gate that refuses everything."""
    lifecycle.run(repo, Scale(factor=1.01), author="a")
    lifecycle.run(repo, Scale(tensor=NORM, factor=1.01), author="a")
    rules(CLOSED)
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Scale(factor=1.02), author="a")
    changed = shutil.copytree(tiny, tmp_path / "changed")
    (changed / "NOTES.md").write_text("changed")
    return {"repo": repo, "bad": caught.value.details["commit"], "changed": changed}


WAYS = {
    "an operation on the current branch": lambda w: lifecycle.run(w["repo"], Scale(factor=1.03), author="a"),
    "an operation on a new branch": lambda w: lifecycle.run(w["repo"], Scale(factor=1.03), ref="HEAD~1", branch="new", author="a"),
    "an operation that changes a file only": lambda w: lifecycle.run(w["repo"], Remembering(), author="a"),
    "a directory of another tool": lambda w: lifecycle.commit_directory(w["repo"], w["changed"], author="a"),
    "a directory on a new branch": lambda w: lifecycle.commit_directory(w["repo"], w["changed"], ref="HEAD~1", branch="new", author="a"),
    "a revert of the tip": lambda w: lifecycle.revert(w["repo"], "HEAD", author="a"),
    "a revert of an earlier change": lambda w: lifecycle.revert(w["repo"], "HEAD~1", author="a"),
    "a rollback to what was refused": lambda w: lifecycle.rollback(w["repo"], w["bad"], author="a"),
    "a rollback on a branch at what was refused": lambda w: lifecycle.rollback(w["repo"], "main", ref=w["bad"], branch="new", author="a"),
    "a branch at what was refused": lambda w: lifecycle.set_name(w["repo"], "branch", "new", w["bad"], author="a"),
    "a branch moved by force": lambda w: lifecycle.set_name(w["repo"], "branch", "main", w["bad"], force=True, author="a"),
    "a tag": lambda w: lifecycle.set_name(w["repo"], "tag", "v1", w["bad"], author="a"),
    "an alias": lambda w: lifecycle.set_name(w["repo"], "alias", "champion", w["bad"], author="a"),
    "a child of what was refused": lambda w: lifecycle.run(w["repo"], Scale(factor=1.0001), ref=w["bad"], branch="new", author="a"),
    "an acceptance without the right rule": lambda w: lifecycle.accept(w["repo"], w["bad"], waive=["other"], reason="x", author="a"),
    "a question": lambda w: _asked(w),
}


def _asked(ways):
    assert lifecycle.gate_rev(ways["repo"], "HEAD", author="a").outcome == "refused"
    raise GateRefused("as it said")


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_moves_a_ref_past_a_closed_gate(closed, way):
    repo = closed["repo"]
    refs = repo.refs.all()

    with pytest.raises(MlcError) as caught:
        WAYS[way](closed)

    assert caught.value.exit_code in (2, 4)
    if caught.value.exit_code == 4 and way != "a question":  # what the command line shows of a refusal
        assert not caught.value.details["outcome"].ref_moved
        assert repo.commit(caught.value.details["outcome"].commit_id).verdict.outcome == "refused"
    assert repo.refs.all() == refs
    accepted = {c.stem for c in repo.commits_dir.iterdir() if repo.commit(c.stem).verdict.outcome != "refused"}
    assert len(accepted) == 3  # the root and the two that came before the gate was closed


def test_every_commit_with_a_parent_has_a_verdict_unless_it_returns_to_accepted_content(repo, root):
    lifecycle.run(repo, Scale(factor=1.01), author="a")
    lifecycle.rollback(repo, root, author="a")
    lifecycle.revert(repo, "HEAD~1", author="a")  # what it made is gone already: records nothing
    snapshots = set()
    for path in sorted(repo.commits_dir.iterdir(), key=lambda p: repo.commit(p.stem).time):
        commit = repo.commit(path.stem)
        if commit.parents and commit.verdict.outcome == "ungated":
            assert commit.op.name == "rollback"
            assert commit.snapshot in snapshots
        snapshots.add(commit.snapshot)
    assert UP in repo.view(root).names()
