"""What history names, looked at closely while it is replayed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..catalog.source import RepositorySource, parse
from ..delta.dtypes import byte_size
from ..errors import CorruptRecord, IntegrityError, UsageError
from ..journal_lines import JournalRecord
from ..objects.layout import MAX_DEPTH_READ, ObjectInfo
from ..objects.store import ObjectStore
from ..records import Commit, Evaluation, Json
from .findings import Notes


@dataclass
class Inventory:
    """Every object of every pack. A digest stored twice counts once: either copy serves."""

    store: ObjectStore | None = None  # for the recipes of derived tensors
    objects: dict[str, ObjectInfo] = field(default_factory=dict)
    packs: dict[str, list[ObjectInfo]] = field(default_factory=dict)
    stored: int = 0  # bytes
    heights: dict[str, int] = field(default_factory=dict)  # of chains found whole

    def add(self, info: ObjectInfo) -> None:
        """Take an object in."""
        self.objects.setdefault(info.digest, info)
        self.packs.setdefault(info.pack, []).append(info)
        self.stored += info.stored_size

    def chain_fault(self, info: ObjectInfo) -> str | None:
        """What is wrong with the deltas that an object hangs on."""
        try:
            self._height(info, 0)
        except IntegrityError as fault:
            return fault.message
        return None

    def _height(self, info: ObjectInfo, steps: int) -> int:
        """Deltas between an object and its furthest keyframe."""
        known = self.heights.get(info.digest, 0)
        if steps + known > MAX_DEPTH_READ:
            raise CorruptRecord(f"it hangs on more than {MAX_DEPTH_READ} deltas, or on itself")
        if info.base is not None and info.digest not in self.heights:
            found = self._derived(info) if info.codec == "derived" else [self._base(info)]
            self.heights[info.digest] = known = 1 + max(self._height(link, steps + 1) for link in found)
        return known

    def _base(self, info: ObjectInfo) -> ObjectInfo:
        base = self.objects.get(info.base or "")
        if base is None:
            raise CorruptRecord(f"its base {info.base} is not in the registry")
        if (base.kind, base.dtype, base.shape) != (info.kind, info.dtype, info.shape):
            raise CorruptRecord(f"its base {info.base} is of another type or shape")
        return base

    def _derived(self, info: ObjectInfo) -> list[ObjectInfo]:
        if self.store is None:
            raise CorruptRecord("its recipe cannot be read")
        if missing := [name for name in self.store.needs(info) if name not in self.objects]:
            raise CorruptRecord(f"its source {missing[0]} is not in the registry")
        return [self.objects[name] for name in self.store.sources(info)]


class InspectingSource(RepositorySource):
    """The source of the replay. What it cannot find whole it notes, and raises, so that the replay goes on without."""

    def __init__(self, repo: Any, notes: Notes, inventory: Inventory) -> None:
        super().__init__(repo)
        self._notes, self._inventory = notes, inventory
        self._seen: set[tuple[str, str, tuple[int, ...]]] = set()  # tensors found in order
        self._numbers: dict[str, list[int]] = {}  # evaluation object -> records that name it and were not projected yet
        self.commits: set[str] = set()
        self.packs: set[str] = set()
        self.refs: dict[str, str] = {}
        self.last = 0  # the record that `refs` is as of
        self.evaluations: list[tuple[int, str]] = []  # number, predictions object

    def look_at(self, record: JournalRecord) -> None:
        """A record before it is projected: its refs start where the record before left them, its commit is complete."""
        for update in record.body.get("refs") or ():
            if self.refs.get(update["name"]) != update["old"]:
                self._notes.fault(1, "ref", update["name"], f"record {record.seq} moves it from where it never was")
        fold(self.refs, record.body)
        self.last = record.seq
        if record.body["kind"] == "evaluation":
            self._numbers.setdefault(record.body["evaluation"], []).append(record.seq)
        if record.body["kind"] == "signature":  # a robustness patch under a name; nothing else of history need hold its bytes
            self._blob_of("journal", "journal", f"patch {record.body['name']}", record.body["signature"], record.body["bytes"])

    # --- the source --------------------------------------------------------------------------------------

    def commit(self, commit: str) -> str:
        self.commits.add(commit)
        try:
            text = super().commit(commit)
            record = Commit.from_json(parse(text, f"commit {commit}"))
        except IntegrityError as fault:
            self._notes.error(1, "commit", commit, fault)
            raise
        for parent in record.parents:
            if parent not in self.commits:
                self._notes.fault(1, "commit", commit, f"its parent {parent} is not recorded before it")
        for artifact in record.artifacts:
            self._blob_of("commit", commit, f"artifact {artifact.kind}", artifact.digest, artifact.bytes)
        return text

    def snapshot(self, snapshot: str) -> dict[str, Json]:
        record = self._found("object", snapshot, super().snapshot)
        for tensor in record["tensors"]:
            key = (tensor["digest"], tensor["dtype"], tuple(tensor["shape"]))
            if key not in self._seen and self._tensor(snapshot, tensor["name"], *key):
                self._seen.add(key)
        sizes = {tensor["name"]: byte_size(tensor["dtype"], tensor["shape"]) for tensor in record["tensors"]}
        for file in record["files"]:
            inside = sum(sizes.get(name, 0) for name in file["tensors"])
            self._blob_of("object", snapshot, f"file {file['path']}", file["digest"], file["size"] - inside)
            if missing := [name for name in file["tensors"] if name not in sizes]:
                self._notes.fault(1, "object", snapshot, f"file {file['path']} holds tensor {missing[0]}, which the snapshot does not name")
        if record["base"] is not None and record["base"] not in self._inventory.objects:
            self._notes.fault(1, "object", snapshot, f"the snapshot it sits on, {record['base']}, is not in the registry")
        return record

    def deltas(self, digest: str) -> list[dict[str, Json]]:
        return self._found("object", digest, super().deltas)

    def evaluation(self, digest: str) -> tuple[str, dict[str, Json]]:
        number = self._numbers[digest].pop(0)  # records are looked at in batches, before the first of a batch is projected
        name, record = self._found("object", digest, super().evaluation)
        try:
            Evaluation.from_json(record)
        except IntegrityError as fault:
            self._notes.error(1, "object", digest, fault)
            raise
        if record["snapshot"] not in self._inventory.objects:
            self._notes.fault(1, "object", digest, f"the snapshot it measured, {record['snapshot']}, is not in the registry")
        self.evaluations.append((number, record["predictions"]))
        return name, record

    def pack(self, pack: str) -> Iterable[ObjectInfo]:
        self.packs.add(pack)
        if pack in self._inventory.packs:
            return self._inventory.packs[pack]
        return self._found("pack", pack, lambda name: list(super(InspectingSource, self).pack(name)))

    # --- looking -----------------------------------------------------------------------------------------

    def _found(self, kind: str, name: str, read: Any) -> Any:
        try:
            return read(name)
        except IntegrityError as fault:
            self._notes.error(1, kind, name, fault)
            raise

    def _tensor(self, snapshot: str, name: str, digest: str, dtype: str, shape: tuple[int, ...]) -> bool:
        info = self._inventory.objects.get(digest)
        if info is None:
            self._notes.fault(1, "object", digest, f"tensor {name} of snapshot {snapshot} is not in the registry")
            return False
        try:
            size = byte_size(dtype, shape)
        except UsageError as fault:
            self._notes.error(1, "object", snapshot, fault)
            return False
        if (info.kind, info.dtype, info.shape, info.raw_size) != ("tensor", dtype, shape, size):
            self._notes.fault(1, "object", digest, f"tensor {name} of snapshot {snapshot} is stored with another type, shape or size")
            return False
        return True

    def _blob_of(self, kind: str, owner: str, what: str, digest: str, size: int) -> None:
        info = self._inventory.objects.get(digest)
        if info is None:
            self._notes.fault(1, "object", digest, f"{what} of {owner} is not in the registry")
        elif info.kind != "blob" or info.raw_size != size:
            self._notes.fault(1, kind, owner, f"{what} of {owner} should have {size} bytes and is stored with {info.raw_size}")


def fold(refs: dict[str, str], body: dict[str, Json]) -> None:
    """Move refs as one journal record says."""
    for update in body.get("refs") or ():
        if update["new"] is None:
            refs.pop(update["name"], None)
        else:
            refs[update["name"]] = update["new"]
