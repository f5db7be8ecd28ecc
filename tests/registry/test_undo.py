"""Undo and redo: moves of refs taken back and made again, each by a new record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlc.registry import fs
from mlc.registry.errors import NotFound
from mlc.registry.ids import CommitId
from mlc.registry.records import RefUpdate
from mlc.registry.repository import Repository
from mlc.registry.undo import NothingToUndo
from mlc.tests.registry.crash_child import add_commit, open_quick

A, B, C = (CommitId(digit * 64) for digit in "abc")


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A registry without catalog and syncs."""
    monkeypatch.setattr(fs, "_sync", fs._sync)
    yield open_quick(Repository.init(tmp_path / "work").path)
    fs.FAULTS = None


def step(repo: Repository, name: str, new: CommitId | None, reason: str = "test") -> None:
    repo.move_refs([RefUpdate(name, repo.refs.read(name), new)], reason=reason, author="ada")


def test_undo_walks_back_and_redo_forward(quick: Repository):
    states = [quick.refs.all()]
    for name, new in (("heads/main", A), ("heads/main", B), ("tags/v1", B), ("heads/side", C), ("tags/v1", None)):
        step(quick, name, new)
        states.append(quick.refs.all())
    for earlier in states[-2::-1]:
        quick.undo("ada")
        assert quick.refs.all() == earlier
    with pytest.raises(NothingToUndo) as caught:
        quick.undo("ada")
    assert caught.value.exit_code == 3
    for later in states[1:]:
        quick.redo("ada")
        assert quick.refs.all() == later
    with pytest.raises(NothingToUndo):
        quick.redo("ada")
    assert quick.journal.verify()[0] == 1 + 5 + 5 + 5


def test_undo_and_redo_may_alternate(quick: Repository):
    for commit in (A, B, C):
        step(quick, "heads/main", commit)
    for go, expected in (
        ("undo", B),
        ("undo", A),
        ("redo", B),
        ("undo", A),
        ("redo", B),
        ("redo", C),
        ("undo", B),
        ("undo", A),
        ("undo", None),
        ("redo", A),
    ):
        getattr(quick, go)("ada")
        assert quick.refs.read("heads/main") == expected, go


def test_a_new_move_ends_what_could_be_redone_and_undo_reaches_past_it(quick: Repository):
    step(quick, "heads/main", A)
    step(quick, "heads/main", B)
    quick.undo("ada")
    step(quick, "heads/main", C)
    with pytest.raises(NothingToUndo):
        quick.redo("ada")
    quick.undo("ada")
    assert quick.refs.read("heads/main") == A
    quick.undo("ada")  # not the undone move to B
    assert quick.refs.all() == {}
    quick.redo("ada")
    quick.redo("ada")
    assert quick.refs.read("heads/main") == C


def test_undo_takes_back_a_whole_step_and_says_what_it_undid(quick: Repository):
    quick.move_refs([RefUpdate("heads/main", None, A), RefUpdate("tags/v1", None, A)], reason="import", author="ada")
    quick.record({"kind": "note", "text": "moves nothing"}, author="ada")
    assert quick.undo("bob") == [RefUpdate("heads/main", A, None), RefUpdate("tags/v1", A, None)]
    assert quick.refs.all() == {}
    last = list(quick.journal.records())[-1]
    assert (last.author, last.body["reason"], last.body["undoes"]) == ("bob", "undo", 2)
    assert [move.reason for move in quick.refs.reflog("heads/main")] == ["import", "undo"]


def test_a_commit_can_be_undone_and_is_kept(quick: Repository):
    first, second = add_commit(quick, 1), add_commit(quick, 2)
    quick.undo("ada")
    assert quick.resolve() == first
    assert quick.resolve(second[:12]) == second
    quick.redo("ada")
    assert quick.resolve() == second


def test_head_stays_a_branch_that_exists(quick: Repository):
    step(quick, "heads/main", A)
    step(quick, "heads/other", B)
    step(quick, "heads/side", A)
    quick.set_head("side")
    quick.undo("ada")
    assert quick.head() == "main"  # where side was
    assert quick.warnings == ["branch 'side' is gone; the current branch is now 'main'"]
    quick.undo("ada")
    quick.undo("ada")
    assert quick.head() == "main"  # as in a new registry
    with pytest.raises(NotFound):
        quick.resolve()
