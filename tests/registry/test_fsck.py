"""Every kind of damage is found at its level and named; nothing is repaired; what is only left over is no damage."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlc.registry.catalog.queries import log
from mlc.registry.errors import BadParameter, IntegrityError
from mlc.registry.ids import blob_digest
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.repository import Repository
from mlc.tests.registry.harm import cut, faults, flip, kinds, pack_of, remarks, state
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


# --- health --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_healthy_registry_is_clean_at_every_level(repo, level):
    report = fsck(repo, level)
    assert report.findings == ()
    assert report.clean
    assert report.level == level
    if level:
        assert report.objects == len({info.digest for info in repo.objects.iter_infos()})
        assert report.bytes > 10_000


def test_level_3_counts_the_bytes_it_rebuilt(repo):
    tensors = {info.digest: info.raw_size for info in repo.objects.iter_infos() if info.kind == "tensor"}
    assert fsck(repo, 3).bytes == sum(tensors.values())


def test_an_empty_registry_is_clean(tmp_path):
    assert fsck(Repository.init(tmp_path / "work"), 3).findings == ()


def test_checking_changes_no_file(repo):
    flip(repo.path / "journal" / "seal")
    flip(repo.path / "catalog.duckdb")
    pack, info = pack_of(repo, repo.snapshot(repo.commit(repo.resolve("v1")).snapshot).tensors[0].digest)
    flip(pack, info.offset)
    before = state(repo)
    for level in range(4):
        assert not fsck(Repository.open(repo.root), level).clean
    assert state(repo) == before


def test_progress_is_told_and_ends_at_the_total(repo):
    told = {}
    fsck(repo, 3, progress=lambda phase, done, total: told.setdefault(phase, []).append((done, total)))
    assert list(told) == ["packs", "history", "content", "tensors"]
    for steps in told.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]


def test_a_sample_covers_each_object_in_exactly_one_part(repo):
    whole = fsck(repo, 2)
    parts = [fsck(repo, 2, sample=(n, 3)) for n in (1, 2, 3)]
    assert sum(part.objects for part in parts) == whole.objects
    assert sum(part.bytes for part in parts) == whole.bytes
    assert all(part.clean for part in parts)
    with pytest.raises(BadParameter):
        fsck(repo, 2, sample=(4, 3))
    with pytest.raises(BadParameter):
        fsck(repo, 4)


def test_the_document_says_all(repo):
    flip(repo.path / "journal" / "seal", 5)
    document = fsck(Repository.open(repo.root), 0).to_json()
    assert document["clean"] is False
    assert document["findings"][0] == {
        "level": 0, "kind": "seal", "severity": "fault", "object": "journal/seal",
        "sentence": "the seal is missing or damaged: nothing says where the acknowledged history ends",
    }  # fmt: skip
    json.dumps(document)


# --- level 0 -------------------------------------------------------------------------------------------------


def test_a_damaged_seal_is_found_at_once(repo):
    flip(repo.path / "journal" / "seal")
    assert ("seal", "journal/seal") in faults(repo, 0)


def test_a_journal_shorter_than_its_seal_is_found_at_once(repo):
    cut(repo.path / "journal" / "00000001.log", 0.9)
    assert kinds(repo, 0) >= {"journal"}
    assert kinds(repo, 1) >= {"journal"}


def test_a_changed_last_record_is_found_at_once(repo):
    path = repo.path / "journal" / "00000001.log"
    flip(path, path.stat().st_size - 60)
    assert kinds(repo, 0) == {"journal"}


def test_an_unfinished_record_is_no_damage(repo):
    with (repo.path / "journal" / "00000001.log").open("ab") as file:
        file.write(b'000001ff {"author":"ann","bo')
    assert faults(repo, 2) == []
    assert remarks(repo, 0) == [("journal", "journal/00000001.log")]


def test_a_damaged_record_between_whole_ones_behind_the_seal_is_damage(repo):
    path = repo.path / "journal" / "00000001.log"
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b"0000000f {broken line}\n" + lines[-1])
    assert kinds(repo, 0) >= {"journal"}


def test_a_ref_whose_commit_is_gone_is_found_at_once(repo):
    tip = repo.resolve("dev")
    (repo.commits_dir / f"{tip}.json").unlink()
    assert faults(repo, 0) == [("ref", "heads/dev")]
    assert ("commit", tip) in faults(repo, 1)


def test_a_missing_catalog_is_no_damage_and_a_lagging_one_neither(repo):
    repo.catalog.apply = lambda *_: None
    add(repo, {"z": weights(9)}, branch="other")
    assert remarks(repo, 1) == [("catalog", "catalog.duckdb")]
    assert faults(repo, 1) == []
    (repo.path / "catalog.duckdb").unlink()
    assert remarks(repo, 1) == [("catalog", "catalog.duckdb")]
    assert faults(repo, 1) == []


def test_head_and_format_must_say_what_they_are(repo):
    for text in ("Not A Branch\n", "mai", ""):
        (repo.path / "HEAD").write_text(text)
        assert faults(repo, 0) == [("head", "HEAD")]


# --- levels 2 and 3 ------------------------------------------------------------------------------------------


def test_a_bit_flipped_in_any_object_is_found_and_named(repo):
    chance = random.Random(11)
    infos = [info for info in repo.objects.iter_infos() if info.stored_size]
    for info in chance.sample(infos, 8):
        path = repo.objects.pack_set.path(info.pack)
        whole = path.read_bytes()
        flip(path, info.offset + chance.randrange(info.stored_size))
        assert ("object", info.digest) in faults(repo, 2)
        path.write_bytes(whole)


def test_a_sample_finds_what_lies_in_its_part(repo):
    digest = repo.snapshot(repo.commit(repo.resolve("v1")).snapshot).tensors[0].digest
    path, info = pack_of(repo, digest)
    flip(path, info.offset)
    found = [any(f.object == digest for f in fsck(Repository.open(repo.root), 2, sample=(n, 4)).findings) for n in (1, 2, 3, 4)]
    assert sorted(found) == [False, False, False, True]


def test_a_blob_must_have_the_digest_it_is_named_by(repo, monkeypatch):
    """Also where its stored bytes have the checksum that the index claims."""
    digest = blob_digest(b"importance of weights")
    path, info = pack_of(repo, digest)
    flip(path, info.offset)
    monkeypatch.setattr("mlc.registry.objects.store.ObjectStore.sound", lambda *_: True)
    found = fsck(Repository.open(repo.root), 2, sample=(1, 1)).findings
    assert [f.object for f in found] == [digest]


def test_a_bit_flipped_between_objects_is_found(repo):
    pack = repo.objects.packs()[0]
    flip(repo.objects.pack_set.path(pack), 40)  # zeros of the header
    assert faults(repo, 2) == [("pack", pack)]
    assert faults(repo, 1) == []


def test_a_delta_that_decodes_to_something_else_is_found_by_rebuilding(repo, monkeypatch):
    """Level 2 trusts what was proven at writing; level 3 proves it again."""
    delta = next(info for info in repo.objects.iter_infos() if info.base is not None)
    from mlc.registry.objects import chain

    real = chain.tensor_range

    def wrong(reader, info, start, stop, depth=0):
        data = real(reader, info, start, stop, depth)
        return memoryview(bytes([data[0] ^ 1]) + bytes(data[1:])) if info.digest == delta.digest and depth == 0 else data

    monkeypatch.setattr(chain, "tensor_range", wrong)
    assert fsck(repo, 2).clean
    assert [f.object for f in fsck(repo, 3).findings] == [delta.digest]


# --- elsewhere -----------------------------------------------------------------------------------------------


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from mlc.registry.catalog.queries import log
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.repository import Repository

fsck(Repository.open(Path(sys.argv[1])), 3)  # everything is imported now
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
repo = Repository.open(Path(sys.argv[1]))
print([f.sentence for f in fsck(repo, 2).findings], len(log(repo, None)), repo.warnings)
try:
    (repo.path / "probe").touch()
except PermissionError:
    print("read-only")
"""


def test_a_registry_that_cannot_be_written_can_be_checked_and_asked(pristine):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "work"
        shutil.copytree(pristine, place)
        everything = [Path(folder), place, *place.rglob("*")]
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, str(place)], capture_output=True, text=True, check=False)
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert (done.stdout, done.stderr) == ("[] 5 []\nread-only\n", "")


def test_checking_and_asking_never_end_in_a_traceback(repo):
    """Any one file of the registry damaged: an answer, or an error of ours that says what is wrong."""
    chance = random.Random(2)
    files = [p for p in sorted(repo.path.rglob("*")) if p.is_file() and "locks" not in p.parts and p.stat().st_size]
    for path in chance.sample(files, 10):
        whole = path.read_bytes()
        flip(path, chance.randrange(len(whole)))
        fresh = Repository.open(repo.root) if path.name != "format" else repo
        fsck(fresh, 1)
        with contextlib.suppress(IntegrityError):
            assert len(log(fresh, None)) <= 5
        path.write_bytes(whole)
