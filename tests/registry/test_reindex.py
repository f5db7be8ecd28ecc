"""The catalog can be dropped at any time: what comes back is the same, row by row."""

from __future__ import annotations

import pytest

from mlc.registry.catalog.behaviour import compare
from mlc.registry.catalog.queries import commit_deltas, log
from mlc.registry.maintenance.reindex import reindex
from mlc.registry.repository import Repository
from mlc.tests.registry.history import dump
from mlc.tests.registry.real import evaluate, small_history


@pytest.fixture
def repo(tmp_path):
    return small_history(tmp_path / "work")


def test_reindex_gives_identical_rows_evaluations_included(repo):
    before = dump(repo)
    assert len(before["predictions"]) == 6
    assert len(before["objects"]) == sum(1 for _ in repo.objects.iter_infos())
    report = reindex(repo)
    assert dump(repo) == before
    assert report.to_json() == {"applied_seq": repo.journal.head()[0], "commits": 5, "evaluations": 2, "predictions": 6, "unreadable": 0}


def test_reindex_needs_no_catalog_to_start_from(repo):
    before = dump(repo)
    repo.catalog.path.unlink()
    reindex(Repository.open(repo.root))
    assert dump(repo) == before


def test_rows_written_commit_by_commit_equal_rows_written_at_once(repo):
    """The live catalog was never rebuilt: it grew with every record."""
    log(repo, None)
    inode = repo.catalog.path.stat().st_ino
    before = dump(repo)
    assert repo.catalog.path.stat().st_ino == inode
    reindex(repo)
    assert repo.catalog.path.stat().st_ino != inode
    assert dump(repo) == before


def test_the_catalog_knows_how_tensors_were_coded(repo):
    two = next(row for row in log(repo, None) if row.message == "two")
    delta = commit_deltas(repo, two.commit)
    assert [(row.tensor, row.base is not None, row.bytes_logical) for row in delta] == [("a", True, 24 * 32 * 4)]
    assert two.bytes_stored == delta[0].bytes == repo.objects.info(delta[0].target).stored_size
    assert two.bytes_stored < two.bytes_logical / 2


def test_predictions_recorded_by_a_transaction_can_be_compared_at_once(repo):
    tip = repo.resolve("v1")
    evaluate(repo, tip, [False, True, True])
    first, second = (
        row[0]
        for row in repo.catalog.query(
            repo, "select max(evaluation) from measurements union all select min(evaluation) from measurements"
        ).rows
    )
    assert compare(repo, second, first).total[1:] == (3, 2, 2, 1, 1, 0)


def test_an_unreadable_object_is_counted(repo):
    snapshot = repo.commit(repo.resolve("v1")).snapshot
    repo.objects.pack_set.quarantine(repo.objects.info(snapshot))
    fresh = Repository.open(repo.root)
    assert reindex(fresh).unreadable == 1
    assert any("mlc fsck" in warning for warning in fresh.warnings)
    assert len(log(fresh, None)) == 5
