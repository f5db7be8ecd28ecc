"""The front door: making and finding a registry, reading it where nobody may write, taking moves back, many at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlc.registry import founding, fs
from mlc.registry.errors import CorruptRecord, HashMismatch, MissingObject, UsageError
from mlc.registry.founding import AlreadyARegistry, UnsupportedPlatform
from mlc.registry.fs import ReadOnlyRegistry
from mlc.registry.ids import CommitId, SnapshotId
from mlc.registry.records import RefUpdate
from mlc.registry.refs import BadRefName
from mlc.registry.repository import RegistryNotFound, Repository, UnsupportedFormat
from mlc.tests.registry.crash_child import NoCatalog, add_commit, open_quick

A, B, C = (CommitId(digit * 64) for digit in "abc")


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A registry without catalog and syncs."""
    monkeypatch.setattr(fs, "_sync", fs._sync)
    yield open_quick(Repository.init(tmp_path / "work").path)
    fs.FAULTS = None


# --- init, open, discover --------------------------------------------------------------------------------


def test_a_new_registry_lies_on_disk_as_the_architecture_says(tmp_path: Path):
    repo = Repository.init(tmp_path / "new" / "place", "trunk")
    place = tmp_path / "new" / "place" / ".mlc"
    assert (repo.path, repo.root) == (place, place.parent)
    assert (place / "format").read_text() == "mlc 1\n"
    assert (place / "HEAD").read_text() == "trunk\n"
    assert sorted(p.name for p in place.iterdir()) == [
        "HEAD",
        "format",
        "journal",
        "locks",
        "objects",
        "pins",
        "quarantine",
        "refs",
        "runs",
        "tmp",
    ]
    assert sorted(p.name for p in (place / "journal").iterdir()) == ["00000001.log", "seal"]
    assert [record.body for record in repo.journal.records()] == [{"kind": "init"}]
    assert {p.stat().st_mode & 0o077 for p in [place, *place.rglob("*")]} == {0}
    assert list(place.parent.iterdir()) == [place]
    assert repo.refs.mirrored() == repo.journal.verify()[0] == 1


def test_a_registry_is_found_by_its_directory_by_mlc_itself_and_from_below(tmp_path: Path):
    Repository.init(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for repo in (
        Repository.open(tmp_path),
        Repository.open(tmp_path / ".mlc"),
        Repository.discover(tmp_path / "a" / "b"),
        Repository.discover(tmp_path),
    ):
        assert repo.path == tmp_path / ".mlc"


@pytest.mark.parametrize("ask", [Repository.open, Repository.discover], ids=["open", "discover"])
def test_no_registry_is_a_clear_error(tmp_path: Path, ask: Callable[[Path], Repository]):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RegistryNotFound) as caught:
            ask(place)
        assert caught.value.exit_code == 3
        assert caught.value.hint.startswith("mlc init")


def test_init_does_not_touch_a_registry_that_is_there(tmp_path: Path):
    repo = Repository.init(tmp_path)
    before = repo.journal.head()
    with pytest.raises(AlreadyARegistry):
        Repository.init(tmp_path)
    assert Repository.open(tmp_path).journal.head() == before


def test_init_refuses_a_bad_branch_name_and_a_file(tmp_path: Path):
    with pytest.raises(BadRefName):
        Repository.init(tmp_path / "x", "no good")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a directory"):
        Repository.init(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_init_that_fails_leaves_nothing(tmp_path: Path):
    fs.FAULTS = plan = fs.FaultPlan(0)
    Repository.init(tmp_path / "count")
    try:
        for at in range(1, len(plan.seen), 3):
            fs.FAULTS = fs.FaultPlan(at, "enospc")
            with pytest.raises(fs.DiskFull):
                Repository.init(tmp_path / "work")
            assert list((tmp_path / "work").iterdir()) == []
    finally:
        fs.FAULTS = None


def test_a_registry_of_a_newer_format_is_refused_and_a_damaged_one_is_not_guessed_at(tmp_path: Path):
    place = Repository.init(tmp_path).path / "format"
    place.write_text("mlc 2\n")
    with pytest.raises(UnsupportedFormat, match="has format 2") as caught:
        Repository.open(tmp_path)
    assert caught.value.exit_code == 2
    place.write_text("mlc\n")
    with pytest.raises(CorruptRecord):
        Repository.open(tmp_path)


def test_a_file_system_without_locks_between_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(founding, "_tried", set())
    monkeypatch.setattr(founding, "_PROBE", "raise SystemExit(0)")  # the other process got the lock too
    with pytest.raises(UnsupportedPlatform) as caught:
        Repository.init(tmp_path / "work")
    assert caught.value.exit_code == 2
    assert list((tmp_path / "work").iterdir()) == []
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnsupportedPlatform, match="win32"):
        Repository.init(tmp_path / "work")


# --- HEAD and names --------------------------------------------------------------------------------------


def test_head_is_a_branch_that_need_not_exist(quick: Repository):
    assert quick.head() == "main"
    quick.set_head("feature/x")
    assert Repository.open(quick.path).head() == "feature/x"
    with pytest.raises(BadRefName):
        quick.set_head("../x")


@pytest.mark.parametrize("text", ["", "../x\n", "a b\n", None])
def test_a_damaged_head_says_how_to_mend_it(quick: Repository, text: str | None):
    (quick.path / "HEAD").unlink()
    if text is not None:
        (quick.path / "HEAD").write_text(text)
    with pytest.raises(CorruptRecord) as caught:
        quick.head()
    assert caught.value.hint == "mlc switch BRANCH"
    quick.set_head("main")
    assert quick.head() == "main"


def test_branches_tags_and_aliases_are_listed_by_name(quick: Repository):
    quick.move_refs(
        [RefUpdate(name, None, A) for name in ("heads/b", "heads/a/x", "tags/v1", "aliases/champion")], reason="test", author="ada"
    )
    assert quick.branches() == {"a/x": A, "b": A}
    assert quick.tags() == {"v1": A}
    assert quick.aliases() == {"champion": A}


# --- damage ----------------------------------------------------------------------------------------------


def test_a_damaged_or_missing_commit_is_an_error_that_names_it(quick: Repository):
    commit = add_commit(quick, 1)
    place = quick.commits_dir / f"{commit}.json"
    sound = place.read_bytes()
    place.write_bytes(sound.replace(b"tester", b"Tester"))
    fresh = open_quick(quick.path)
    with pytest.raises(HashMismatch, match=commit) as caught:
        fresh.commit(commit)
    assert caught.value.exit_code == 7
    place.unlink()
    with pytest.raises(MissingObject, match=commit):
        fresh.commit(commit)


def test_a_blob_that_is_no_snapshot_is_not_taken_for_one(quick: Repository):
    with quick.ingest() as tx:
        digest = tx.put_blob(b"{}")
        tx.seal()
    with pytest.raises(CorruptRecord, match="not a snapshot"):
        quick.snapshot(SnapshotId(digest))
    with pytest.raises(MissingObject):
        quick.snapshot(SnapshotId("0" * 64))


# --- where nobody may write ------------------------------------------------------------------------------


def as_nobody(place: Path, work: Callable[[], None]) -> str:
    """Run `work` in a child that may only read `place`; what it says ends the test when it is not `fine`."""
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no answer"
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
            said = "fine"
        except BaseException as fault:
            said = f"{type(fault).__name__}: {fault}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        said = answer.read()
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return said


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that other users may enter: pytest's own is private."""
    import shutil
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="mlc-read-only-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_registry_that_nobody_may_write_can_be_read_and_says_so_when_written(open_place: Path):
    repo = Repository.init(open_place)
    repo.__dict__["catalog"] = NoCatalog()
    commit = add_commit(repo, 1)

    def work() -> None:
        reader = Repository.open(open_place)
        assert reader.branches() == {"main": commit}
        assert reader.resolve("main@{0}") == reader.resolve(commit[:8]) == commit
        assert reader.snapshot(reader.commit(commit).snapshot).tensors[0].name == "w"
        assert reader.journal.verify()[0] == 2
        with reader.locks.shared("objects"), reader.locks.shared("catalog"):
            pass
        for write in (
            lambda: reader.move_refs([RefUpdate("tags/v1", None, commit)], reason="tag", author="x"),
            lambda: reader.set_head("other"),
            lambda: reader.ingest().__enter__(),
            lambda: reader.undo("x"),
            reader.recover,
            lambda: Repository.init(open_place / ".mlc" / "new"),
        ):
            try:
                write()
            except ReadOnlyRegistry as fault:
                assert fault.exit_code == 2  # noqa: PT017
                assert fault.hint  # noqa: PT017
            else:
                raise AssertionError("it was written")

    assert as_nobody(open_place, work) == "fine"
    assert Repository.open(open_place).journal.verify()[0] == 2


# --- many at once ----------------------------------------------------------------------------------------


def test_threads_of_one_process_write_one_after_the_other(quick: Repository):
    def tag(number: int) -> None:
        for i in range(5):
            open_quick(quick.path).move_refs([RefUpdate(f"tags/t{number}-{i}", None, A)], reason="tag", author="ada")

    threads = [threading.Thread(target=tag, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(quick.tags()) == 20
    assert [record.seq for record in quick.journal.records()] == list(range(1, 22))
    assert quick.journal.verify()[0] == 21


def test_opening_and_writing_cost_the_same_after_thousands_of_records(quick: Repository, monkeypatch: pytest.MonkeyPatch):
    first = add_commit(quick, 1)
    monkeypatch.setattr(type(quick.journal), "recover", lambda self: [])
    for number in range(2000):
        quick.journal.append({"kind": "note", "number": number}, txid="x", author="x", time="")
        if number % 10 == 0:
            quick.journal.seal()
    quick.journal.seal()
    monkeypatch.undo()
    quick.refs.mirror()
    from mlc.registry import journal as journal_module

    parsed, parse = [], journal_module.parse_line
    monkeypatch.setattr(journal_module, "parse_line", lambda line: parsed.append(1) or parse(line))
    repo = open_quick(quick.path)
    assert repo.resolve("main") == first
    add_commit(repo, 2)
    assert len(parsed) < 30


def test_reading_names_imports_nothing_heavy(quick: Repository):
    add_commit(quick, 1)
    code = (
        "import sys; from pathlib import Path; from mlc.registry.repository import Repository\n"
        f"repo = Repository.open(Path({str(quick.path)!r}))\n"
        "repo.head(), repo.branches(), repo.resolve('main@{0}'), repo.commit(repo.resolve())\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'duckdb', 'pydantic', 'zstandard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_with_its_catalog_a_commit_becomes_rows(tmp_path: Path):
    repo = Repository.init(tmp_path)
    commit = add_commit(repo, 1)
    assert repo.warnings == []
    assert repo.catalog.query(repo, "select commit, op from commits").rows == [(commit, "test")]
    assert repo.catalog.applied() == repo.journal.head()
