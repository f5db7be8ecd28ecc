"""Transactions: what is put becomes history all at once, and what fails leaves nothing to see."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlc.registry import fs
from mlc.registry.errors import BadParameter, Locked, MissingObject, MlcError, RefMoved, ShapeMismatch
from mlc.registry.fs import DiskFull, FaultPlan
from mlc.registry.ids import CommitId, Digest, SnapshotId, blob_digest
from mlc.registry.owners import Owner, myself
from mlc.registry.records import Evaluation, RefUpdate, Snapshot, TensorDelta, TensorEntry
from mlc.registry.recovery import sweep
from mlc.registry.repository import Repository
from mlc.tests.registry.crash_child import ELEMENTS, add_commit, commit_of, open_quick, tensor_of


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A registry without catalog and syncs."""
    monkeypatch.setattr(fs, "_sync", fs._sync)
    yield open_quick(Repository.init(tmp_path).path)
    fs.FAULTS = None


def leftovers(repo: Repository) -> list[str]:
    return [path.name for folder in ("tmp", "pins") for path in (repo.path / folder).iterdir()]


def packs_of(repo: Repository, seq: int) -> list[str]:
    body = next(repo.journal.records(seq - 1)).body
    return [*([body["pack"]] if body.get("pack") else []), *body.get("packs", [])]


def test_a_commit_is_one_pack_one_object_and_one_record(repo: Repository):
    commit = add_commit(repo, 7)
    record = list(repo.journal.records())[-1]
    assert record.body == {
        "kind": "commit",
        "commit": commit,
        "pack": repo.objects.packs()[0],
        "deltas": record.body["deltas"],
        "refs": [{"name": "heads/main", "old": None, "new": commit}],
        "reason": "test",
    }
    assert len(repo.objects.packs()) == 1
    assert record.author == "tester"
    assert repo.branches() == {"main": commit}
    assert [path.stem for path in repo.commits_dir.iterdir()] == [commit]
    assert leftovers(repo) == []
    assert repo.warnings == []


def test_what_was_committed_reads_back(repo: Repository):
    commit = repo.commit(add_commit(repo, 7))
    snapshot = repo.snapshot(commit.snapshot)
    assert snapshot.id == commit.snapshot
    assert bytes(repo.objects.tensor_bytes(snapshot.tensors[0].digest)) == tensor_of(7)
    assert repo.blob(snapshot.files[0].digest) == b"header of the one file"
    assert repo.objects.blob(Digest(snapshot.id)) == b"mlc.snapshot.v1\n" + snapshot.encode()


def test_how_far_a_tensor_moved_is_recorded_with_its_delta(repo: Repository):
    add_commit(repo, 1)
    add_commit(repo, 2)
    digest = list(repo.journal.records())[-1].body["deltas"]
    [delta] = [TensorDelta.from_json(item) for item in json.loads(repo.blob(digest))]
    assert (delta.tensor, delta.nnz, delta.max_abs) == ("w", ELEMENTS, 1000.0)
    assert delta.l2 == pytest.approx(8 * 1000.0)


def test_sealed_objects_can_be_read_before_they_are_history(repo: Repository):
    with repo.ingest() as tx:
        digest = tx.put_blob(b"candidate")
        assert tx.has(digest)
        assert tx.info(digest).raw_size == 9
        assert not repo.objects.has(digest)
        assert tx.seal() is not None
        assert repo.blob(digest) == b"candidate"
        assert tx.seal() is None
        assert tx.put_blob(b"candidate") == digest
        assert tx.seal() is None  # known bytes are not written again


def test_deltas_put_before_the_seal_save_the_second_pack(repo: Repository):
    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 1, (), "first")
        deltas = [TensorDelta("w", None, Digest("0" * 64), "raw", 1, 1, nnz=0)]
        tx.put_deltas(deltas)
        tx.seal()
        tx.commit(commit, refs=[RefUpdate("heads/main", None, commit.id)], deltas=deltas)
    assert len(packs_of(repo, 2)) == 1
    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 2, (commit.id,), "second")
        tx.seal()
        tx.commit(commit, refs=[], deltas=[TensorDelta("w", None, Digest("1" * 64), "raw", 2, 2, nnz=0)])
    assert len(packs_of(repo, 3)) == 2


def test_leaving_early_leaves_nothing(repo: Repository):
    with contextlib.suppress(ZeroDivisionError), repo.ingest() as tx:
        digest = tx.put_tensor("I32", (ELEMENTS,), tensor_of(1))
        raise ZeroDivisionError
    assert not repo.objects.has(digest)
    assert leftovers(repo) == []
    assert repo.journal.head()[0] == 1
    with repo.locks.exclusive("objects", timeout=0.05):
        pass


def test_a_tensor_of_the_wrong_size_is_refused(repo: Repository):
    with repo.ingest() as tx, pytest.raises(ShapeMismatch):
        tx.put_tensor("I32", (3,), b"12345")


def test_a_commit_may_not_name_what_is_not_stored(repo: Repository):
    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 1, (), "x")
        lost = Snapshot((TensorEntry("w", "I32", (1,), Digest("1" * 64)),), ())
        tx.put_snapshot(lost)
        for wrong in ({"snapshot": lost.id}, {"snapshot": SnapshotId("2" * 64)}, {"parents": (CommitId("3" * 64),)}):
            with pytest.raises(MissingObject):
                tx.commit(dataclasses.replace(commit, **wrong), refs=[])
    assert repo.journal.head()[0] == 1


def test_a_ref_that_moved_meanwhile_stops_the_commit(repo: Repository):
    first = add_commit(repo, 1)
    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 2, (first,), "late")
        other = add_commit(repo, 3)
        with pytest.raises(RefMoved):
            tx.commit(commit, refs=[RefUpdate("heads/main", first, commit.id)])
    assert repo.branches() == {"main": other}
    with pytest.raises(MlcError):
        repo.resolve(commit.id)


def test_a_guard_speaks_under_the_lock_and_may_refuse(repo: Repository):
    def guard() -> None:
        assert repo.locks.holds("write")
        raise RefMoved("the tip was judged, and it is another one now")

    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 1, (), "x")
        with pytest.raises(RefMoved):
            tx.commit(commit, refs=[RefUpdate("heads/main", None, commit.id)], guard=guard)
    assert repo.branches() == {}


def test_a_candidate_without_a_ref_is_history_all_the_same(repo: Repository):
    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 1, (), "refused")
        tx.commit(commit, refs=[], reason="update", branch="main")
    assert repo.branches() == {}
    assert repo.resolve(commit.id[:10]) == commit.id
    assert list(repo.journal.records())[-1].body["branch"] == "main"


# --- evaluations and other events ------------------------------------------------------------------------


def evaluation_of(tx, rows: bytes, snapshot: SnapshotId) -> Evaluation:
    return Evaluation(snapshot, "facts", "8" * 64, "cloze", {"accuracy": 0.5}, 2, tx.put_blob(rows))


def test_an_evaluation_is_an_object_and_a_record(repo: Repository):
    snapshot = repo.commit(add_commit(repo, 1)).snapshot
    with repo.ingest(author="ada") as tx:
        evaluation = evaluation_of(tx, b"rows", snapshot)
        digest = tx.record_evaluation(evaluation)
    record = list(repo.journal.records())[-1]
    assert record.body == {"kind": "evaluation", "evaluation": digest, "pack": repo.objects.info(digest).pack}
    assert record.author == "ada"
    assert repo.evaluation(digest) == evaluation
    assert digest == blob_digest(evaluation.encode())
    assert repo.blob(evaluation.predictions) == b"rows"


def test_an_evaluation_without_its_predictions_is_refused(repo: Repository):
    with repo.ingest() as tx, pytest.raises(MissingObject):
        tx.record_evaluation(Evaluation(SnapshotId("0" * 64), "facts", "8" * 64, "cloze", {}, 0, Digest("1" * 64)))


def test_a_transaction_may_measure_note_and_commit(repo: Repository):
    """As a gate does: the candidate is sealed, measured, noted, and only then committed; each record names its own packs."""
    with repo.ingest("judged-1", author="ada") as tx:
        commit = commit_of(repo, tx, 1, (), "x")
        candidate = tx.seal()
        tx.record_evaluation(evaluation_of(tx, b"rows", commit.snapshot))
        tx.record({"kind": "note", "note": "refused"})
        tx.commit(commit, refs=[])
    assert packs_of(repo, 4) == [candidate]
    assert packs_of(repo, 3) == []
    assert candidate not in packs_of(repo, 2)
    with repo.ingest("judged-1", author="ada") as tx:  # the same again, as after a lost answer
        again = commit_of(repo, tx, 1, (), "x")
        tx.record_evaluation(evaluation_of(tx, b"rows", again.snapshot))
        tx.record({"kind": "note", "note": "refused"})
        assert tx.commit(again, refs=[]) == commit.id
    assert repo.journal.head()[0] == 4


def test_ref_moves_with_an_event_are_all_or_nothing(repo: Repository):
    commit = add_commit(repo, 1)
    with repo.ingest() as tx:
        tx.record({"kind": "accept", "commit": commit, "verdict": {}}, [RefUpdate("aliases/champion", None, commit)])
    assert repo.aliases() == {"champion": commit}


# --- one transaction, one id -----------------------------------------------------------------------------


@pytest.mark.parametrize("txid", ["", "a/b", "../x", ".hidden", "x" * 65, "a b", "ä"])
def test_an_id_that_is_no_safe_name_is_refused(repo: Repository, txid: str):
    with pytest.raises(BadParameter):
        repo.ingest(txid)


def test_two_live_transactions_cannot_share_an_id(repo: Repository):
    with repo.ingest("same"):
        with pytest.raises(Locked) as caught, repo.ingest("same"):
            pass
        assert str(myself().pid) in caught.value.message
    assert leftovers(repo) == []
    with repo.ingest("same"):
        pass


def test_the_place_of_a_dead_transaction_is_taken_over(repo: Repository):
    dead = Owner(**{**{name: getattr(myself(), name) for name in Owner.__slots__}, "start": "1"})
    (repo.path / "pins" / "same").write_text(dead.encode())
    (repo.path / "tmp" / "same").mkdir()
    (repo.path / "tmp" / "same" / "rubbish").write_bytes(b"x")
    with repo.ingest("same") as tx:
        tx.put_blob(b"fine")
        tx.seal()
    assert leftovers(repo) == []


def test_what_dead_writers_left_is_swept_when_it_is_old(repo: Repository):
    dead = Owner(**{**{name: getattr(myself(), name) for name in Owner.__slots__}, "start": "1"})
    for name, owner in (("dead", dead), ("live", myself())):
        (repo.path / "pins" / name).write_text(owner.encode())
        (repo.path / "tmp" / name).mkdir()
    (repo.path / "tmp" / "nobody").mkdir()
    assert sweep(repo) == []
    assert {path.name for path in sweep(repo, age=0)} == {"dead", "nobody"}
    assert sorted(leftovers(repo)) == ["live", "live"]


# --- when things fail ------------------------------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_written(repo: Repository):
    with pytest.raises(DiskFull), repo.ingest(estimate=1 << 60):
        pass
    assert leftovers(repo) == []


class BrokenCatalog:
    def apply(self, repo: Repository, records: object = ()) -> None:
        raise MlcError("the catalog is on fire")


def test_what_fails_after_the_commit_point_is_a_warning(repo: Repository):
    repo.__dict__["catalog"] = BrokenCatalog()
    commit = add_commit(repo, 1)
    assert repo.warnings == [
        "committed, but the catalog is behind (the catalog is on fire); the next write or `mlc reindex` brings it up to date"
    ]
    assert Repository.open(repo.path).branches() == {"main": commit}


def test_a_full_disk_while_objects_are_written_is_one_clear_error(repo: Repository):
    with repo.ingest() as tx:
        tx.put_blob(b"some bytes")
        fs.FAULTS = FaultPlan(1, "enospc")
        with pytest.raises(DiskFull) as caught:
            tx.seal()
    assert caught.value.exit_code == 1
    assert caught.value.kind == "DiskFull"
    assert "free at least" in caught.value.hint
    assert leftovers(repo) == []
    assert repo.objects.packs() == []


def test_a_damaged_commit_object_is_set_aside_and_written_again(repo: Repository):
    with repo.ingest() as tx:
        commit = commit_of(repo, tx, 1, (), "x")
        (repo.commits_dir / f"{commit.id}.json").write_bytes(b"damaged")
        tx.commit(commit, refs=[])
    assert repo.commit_bytes(commit.id) == commit.encode()
    assert [path.read_bytes() for path in (repo.path / "quarantine").iterdir()] == [b"damaged"]
