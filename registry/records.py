"""What the registry remembers: frozen records, and the one canonical encoding that gives them their ids.

Nothing here does input or output. The encoding is ours, so that upgrading a library can never change an id;
golden tests pin it. Floats are written in Python's shortest round-trip form and must be finite: a metric that
is not a finite number is stored as null, and every rule treats null as a failure.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from .errors import BadParameter, CorruptRecord
from .ids import CommitId, Digest, SnapshotId, record_digest

SNAPSHOT_DOMAIN = b"mlc.snapshot.v1\n"  # a snapshot is stored behind this line, so that its id is the digest of the stored bytes
Json = Any  # what canonical() accepts: dict[str, Json] | list | tuple | str | int | float | bool | None


def canonical(value: Json) -> bytes:
    """UTF-8 JSON with sorted keys, no white space and finite floats: equal values give equal bytes.

    Raises BadParameter for text that is not valid Unicode, as a shell may hand it over.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as fault:
        around = fault.object[max(0, fault.start - 20) : fault.end]
        raise BadParameter(f"a text holds bytes that are not valid UTF-8: {around!a}", hint="type it again in UTF-8") from fault


def _plain(value: Json) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("canonical records have text keys only")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Record:
    """Base of records: JSON in, JSON out, by field name; unknown keys are refused."""

    __slots__ = ()

    def to_json(self) -> dict[str, Json]:
        """A plain dict of JSON values, nested records included."""
        return {f.name: _dump(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: dict[str, Json]) -> Self:
        """The inverse of `to_json`. Raises CorruptRecord on a missing or unknown key."""
        hints = _hints(cls)
        if not isinstance(data, dict):
            raise CorruptRecord(f"a {cls.__name__} record is not a JSON object: {data!r:.80}")
        if unknown := set(data) - set(hints):
            raise CorruptRecord(f"{cls.__name__} record has unknown keys: {', '.join(sorted(unknown))}")
        try:
            return cls(**{key: _load(hints[key], value) for key, value in data.items()})
        except TypeError as fault:
            raise CorruptRecord(f"{cls.__name__} record is incomplete: {fault}") from fault

    def encode(self) -> bytes:
        """The canonical bytes of this record."""
        return canonical(self.to_json())


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _dump(value: Any) -> Json:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_dump(item) for item in value]
    if isinstance(value, dict):
        return {key: _dump(item) for key, item in value.items()}
    return value


def _load(hint: Any, value: Json) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _load(next(a for a in arguments if a is not types.NoneType), value)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    if origin is tuple:
        return tuple(_load(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _load(arguments[1], item) for key, item in value.items()}
    return value


# --- snapshots -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorEntry(Record):
    """One named tensor of a snapshot. `dtype` is the safetensors word, `digest` covers dtype, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest


@dataclass(frozen=True, slots=True)
class FileEntry(Record):
    """One file of a snapshot's directory, restorable to the byte.

    kind `blob`: `digest` names the whole content. kind `weights`: a safetensors file; `digest` names the verbatim
    header (the eight length bytes, the JSON and its padding) and `tensors` lists the names in data order, which
    follow the header without holes.
    """

    path: str  # relative, POSIX separators
    size: int
    sha256: str  # of the whole file: hub, OCI and OpenSSF signatures speak it
    kind: Literal["blob", "weights"]
    digest: Digest
    tensors: tuple[str, ...] = ()


class _Named(Record):
    """A record that remembers its id: encoding a snapshot takes milliseconds, and it is asked for its name again and again."""

    __slots__ = ("_name",)


@dataclass(frozen=True, slots=True)
class Snapshot(_Named):
    """The full set of named tensors and files at one moment. An adapter snapshot names the one it sits on."""

    tensors: tuple[TensorEntry, ...]  # sorted by name
    files: tuple[FileEntry, ...]  # sorted by path
    kind: Literal["model", "adapter"] = "model"
    base: SnapshotId | None = None

    @property
    def id(self) -> SnapshotId:
        """Content id: equal tensors and files give equal ids, whatever their storage."""
        name: SnapshotId | None = getattr(self, "_name", None)
        if name is None:
            name = SnapshotId(record_digest("mlc.snapshot.v1", self.encode()))
            object.__setattr__(self, "_name", name)
        return name


# --- commits ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OperationRecord(Record):
    """Which operation ran: catalog name, version of its code, every parameter after defaults."""

    name: str
    version: int
    params: dict[str, Json]


@dataclass(frozen=True, slots=True)
class InputRecord(Record):
    """One thing an operation read: data file, suite, policy, other commit."""

    role: str  # data, replay, suite, policy, commit, ...
    name: str  # basename only: never a path of this machine
    digest: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ArtifactRecord(Record):
    """Something an operation made that is kept for undo, transfer or reuse."""

    kind: str
    key: str
    digest: Digest
    bytes: int


@dataclass(frozen=True, slots=True)
class RuleOutcome(Record):
    """What one rule said. `sentence` is what people read; `got` is None when the metric was not a finite number."""

    rule: str
    metric: str
    suite: str | None
    outcome: Literal["pass", "fail", "warn", "waived", "skipped"]
    action: Literal["block", "warn"]
    limit: float | None
    got: float | None
    p: float | None
    n: int | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Waiver(Record):
    """A person's decision to let a failed rule pass, with reason and expiry."""

    rule: str
    reason: str
    author: str
    time: str
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """What the gate decided about a commit."""

    outcome: Literal["accepted", "refused", "ungated"]
    rules: tuple[RuleOutcome, ...] = ()
    against: CommitId | None = None
    waivers: tuple[Waiver, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit(Record):
    """One auditable change. The id covers every field; nothing here depends on how bytes are stored."""

    parents: tuple[CommitId, ...]
    snapshot: SnapshotId
    op: OperationRecord
    author: str
    time: str  # UTC, ISO 8601 with microseconds and Z
    message: str
    seeds: dict[str, int] = field(default_factory=dict)
    inputs: tuple[InputRecord, ...] = ()
    environment: dict[str, Json] = field(default_factory=dict)
    artifacts: tuple[ArtifactRecord, ...] = ()
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)  # suite -> metric -> value
    evaluations: dict[str, Digest] = field(default_factory=dict)  # suite -> Evaluation.id
    check: dict[str, Json] = field(default_factory=dict)
    verdict: Verdict = Verdict("ungated")
    version: int = 1

    @property
    def id(self) -> CommitId:
        """The commit id: BLAKE3 over domain and canonical bytes."""
        return CommitId(record_digest("mlc.commit.v1", self.encode()))


@dataclass(frozen=True, slots=True)
class TensorDelta(Record):
    """How one tensor of a commit was stored and how far it moved. Derived facts: not part of the commit id."""

    tensor: str
    base: Digest | None  # what it was encoded against
    target: Digest
    codec: str  # ref, raw, planes, sparse, dense, ...
    bytes_logical: int
    bytes_stored: int
    rank: int | None = None
    nnz: int | None = None  # changed elements against the tensor of the same name in the first parent
    l2: float | None = None
    rel_l2: float | None = None
    max_abs: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation(Record):
    """One suite measured on one snapshot. `predictions` names an Arrow IPC blob of per-example rows."""

    snapshot: SnapshotId
    suite: str
    suite_digest: str
    kind: str
    metrics: dict[str, float | None]
    n: int
    predictions: Digest
    scorer: str = "builtin:1"
    limit: int | None = None
    environment: dict[str, Json] = field(default_factory=dict)

    @property
    def id(self) -> Digest:
        """Content id of this evaluation."""
        return Digest(record_digest("mlc.evaluation.v1", self.encode()))


@dataclass(frozen=True, slots=True)
class RefUpdate(Record):
    """A compare-and-swap of one ref. None stands for "does not exist"."""

    name: str  # full name: heads/main
    old: CommitId | None
    new: CommitId | None
