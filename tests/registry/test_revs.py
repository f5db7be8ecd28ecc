"""What people type, and the commit they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc.registry import fs
from mlc.registry.errors import AmbiguousId, RefNotFound
from mlc.registry.ids import CommitId, SnapshotId
from mlc.registry.records import Commit, OperationRecord, RefUpdate
from mlc.registry.repository import Repository
from mlc.tests.registry.crash_child import open_quick


def plant(repo: Repository, message: str, *parents: CommitId) -> CommitId:
    """A commit object and its journal record, without any model."""
    commit = Commit(parents, SnapshotId("0" * 64), OperationRecord("test", 1, {}), "ada", "2026-01-01T00:00:00.000000Z", message)
    (repo.commits_dir / f"{commit.id}.json").write_bytes(commit.encode())
    repo.record({"kind": "commit", "commit": commit.id, "pack": None, "deltas": None, "reason": "test"}, author="ada")
    return commit.id


def point(repo: Repository, name: str, new: CommitId | None) -> None:
    repo.move_refs([RefUpdate(name, repo.refs.read(name), new)], reason="test", author="ada")


class History:
    """root - left - merge (main), root - right (side); tag v1 at root; @champion was at root, right, now at merge."""

    def __init__(self, place: Path) -> None:
        self.repo = repo = open_quick(Repository.init(place).path)
        self.root = plant(repo, "root")
        self.left = plant(repo, "left", self.root)
        self.right = plant(repo, "right", self.root)
        self.merge = plant(repo, "merge", self.left, self.right)
        for commit in (self.root, self.left, self.merge):
            point(repo, "heads/main", commit)
        point(repo, "heads/side", self.right)
        point(repo, "tags/v1", self.root)
        for commit in (self.root, self.right, self.merge):
            point(repo, "aliases/champion", commit)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    real = fs._sync
    made = History(tmp_path_factory.mktemp("revs"))
    fs._sync = real
    return made


MEANINGS = {
    "root": [
        "v1",
        "v1~0",
        "tags/v1",
        "HEAD~2",
        "HEAD~~",
        "main^2~1",
        "main^2^",
        "main~1^1",
        "main@{2}",
        "main@{1}^",
        "@champion@{2}",
        "@champion@{1}~1",
    ],
    "left": ["HEAD~", "HEAD~1", "main^", "main^1", "@champion~1", "main@{1}", "HEAD@{1}"],
    "right": ["side", "heads/side", "refs/heads/side", "main^2", "@champion@{1}"],
    "merge": [None, "HEAD", "main", "@champion", "aliases/champion", "HEAD~0", "main^0", "@champion@{0}"],
}


@pytest.mark.parametrize(("expected", "rev"), [(commit, rev) for commit, revs in MEANINGS.items() for rev in revs])
def test_a_rev_denotes_its_commit(history: History, rev: str | None, expected: str):
    assert history.repo.resolve(rev) == getattr(history, expected)


def test_an_id_or_a_unique_prefix_of_it_denotes_its_commit(history: History):
    for length in (8, 12, 63, 64):
        assert history.repo.resolve(history.left[:length]) == history.left
    assert history.repo.resolve(history.left[:12].upper()) == history.left
    assert history.repo.resolve(f"{history.merge[:12]}^2") == history.right


@pytest.mark.parametrize(
    ("rev", "part"),
    [
        ("nothing", "no branch, tag, alias or commit answers to 'nothing'"),
        ("v1~1", "has no parent"),
        ("main~3", "has no parent"),
        ("main^3", "has 2 parents"),
        ("main@{3}", "was nowhere then"),
        ("main@{99}", "moved 3 times"),
        ("main~1@{1}", "follows the name of"),
        ("@nobody", "answers to '@nobody'"),
        ("abc", "at least 4 digits"),
        ("0123456789", "answers to"),
        ("", "is not a revision"),
        ("main~x", "is not a revision"),
        ("main^{tree}", "is not a revision"),
        ("main..side", "answers to"),
        ("a b", "is not a revision"),
        ("~1", "is not a revision"),
        ("../../etc/passwd", "answers to"),
        ("f" * 65, "answers to"),
    ],
)
def test_a_rev_that_denotes_nothing_is_one_clear_sentence(history: History, rev: str, part: str):
    with pytest.raises(RefNotFound) as caught:
        history.repo.resolve(rev)
    assert part in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("typed", "meant"), [("mian", "main"), ("sid", "side"), ("v2", "v1"), ("@champoin", "@champion"), ("champion", "@champion")]
)
def test_a_near_miss_is_asked_about(history: History, typed: str, meant: str):
    with pytest.raises(RefNotFound) as caught:
        history.repo.resolve(typed)
    assert f"did you mean {meant!r}" in caught.value.hint
    assert meant in caught.value.details["candidates"]


def test_a_prefix_of_several_commits_lists_them(history: History):
    repo, twins = history.repo, {}
    for number in range(3000):
        commit = Commit((), SnapshotId("0" * 64), OperationRecord("test", 1, {}), "ada", "2026-01-01T00:00:00.000000Z", str(number))
        other = twins.setdefault(commit.id[:4], commit)
        if other is not commit:
            break
    for one in (commit, other):
        plant(repo, one.message)
    with pytest.raises(AmbiguousId) as caught:
        repo.resolve(commit.id[:4])
    assert caught.value.exit_code == 3
    assert caught.value.details["candidates"] == sorted([commit.id, other.id])
    assert repo.resolve(commit.id[:20]) == commit.id


def test_a_ref_wins_over_an_id_that_begins_like_it(history: History):
    point(history.repo, f"tags/{history.left[:6]}", history.right)
    assert history.repo.resolve(history.left[:6]) == history.right
    point(history.repo, f"tags/{history.left[:6]}", None)


def test_a_commit_that_never_became_history_is_not_found(history: History):
    orphan = Commit((), SnapshotId("0" * 64), OperationRecord("test", 1, {}), "ada", "2026-01-01T00:00:00.000000Z", "its writer died")
    (history.repo.commits_dir / f"{orphan.id}.json").write_bytes(orphan.encode())
    history.repo.record({"kind": "note", "commit": orphan.id}, author="ada")
    for rev in (orphan.id, orphan.id[:12]):
        with pytest.raises(RefNotFound):
            history.repo.resolve(rev)


def test_a_branch_without_a_commit_says_what_to_do(tmp_path: Path):
    repo = Repository.init(tmp_path)
    with pytest.raises(RefNotFound) as caught:
        repo.resolve()
    assert "'main' has no commit yet" in caught.value.message
    assert caught.value.hint == "mlc import DIR"


@pytest.mark.parametrize(
    ("rev", "branch"),
    [
        (None, "main"),
        ("HEAD", "main"),
        ("side", "side"),
        ("heads/side", "side"),
        ("v1", None),
        ("@champion", None),
        ("main~1", None),
        ("none", None),
    ],
)
def test_the_branch_that_an_argument_denotes(history: History, rev: str | None, branch: str | None):
    assert history.repo.resolve_branch(rev) == branch
