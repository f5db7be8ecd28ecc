"""Level 1 of fsck: packs, journal, records, refs and catalog; each kind of damage is found and named."""

from __future__ import annotations

import random
import shutil

import pytest

from mlc.registry.ids import CommitId, Digest, SnapshotId, blob_digest
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.maintenance.inspection import Inventory
from mlc.registry.objects.layout import ObjectInfo
from mlc.registry.records import Commit, Evaluation, FileEntry, OperationRecord, Snapshot, TensorEntry
from mlc.registry.repository import Repository
from mlc.tests.registry.harm import cut, faults, flip, kinds, pack_of, remarks
from mlc.tests.registry.history import arrow
from mlc.tests.registry.real import add, small_history, weights


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A healthy registry, to be copied and never touched."""
    place = tmp_path_factory.mktemp("pristine") / "work"
    small_history(place)
    return place


@pytest.fixture
def repo(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "work")
    return Repository.open(tmp_path / "work")


# --- level 1 -------------------------------------------------------------------------------------------------


def test_a_bit_flipped_anywhere_in_the_journal_is_found(repo):
    path, chance = repo.path / "journal" / "00000001.log", random.Random(5)
    whole = path.read_bytes()
    for _ in range(6):
        flip(path, chance.randrange(len(whole)))
        assert "journal" in kinds(repo, 1)
        path.write_bytes(whole)
    assert faults(repo, 1) == []


def test_records_in_another_order_are_found(repo):
    path = repo.path / "journal" / "00000001.log"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    path.write_bytes(b"".join(lines))
    assert kinds(repo, 0) == set()
    assert "journal" in kinds(repo, 1)


def test_a_changed_commit_is_named(repo):
    tip = repo.resolve("v1")
    flip(repo.commits_dir / f"{tip}.json")
    assert ("commit", tip) in faults(repo, 1)


def test_a_damaged_index_is_named_and_costs_nothing_else(repo):
    pack = repo.objects.packs()[1]
    flip(repo.objects.pack_set.path(pack, "idx"))
    assert faults(repo, 1) == [("index", pack)]
    repo.objects.pack_set.path(pack, "idx").unlink()
    assert faults(repo, 3) == [("index", pack)]


def test_the_index_of_another_pack_is_named(repo):
    one, two = repo.objects.packs()[:2]
    shutil.copy(repo.objects.pack_set.path(one, "idx"), repo.objects.pack_set.path(two, "idx"))
    assert ("index", two) in faults(repo, 1)


def test_a_truncated_pack_is_named_with_what_it_held(repo):
    digest = repo.snapshot(repo.commit(repo.resolve("v1")).snapshot).tensors[0].digest
    path, info = pack_of(repo, digest)
    cut(path, 0.3)
    end = path.stat().st_size
    lost = {("object", i.digest) for i in repo.objects.pack_set.records(info.pack) if i.offset + i.stored_size > end}
    assert lost
    found = set(faults(repo, 1))
    assert found >= {("pack", info.pack)} | lost


def test_a_pack_that_is_gone_is_named_with_every_object_it_held(repo):
    commit = repo.resolve("dev")
    digest = next(t.digest for t in repo.snapshot(repo.commit(commit).snapshot).tensors if t.name == "c")
    path, info = pack_of(repo, digest)
    held = {i.digest for i in repo.objects.pack_set.records(info.pack)}
    path.unlink()
    path.with_suffix(".idx").unlink()
    found = faults(repo, 1)
    assert ("pack", info.pack) in found
    assert ("object", repo.commit(commit).snapshot) in found
    assert repo.commit(commit).snapshot in held


def test_a_missing_tensor_is_named(repo):
    """An object set aside as damaged counts as missing."""
    digest = repo.snapshot(repo.commit(repo.resolve("v1")).snapshot).tensors[0].digest
    repo.objects.pack_set.quarantine(repo.objects.info(digest))
    assert ("object", digest) in faults(repo, 1)


def test_a_missing_base_is_named(repo):
    delta = next(info for info in repo.objects.iter_infos() if info.base is not None)
    repo.objects.pack_set.quarantine(repo.objects.info(delta.base))
    told = [f.sentence for f in fsck(Repository.open(repo.root), 1).findings if f.object == delta.digest]
    assert told == [f"its base {delta.base} is not in the registry"]


def test_missing_artifacts_evaluations_and_predictions_are_named(repo):
    evaluation = next(r.body["evaluation"] for r in repo.journal.records() if r.body["kind"] == "evaluation")
    lost = [blob_digest(b"importance of weights"), repo.evaluation(evaluation).predictions]
    for digest in lost:
        repo.objects.pack_set.quarantine(repo.objects.info(digest))
    assert {("object", digest) for digest in lost} <= set(faults(repo, 1))
    repo.objects.pack_set.quarantine(repo.objects.info(evaluation))
    assert ("object", evaluation) in faults(repo, 1)


def smuggled(repo, snapshot, *parents, refs=()):
    """Record a commit past all the checks that writing makes; what is named need not exist."""
    commit = Commit(parents, snapshot, OperationRecord("import", 1, {}), "ann", "2026-01-01T00:00:00.000000Z", "smuggled")
    (repo.commits_dir / f"{commit.id}.json").write_bytes(commit.encode())
    note(repo, {"kind": "commit", "commit": commit.id, "deltas": None, "pack": None, "refs": list(refs)})
    return commit.id


def note(repo, body):
    repo.journal.append(body, txid="t", author="ann", time="2026-01-01T00:00:00.000000Z")
    repo.journal.seal()


def stored(repo, snapshot):
    """Store a snapshot; what it names need not exist."""
    with repo.ingest() as tx:
        tx.put_snapshot(snapshot)
        tx.record({"kind": "note"})
    return snapshot.id


def sentences(repo, level=1):
    return {f.sentence for f in fsck(Repository.open(repo.root), level).findings if f.severity == "fault"}


def test_a_file_of_another_size_than_recorded_is_found(repo):
    with repo.ingest() as tx:
        config = tx.put_blob(b"four")
        tx.record({"kind": "note"})
    snapshot = stored(repo, Snapshot((), (FileEntry("config.json", 5, "0" * 64, "blob", config),)))
    smuggled(repo, snapshot)
    assert sentences(repo) == {f"file config.json of {snapshot} should have 5 bytes and is stored with 4"}


def test_what_a_snapshot_names_must_be_there(repo):
    header = repo.snapshot(repo.commit(repo.resolve("v1")).snapshot).files[1].digest
    tensor, header_size = TensorEntry("w", "F32", (2,), Digest("7" * 64)), repo.objects.info(header).raw_size
    files = (FileEntry("x", header_size, "0" * 64, "weights", header, ("other",)), FileEntry("y", 3, "0" * 64, "blob", Digest("8" * 64)))
    snapshot = stored(repo, Snapshot((tensor,), files, "adapter", SnapshotId("9" * 64)))
    smuggled(repo, snapshot)
    assert sentences(repo) == {
        f"tensor w of snapshot {snapshot} is not in the registry",
        "file x holds tensor other, which the snapshot does not name",
        f"file y of {snapshot} is not in the registry",
        f"the snapshot it sits on, {'9' * 64}, is not in the registry",
    }


def test_a_tensor_stored_with_another_shape_is_found(repo):
    digest = repo.snapshot(repo.commit(repo.resolve("v1")).snapshot).tensors[0].digest
    snapshot = stored(repo, Snapshot((TensorEntry("w", "F32", (32, 24), digest),), ()))
    smuggled(repo, snapshot)
    assert sentences(repo) == {f"tensor w of snapshot {snapshot} is stored with another type, shape or size"}


def test_a_parent_must_be_recorded_before_its_child(repo):
    snapshot = repo.commit(repo.resolve("v1")).snapshot
    child = smuggled(repo, snapshot, CommitId("5" * 64))
    assert ("commit", child) in faults(repo, 1)
    assert f"its parent {'5' * 64} is not recorded before it" in sentences(repo)


def test_a_ref_moved_from_where_it_never_was_is_found(repo):
    tip = repo.resolve("v1")
    note(repo, {"kind": "refs", "refs": [{"name": "heads/main", "old": tip, "new": tip}], "reason": "forged"})
    repo.refs.mirror()
    seq = repo.journal.head()[0]
    assert sentences(repo) == {f"record {seq} moves it from where it never was"}


def test_a_ref_to_a_commit_outside_history_is_found(repo):
    """Its file is there: but no record made it a commit."""
    commit = Commit((), repo.commit(repo.resolve("v1")).snapshot, OperationRecord("import", 1, {}), "ann", "2026", "stray")
    (repo.commits_dir / f"{commit.id}.json").write_bytes(commit.encode())
    note(repo, {"kind": "refs", "refs": [{"name": "tags/x", "old": None, "new": commit.id}], "reason": "forged"})
    repo.refs.mirror()
    assert faults(repo, 0) == []
    assert faults(repo, 1) == [("ref", "tags/x")]


def test_an_evaluation_of_a_snapshot_that_is_gone_is_found(repo):
    with repo.ingest() as tx:
        rows = tx.put_blob(arrow({"example": ["1"]}))
        digest = tx.record_evaluation(Evaluation(SnapshotId("6" * 64), "facts", "s" * 64, "cloze", {}, 1, rows))
    assert faults(repo, 1) == [("object", digest)]


def test_a_damaged_index_over_all_packs_is_found(repo, monkeypatch):
    monkeypatch.setattr("mlc.registry.objects.packs.UNCOVERED", 0)
    repo.objects.pack_set.write_midx(repo.path / "tmp" / "midx")
    assert faults(repo, 1) == []
    flip(repo.path / "objects" / "midx")
    assert faults(repo, 3) == [("index", "objects/midx")]


def test_chains_that_end_nowhere_or_bite_their_tail_are_found():
    def info(name, base, shape=(2,)):
        return ObjectInfo(Digest(name * 64), "tensor", "F32", shape, 8, 4, Digest(base * 64) if base else None, 1, "dense", "p", 0, "c")

    inventory = Inventory()
    for link in (info("1", None), info("2", "1"), info("3", "2"), info("4", "5"), info("5", "4"), info("6", "f"), info("7", "1", (1, 2))):
        inventory.add(link)
    told = {digest[0]: inventory.chain_fault(link) for digest, link in inventory.objects.items()}
    assert told == {
        "1": None, "2": None, "3": None, "4": "it hangs on more than 32 deltas, or on itself",
        "5": "it hangs on more than 32 deltas, or on itself", "6": f"its base {'f' * 64} is not in the registry",
        "7": f"its base {'1' * 64} is of another type or shape",
    }  # fmt: skip


def test_a_delta_list_that_is_no_json_is_found(repo):
    with repo.ingest() as tx:
        digest = tx.put_blob(b"[not json")
        tx.record({"kind": "note"})
    commit = Commit((), repo.commit(repo.resolve("v1")).snapshot, OperationRecord("import", 1, {}), "ann", "2026", "listed badly")
    (repo.commits_dir / f"{commit.id}.json").write_bytes(commit.encode())
    note(repo, {"kind": "commit", "commit": commit.id, "deltas": digest, "pack": None, "refs": []})
    assert faults(repo, 1) == [("object", digest)]


def test_a_ref_file_that_lies_is_named(repo):
    flip(repo.path / "refs" / "heads" / "main", 3)
    assert ("mirror", "refs/heads/main") in faults(repo, 1)
    (repo.path / "refs" / "heads" / "main").unlink()
    assert ("mirror", "refs/heads/main") in faults(repo, 1)
    (repo.path / "refs" / "tags" / "v2").write_text(f"{repo.resolve('v1')}\n")
    assert ("mirror", "refs/tags/v2") in faults(repo, 1)


def test_a_damaged_mark_of_the_mirror_is_named(repo):
    path = repo.path / "refs" / "seq"
    whole = path.read_bytes()
    for damage in (
        b"what\n",
        whole[:-4],
        whole.replace(whole[-3:], b"zz\n"),
        b"999 " + whole.split()[1] + b"\n",
        b"1 " + whole.split()[1] + b"\n",
    ):
        path.write_bytes(damage)
        assert ("mirror", "refs/seq") in faults(repo, 1)
    path.write_bytes(whole)
    assert faults(repo, 1) == []


def test_a_mirror_that_lags_is_no_damage(repo):
    """A writer died between its journal record and the mirror."""
    files = {path: path.read_bytes() for path in (repo.path / "refs").rglob("*") if path.is_file()}
    tip = add(repo, {"z": weights(9)}, branch="other")
    (repo.path / "refs" / "heads" / "other").unlink()
    for path, content in files.items():
        path.write_bytes(content)
    assert faults(repo, 1) == []
    assert remarks(repo, 1) == [("mirror", "refs/seq")]
    assert Repository.open(repo.root).resolve("other") == tip


CHANGES = [
    "update commits set message = 'never said' where message = 'two'",
    "delete from reflog where seq = (select max(seq) from reflog)",
    "insert into parents values ('a', 0, 'b')",
    "update deltas set nnz = 7 where rowid = 0",
    "update metrics set value = 0.99 where rowid = 0",
    "update snapshots set entries = [1, 1] where rowid = 0",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_catalog_that_differs_from_the_replay_is_found(repo, change):
    import duckdb

    with duckdb.connect(str(repo.path / "catalog.duckdb")) as connection:
        connection.execute(change)
    assert faults(repo, 1) == [("catalog", "catalog.duckdb")]


@pytest.mark.parametrize(
    "change", ["update predictions set correct = not correct where rowid = 1", "delete from predictions where rowid = 1"]
)
def test_predictions_that_differ_from_their_object_are_found(repo, change):
    import duckdb

    with duckdb.connect(str(repo.path / "catalog.duckdb")) as connection:
        connection.execute(change)
    found = [f for f in fsck(repo, 1).findings if f.severity == "fault"]
    assert [(f.kind, "predictions of evaluation" in f.sentence) for f in found] == [("catalog", True)]


def test_a_damaged_catalog_is_found_and_left_alone(repo):
    path = repo.path / "catalog.duckdb"
    for offset in (0, 4096 + 20, path.stat().st_size - 262_144 * 2):
        whole = path.read_bytes()
        flip(path, offset)
        assert set(faults(repo, 1)) <= {("catalog", "catalog.duckdb")}
        path.write_bytes(whole)
    path.write_bytes(b"no database\n" * 1000)
    assert faults(repo, 0) == [("catalog", "catalog.duckdb")]
    assert path.read_bytes().startswith(b"no database")


def test_a_catalog_of_another_registry_is_found(repo, tmp_path):
    other = small_history(tmp_path / "other")
    shutil.copy(other.path / "catalog.duckdb", repo.path / "catalog.duckdb")
    assert ("catalog", "catalog.duckdb") in faults(repo, 0)


def test_what_no_record_names_is_left_over_and_no_damage(repo):
    with repo.ingest() as tx:
        tx.put_blob(b"a writer died before its journal record")
        pack = tx.seal()
    (repo.commits_dir / f"{'e' * 64}.json").write_bytes(b"{}")
    assert faults(repo, 3) == []
    assert set(remarks(repo, 1)) == {("scratch", pack), ("scratch", f"{'e' * 64}.json")}
