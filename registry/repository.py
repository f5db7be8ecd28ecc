"""The one front door of a registry: open it, read what happened, and begin to write.

Everything here works without torch and, but for `catalog`, without DuckDB. Reading takes no lock and changes no file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fs, revs
from .errors import CorruptRecord, HashMismatch, MissingObject, NotFound, UsageError
from .ids import CommitId, Digest, SnapshotId, record_digest
from .journal import Journal
from .records import SNAPSHOT_DOMAIN, Commit, Evaluation, Json, RefUpdate, Snapshot
from .refs import RefStore, check_name

if TYPE_CHECKING:
    from .catalog import Catalog
    from .journal import JournalRecord
    from .keys import Keys
    from .locks import Locks
    from .objects.store import ObjectStore
    from .transaction import Transaction
    from .view import ModelView

FORMAT = "mlc 1\n"
KEPT_COMMITS, KEPT_SNAPSHOTS = 4096, 8  # parsed records kept in memory


class RegistryNotFound(NotFound):
    """There is no registry where one was looked for."""


class UnsupportedFormat(UsageError):
    """The registry was written by a newer mlc."""


class Repository:
    """A registry on disk. Cheap to open: nothing but `format` is read."""

    def __init__(self, path: Path) -> None:
        """Use `open`, `discover` or `init` instead."""
        self.path = Path(path)
        self.root = self.path.parent
        self.warnings: list[str] = []
        self.journal = Journal(self.path / "journal")
        self.refs = RefStore(self.path / "refs", self.journal)
        self.commits_dir = self.path / "objects" / "commits"
        self._commits: dict[CommitId, Commit] = {}
        self._snapshots: dict[SnapshotId, Snapshot] = {}

    # --- opening ---------------------------------------------------------------------------------------------

    @classmethod
    def init(cls, directory: Path, default_branch: str = "main") -> Repository:
        """A new, empty registry in `directory`. Raises AlreadyARegistry, BadRefName, ReadOnlyRegistry or DiskFull."""
        from .founding import found

        return cls.open(found(Path(directory), default_branch))

    @classmethod
    def open(cls, path: Path) -> Repository:
        """The registry in `path`: the directory that holds `.mlc`, or `.mlc` itself. Raises RegistryNotFound or UnsupportedFormat."""
        path = Path(path)
        place = path / ".mlc" if (path / ".mlc").is_dir() else path
        try:
            text = (place / "format").read_text(encoding="utf-8", errors="replace")
        except OSError as fault:
            raise RegistryNotFound(f"{path} holds no registry", hint=f"mlc init {path}") from fault
        if text != FORMAT:
            _refuse_format(text, place)
        return cls(place)

    @classmethod
    def discover(cls, start: Path) -> Repository:
        """The nearest registry in `start` or a directory above it. Raises RegistryNotFound."""
        start = Path(start).absolute()
        for directory in (start, *start.parents):
            if (directory / ".mlc" / "format").is_file():
                return cls.open(directory)
        raise RegistryNotFound(f"no registry in {start} or above it", hint="mlc init, or name one with -R DIR")

    @functools.cached_property
    def locks(self) -> Locks:
        """The locks between processes."""
        from .locks import Locks

        return Locks(self.path / "locks")

    @functools.cached_property
    def objects(self) -> ObjectStore:
        """Tensors and blobs by digest."""
        from .objects.store import ObjectStore

        return ObjectStore(self.path / "objects")

    @functools.cached_property
    def catalog(self) -> Catalog:
        """History as rows; DuckDB is loaded when it is first asked."""
        from .catalog import Catalog

        return Catalog(self.path / "catalog.duckdb", self.locks)

    @functools.cached_property
    def keys(self) -> Keys:
        """Keys for digests that must not be guessed; no part of history."""
        from .keys import Keys

        return Keys(self.path / "keys")

    # --- names -----------------------------------------------------------------------------------------------

    def head(self) -> str:
        """The current branch; it may have no commit yet."""
        try:
            name = (self.path / "HEAD").read_text(encoding="ascii", errors="replace").strip()
            return check_name(f"heads/{name}").removeprefix("heads/")
        except (OSError, UsageError) as fault:
            raise CorruptRecord("HEAD does not name a branch", hint="mlc switch BRANCH") from fault

    def set_head(self, branch: str) -> None:
        """Make `branch` the current one. It need not exist."""
        check_name(f"heads/{branch}")
        with fs.faults_in_words(self.path):
            fs.replace_text(self.path / "HEAD", f"{branch}\n")

    def branches(self) -> dict[str, CommitId]:
        """Branch name -> commit."""
        return self._named("heads/")

    def tags(self) -> dict[str, CommitId]:
        """Tag name -> commit."""
        return self._named("tags/")

    def aliases(self) -> dict[str, CommitId]:
        """Alias name (without @) -> commit."""
        return self._named("aliases/")

    def _named(self, kind: str) -> dict[str, CommitId]:
        return {name.removeprefix(kind): commit for name, commit in self.refs.all().items() if name.startswith(kind)}

    def resolve(self, rev: str | None = None) -> CommitId:
        """The commit that a rev denotes (HEAD for None). Raises RefNotFound or AmbiguousId."""
        return revs.resolve(self, rev)

    def resolve_branch(self, rev: str | None = None) -> str | None:
        """The branch that a REF argument denotes (HEAD for None); None when it is a tag, alias, id or expression."""
        return revs.resolve_branch(self, rev)

    # --- records ---------------------------------------------------------------------------------------------

    def commit(self, commit_id: CommitId) -> Commit:
        """A commit by its full id. Raises MissingObject, HashMismatch or CorruptRecord."""
        if commit_id not in self._commits:
            if len(self._commits) >= KEPT_COMMITS:
                self._commits.clear()
            self._commits[commit_id] = Commit.from_json(_parse(self.commit_bytes(commit_id), f"commit {commit_id}"))
        return self._commits[commit_id]

    def commit_bytes(self, commit_id: CommitId) -> bytes:
        """The canonical bytes of a commit, verified."""
        try:
            data = (self.commits_dir / f"{commit_id}.json").read_bytes()
        except OSError as fault:
            raise MissingObject(f"commit {commit_id} is not in the registry", hint="mlc fsck") from fault
        if record_digest("mlc.commit.v1", data) != commit_id:
            raise HashMismatch(f"commit {commit_id} does not hold the bytes of its name", hint="mlc fsck")
        return data

    def journaled(self, commit_id: CommitId) -> bool:
        """Whether a commit became part of history: a writer that died may leave the file of one that did not."""
        named = self.journal.with_text(f'"{commit_id}"')
        return any(record.body["kind"] != "note" for record in named)  # a note may speak of what then did not happen

    def snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """A snapshot by its id. Raises MissingObject, HashMismatch or CorruptRecord."""
        if snapshot_id not in self._snapshots:
            data = self.objects.blob(Digest(snapshot_id))  # stored as the very bytes that its id is the digest of
            if not data.startswith(SNAPSHOT_DOMAIN):
                raise CorruptRecord(f"object {snapshot_id} is not a snapshot", hint="mlc fsck")
            if len(self._snapshots) >= KEPT_SNAPSHOTS:
                self._snapshots.clear()
            self._snapshots[snapshot_id] = Snapshot.from_json(_parse(data[len(SNAPSHOT_DOMAIN) :], f"snapshot {snapshot_id}"))
        return self._snapshots[snapshot_id]

    def blob(self, digest: Digest) -> bytes:
        """An opaque object, verified. Raises MissingObject, HashMismatch or CorruptRecord."""
        return self.objects.blob(digest)

    def evaluation(self, digest: Digest) -> Evaluation:
        """An evaluation by the digest of its object, as the journal names it (not `Evaluation.id`)."""
        return Evaluation.from_json(_parse(self.objects.blob(digest), f"evaluation {digest}"))

    def view(self, some_id: CommitId | SnapshotId) -> ModelView:
        """The model of a commit or snapshot. For the commit of an adapter: its base with the adapter merged in."""
        from .view import open_view

        known = (self.commits_dir / f"{some_id}.json").exists()
        return open_view(self, self.commit(CommitId(some_id)).snapshot if known else SnapshotId(some_id))

    # --- writing ---------------------------------------------------------------------------------------------

    def ingest(self, txid: str | None = None, *, author: str = "mlc", estimate: int = 0) -> Transaction:
        """A transaction, to be used as a context manager. The same `txid` again gives the recorded result instead of a second commit.

        `author` is who the journal names for evaluations and notes. `estimate`: bytes about to be stored; DiskFull is raised
        when 1.1 times as much is not free.
        """
        from .transaction import Transaction

        return Transaction(self, txid, author=author, estimate=estimate)

    def move_refs(self, updates: Sequence[RefUpdate], *, reason: str, author: str, txid: str | None = None, **facts: Json) -> int:
        """Move refs by compare-and-swap, all or none; returns the journal's seq. `facts` are kept in the record.

        Raises RefMoved, BadRefName, Locked, ReadOnlyRegistry or DiskFull.
        """
        return self.record({"kind": "refs", "reason": reason, **facts}, refs=updates, author=author, txid=txid).seq

    def record(self, body: dict[str, Json], *, refs: Sequence[RefUpdate] = (), author: str, txid: str | None = None) -> JournalRecord:
        """Append one event (accept, note, ...) with its ref moves; returns the journal record."""
        from .publishing import publish

        return publish(self, body, refs=refs, author=author, txid=txid)

    def undo(self, author: str) -> list[RefUpdate]:
        """Take back the last move of refs; again: the one before. Returns the moves made. Raises NothingToUndo."""
        from .undo import undo

        return undo(self, author)

    def redo(self, author: str) -> list[RefUpdate]:
        """Make the move again that was taken back last. Raises NothingToUndo."""
        from .undo import redo

        return redo(self, author)

    def recover(self) -> list[str]:
        """Repair what a writer that died left behind; returns one sentence for each thing done."""
        from .recovery import recover

        with self.locks.exclusive("write"):
            return recover(self)


def _refuse_format(text: str, place: Path) -> None:
    if text.startswith("mlc ") and text[4:].strip().isdigit():
        raise UnsupportedFormat(
            f"{place} has format {text[4:].strip()}; this mlc reads format 1", hint="pip install --upgrade mlc-registry"
        )
    raise CorruptRecord(
        f"{place / 'format'} does not say what it is", hint=f"if this is a registry: printf 'mlc 1\\n' > {place / 'format'}, then mlc fsck"
    )


def _parse(data: bytes, what: str) -> dict[str, Any]:
    try:
        return json.loads(data)
    except ValueError as fault:
        raise CorruptRecord(f"{what} is not JSON", hint="mlc fsck") from fault
