"""Writing: objects first, then one journal record that makes them history, then what is derived from it (steps W0 to W12).

Up to the journal record a failure leaves nothing visible. After it the operation is committed, and a failure is a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from . import fs
from .errors import BadParameter, HashMismatch, Locked, MissingObject
from .ids import CommitId, Digest, SnapshotId
from .journal import JournalRecord
from .owners import Owner, as_details, myself
from .places import Places
from .publishing import new_txid, publish, warned
from .records import Commit, Evaluation, Json, RefUpdate, Snapshot, TensorDelta, canonical
from .repository import SNAPSHOT_DOMAIN

if TYPE_CHECKING:
    from .delta.derived import Derived
    from .objects.layout import ObjectInfo
    from .objects.passing import Passed, Sink
    from .objects.store import ObjectStore
    from .objects.writer import PackWriter
    from .repository import Repository

_TXID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Transaction:
    """One writer's work, from the first object to the record. Use as a context manager; leaving it drops what was not committed."""

    def __init__(self, repo: Repository, txid: str | None = None, *, author: str = "mlc", estimate: int = 0) -> None:
        if txid is not None and not _TXID.fullmatch(txid):
            raise BadParameter(f"{txid!r} cannot name a transaction", hint="1 to 64 letters, digits, '.', '_' or '-'")
        self.repo = repo
        self.txid = txid or new_txid()
        self.author = author
        self.packs: list[str] = []  # sealed and not yet named by a journal record
        self.recorded: JournalRecord | None = None  # the commit that an earlier attempt with this txid made
        self._named = txid is not None
        self._estimate = estimate
        self._writer: PackWriter | None = None
        self._stack = contextlib.ExitStack()
        self._pin, self._tmp = repo.path / "pins" / self.txid, repo.path / "tmp" / self.txid
        self._references: dict[Digest, Digest] = {}  # of a tensor put: the one that it replaces
        self.places = Places(repo)  # where the sources of derived tensors are named

    # --- W0, W1: begin ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with fs.faults_in_words(self.repo.path), self._stack:
            fs.require_space(self.repo.path, self._estimate)
            self._stack.enter_context(self.repo.locks.shared("objects"))
            self._stack.callback(self._clean)
            self._place_pin()
            fs.make_dir(self._tmp)
            if self._named:
                self.recorded = self.repo.journal.find(self.txid, "commit")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _place_pin(self) -> None:
        try:
            self._write_pin()
        except FileExistsError:
            owner = Owner.decode(self._pin.read_text(encoding="utf-8").partition("\n")[0])
            if owner is not None and owner.alive:
                self._pin = self._tmp = self.repo.path / "pins" / f".{self.txid}.none"  # not ours to clean
                raise Locked(
                    f"transaction {self.txid} is being written by {owner}", hint="wait for it to finish", owner=as_details(owner)
                ) from None
            fs.remove_tree(self._tmp)
            fs.remove(self._pin)
            self._write_pin()

    def _write_pin(self) -> None:
        fs.write_new(self._pin, myself().encode().encode())
        fs.fsync_dir(self._pin.parent)

    def _clean(self) -> None:
        """W12, or what remains of an attempt that ended early."""
        if self._writer is not None:
            self._writer.abort()
        fs.remove_tree(self._tmp)
        with contextlib.suppress(OSError):  # swept later
            self._pin.unlink(missing_ok=True)

    # --- W2: objects -----------------------------------------------------------------------------------------

    def put_blob(self, data: bytes | memoryview) -> Digest:
        """Store opaque bytes; returns their digest. Stored bytes are not written again."""
        with fs.faults_in_words(self.repo.path):
            return self._pack().add_blob(data)

    def put_tensor(
        self, dtype: str, shape: Sequence[int], data: memoryview | bytes, *,
        base: Digest | None = None, reference: Digest | None = None, derived: Derived | None = None,
    ) -> Digest:  # fmt: skip
        """Store a tensor's little-endian row-major bytes; returns its digest.

        `base`: the tensor it is best coded against. `reference`: the tensor it replaces; `with_statistics` says how far it moved from
        there. `derived`: the function of stored tensors that it is, or nearly is. Raises ShapeMismatch, DiskFull.
        """
        with fs.faults_in_words(self.repo.path):
            digest = self._pack().add_tensor(dtype, shape, data, base, derived, self.places.find).digest
        if reference is not None and reference != digest:
            self._references[digest] = reference
        return digest

    def put_passing(
        self, dtype: str, shape: Sequence[int], derived: Derived, *, reference: Digest | None = None, sink: Sink | None = None
    ) -> Passed | None:
        """Store a tensor that is what `derived` says and that nobody has computed; tells what it is, and how far it is from `reference`.

        `sink` is given its bytes, piece by piece. None when it cannot be kept so: then it has to be computed and put. Raises BadParameter
        for sources that do not fit, IntegrityError for a damaged one, DiskFull.
        """
        with fs.faults_in_words(self.repo.path):
            return self._pack().add_passing(dtype, tuple(shape), derived, self.places.find, reference, sink)

    def with_statistics(self, deltas: Sequence[TensorDelta]) -> list[TensorDelta]:
        """The records, with how far each tensor moved where that was not measured yet. `commit` does this by itself."""
        return [dataclasses.replace(delta, **self._moved(delta)) if delta.nnz is None else delta for delta in deltas]

    def _moved(self, delta: TensorDelta) -> dict[str, Any]:
        reference = self._references.get(delta.target)
        if reference is None or not self.objects.has(reference):
            return {}
        self.seal()
        was, now = self.objects.info(reference), self.objects.info(delta.target)
        if (was.dtype, was.shape) != (now.dtype, now.shape):
            return {}
        from .delta import stats

        return stats(now.dtype, self.objects.tensor_bytes(delta.target), self.objects.tensor_bytes(reference))

    def put_snapshot(self, snapshot: Snapshot) -> SnapshotId:
        """Store a snapshot; returns its id."""
        return SnapshotId(self.put_blob(SNAPSHOT_DOMAIN + snapshot.encode()))

    def put_deltas(self, deltas: Sequence[TensorDelta]) -> Digest:
        """Store the delta records of a commit. Done before `seal`, it saves the commit a second pack."""
        return self.put_blob(canonical([delta.to_json() for delta in deltas]))

    def has(self, digest: Digest) -> bool:
        """Whether an object is stored or was put here."""
        return self._writer.has(digest) if self._writer else self.repo.objects.has(digest)

    def info(self, digest: Digest) -> ObjectInfo:
        """How an object that is stored, or was put here, is coded. Raises MissingObject."""
        return self._writer.info(digest) if self._writer else self.repo.objects.info(digest)

    def tensor_bytes(self, digest: Digest) -> memoryview:
        """The bytes of a tensor that is stored, or was put here; verified. Raises MissingObject, HashMismatch or CorruptRecord."""
        return self._writer.tensor_bytes(digest) if self._writer else self.objects.tensor_bytes(digest)

    def coded_against(self, info: ObjectInfo) -> tuple[Digest | None, int | None]:
        """The (first) tensor that an object is coded against, and the rank of its update where it is one of rank-1 terms."""
        if info.codec != "derived":
            return info.base, None
        from .objects.sources import taken_apart

        parts = taken_apart(self._writer or self.repo.objects, info)
        return parts.sources[0].digest, parts.rank

    @property
    def objects(self) -> ObjectStore:
        """What is stored already; what was put here is readable there after `seal`."""
        return self.repo.objects

    def _pack(self) -> PackWriter:
        if self._writer is None:
            self._writer = self.repo.objects.new_pack(self._tmp)
        return self._writer

    # --- W2 to W4: durable -----------------------------------------------------------------------------------

    def seal(self) -> str | None:
        """Make everything put so far durable and readable; returns the id of its pack, None when there was nothing new."""
        if self._writer is None:
            return None
        with fs.faults_in_words(self.repo.path):
            pack = self._writer.finish()
        self._writer = None
        if pack is not None:
            self.packs.append(pack)
        return pack

    # --- W5 to W12: history ----------------------------------------------------------------------------------

    def commit(
        self,
        commit: Commit,
        *,
        refs: Sequence[RefUpdate] = (),
        reason: str = "commit",
        deltas: Sequence[TensorDelta] = (),
        guard: Callable[[], None] | None = None,
        **facts: Json,
    ) -> CommitId:
        """Make `commit` history and move `refs`, all or nothing; returns its id. Without refs it is a candidate that was refused.

        `guard` runs under the write lock and may raise: for what depends on where refs are now. `facts` are kept in the journal record.
        Raises RefMoved, BadRefName, MissingObject, Locked, DiskFull.
        """
        if self.recorded is not None:
            return CommitId(self.recorded.body["commit"])
        listed = self.put_deltas(self.with_statistics(deltas)) if deltas else None
        self.seal()
        self._check_complete(commit)
        with fs.faults_in_words(self.repo.path):
            self._write_commit(commit)
        body: dict[str, Json] = {**facts, "kind": "commit", "commit": commit.id, "deltas": listed, "reason": reason, **_packs(self.packs)}
        record = self._publish(body, refs, commit.author, guard)
        self.packs = []
        return CommitId(record.body["commit"])

    def record_evaluation(self, evaluation: Evaluation) -> Digest:
        """Make an evaluation history; its predictions were put before. Returns the digest that the journal names it by."""
        if not self.has(evaluation.predictions):
            raise MissingObject(f"the predictions of suite {evaluation.suite} were not stored")
        digest = self.put_blob(evaluation.encode())
        self.seal()
        packs = sorted({self.repo.objects.info(named).pack for named in (digest, evaluation.predictions)})
        record = self._publish({"kind": "evaluation", "evaluation": digest, **_packs(packs)}, (), self.author)
        self.packs = [pack for pack in self.packs if pack not in packs]
        with warned(self.repo, "the catalog"):
            self.repo.catalog.load_predictions(self.repo, record.seq)
        return digest

    def record(self, body: dict[str, Json], refs: Sequence[RefUpdate] = (), *, author: str | None = None) -> JournalRecord:
        """Append an event of another kind (accept, note), naming what was put since the last `seal`."""
        pack = self.seal()
        if pack is not None:
            self.packs.remove(pack)
            body = {**body, "pack": pack}
        return self._publish(body, refs, author or self.author)

    def _publish(
        self, body: dict[str, Json], refs: Sequence[RefUpdate], author: str, guard: Callable[[], None] | None = None
    ) -> JournalRecord:
        return publish(self.repo, body, refs=refs, author=author, txid=self.txid, guard=guard, retry=self._named)

    def _check_complete(self, commit: Commit) -> None:
        """A commit may name only what is stored: a dangling name could never be repaired."""
        for parent in commit.parents:
            self.repo.commit_bytes(parent)
        snapshot = self.repo.snapshot(commit.snapshot)
        named = [entry.digest for entry in (*snapshot.tensors, *snapshot.files)] + ([Digest(snapshot.base)] if snapshot.base else [])
        missing = [digest for digest in named if not self.repo.objects.has(digest)]
        if missing:
            raise MissingObject(f"the snapshot names {len(missing)} objects that were not stored, first {missing[0]}")

    def _write_commit(self, commit: Commit) -> None:
        target = self.repo.commits_dir / f"{commit.id}.json"
        if target.exists():
            with contextlib.suppress(HashMismatch):
                self.repo.commit_bytes(commit.id)
                return
            fs.rename(target, self.repo.path / "quarantine" / f"{target.name}.{os.urandom(4).hex()}")
        fresh = self._tmp / target.name
        fs.write_new(fresh, commit.encode())
        fs.rename(fresh, target)
        fs.fsync_dir(target.parent)


def _packs(packs: Sequence[str]) -> dict[str, Json]:
    """How a journal record names packs: one as `pack`, any more as `packs`."""
    more = {"packs": list(packs[1:])} if len(packs) > 1 else {}
    return {"pack": packs[0] if packs else None, **more}
