"""A hand-made history: real records, a journal in a list, objects in a dict. For tests of what is derived from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlc.registry.catalog import Catalog
from mlc.registry.errors import MissingObject
from mlc.registry.ids import CommitId, SnapshotId, blob_digest, record_digest
from mlc.registry.records import Commit, Evaluation, OperationRecord, Snapshot, TensorDelta, TensorEntry, canonical


@dataclass
class Line:
    """One journal record."""

    seq: int
    prev: str
    hash: str
    txid: str
    time: str
    author: str
    body: dict[str, Any]


class Journal(list):
    """A journal in memory: `head` and `records` as the real one has them."""

    def head(self) -> tuple[int, str]:
        return (self[-1].seq, self[-1].hash) if self else (0, "")

    def records(self, after_seq: int = 0) -> Iterator[Line]:
        return iter(self[after_seq:])


class OpenLocks:
    """Locks that count and never wait; `held` is what a test may look at."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.taken: list[str] = []

    @contextmanager
    def _take(self, how: str, name: str):
        assert not self.held, f"{how} {name} asked for while {self.held} is held"
        self.held.append(f"{how} {name}")
        self.taken.append(f"{how} {name}")
        try:
            yield
        finally:
            self.held.pop()

    def shared(self, name: str):
        return self._take("shared", name)

    def exclusive(self, name: str):
        return self._take("exclusive", name)


@dataclass
class Packed:
    """What an index says of an object."""

    digest: str
    kind: str = "tensor"
    raw_size: int = 100
    stored_size: int = 40
    codec: str = "dense"
    base: str | None = None
    depth: int = 0


class Objects(dict):
    """Blobs by name; packs by id."""

    def __init__(self) -> None:
        super().__init__()
        self.packs: dict[str, list[Packed]] = {}
        self.pack_set = self

    def blob(self, digest: str) -> bytes:
        if digest not in self:
            raise MissingObject(f"object {digest} is not in the registry")
        return self[digest]

    def records(self, pack: str) -> list[Packed]:
        if pack not in self.packs:
            raise MissingObject(f"pack {pack} is not in the registry")
        return self.packs[pack]


@dataclass
class History:
    """Enough of a repository for the catalog: `path`, `journal`, `objects`, `locks`, `warnings`, `catalog`."""

    path: Path
    journal: Journal = field(default_factory=Journal)
    objects: Objects = field(default_factory=Objects)
    locks: OpenLocks = field(default_factory=OpenLocks)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "objects" / "commits").mkdir(parents=True)
        self.catalog = Catalog(self.path / "catalog.duckdb", self.locks)
        self._clock = itertools.count()
        self.record({"kind": "init"})

    def now(self) -> str:
        n = next(self._clock)
        return f"2026-01-{1 + n // 86400:02}T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}.000000Z"

    def record(self, body: dict[str, Any]) -> Line:
        seq, prev = self.journal.head()
        line = Line(seq + 1, prev, record_digest("test", f"{prev}{body}".encode()), f"tx{seq + 1}", self.now(), "ann", body)
        self.journal.append(line)
        return line

    def blob(self, value: Any) -> str:
        data = value if isinstance(value, bytes) else canonical(value)
        self.objects[blob_digest(data)] = data
        return blob_digest(data)

    def snapshot(self, **tensors: str) -> SnapshotId:
        """A snapshot of F32 tensors of shape (4, 2); the value of each stands for its content."""
        entries = tuple(TensorEntry(name, "F32", (4, 2), blob_digest(f"{name}{value}".encode())) for name, value in sorted(tensors.items()))
        snapshot = Snapshot(entries, ())
        self.objects[snapshot.id] = b"mlc.snapshot.v1\n" + snapshot.encode()
        return snapshot.id

    def commit(
        self,
        *parents: str,
        tensors: dict[str, str],
        branch: str | None = "main",
        op: str = "update",
        deltas: list[TensorDelta] | None = None,
        pack: list[Packed] | None = None,
        **fields: Any,
    ) -> str:
        """Record a commit; `fields` are those of Commit. Returns its id."""
        operation = OperationRecord(op, 1, {"lr": 0.001})
        told = {"author": "ann", "time": self.now(), "message": f"commit {len(self.journal)}"} | fields
        commit = Commit(tuple(map(CommitId, parents)), self.snapshot(**tensors), operation, **told)
        (self.path / "objects" / "commits" / f"{commit.id}.json").write_bytes(commit.encode())
        name = None
        if pack:
            name = blob_digest(repr(pack).encode())
            self.objects.packs[name] = pack
        refs = [{"name": f"heads/{branch}", "old": parents[0] if parents else None, "new": commit.id}] if branch else []
        blob = self.blob([delta.to_json() for delta in deltas]) if deltas is not None else None
        self.record({"kind": "commit", "commit": commit.id, "pack": name, "deltas": blob, "refs": refs, "reason": op})
        return commit.id

    def snapshot_of(self, commit: str) -> str:
        return json.loads((self.path / "objects" / "commits" / f"{commit}.json").read_bytes())["snapshot"]

    def evaluate(
        self, commit: str, rows: dict[str, list], *, suite: str = "facts", limit: int | None = None, metrics: dict | None = None
    ) -> int:
        """Record an evaluation; `rows` are columns (example, answer, correct, slice; the others are filled in). Returns its number."""
        return self.record_evaluation(self.evaluation(commit, rows, suite=suite, limit=limit, metrics=metrics))

    def evaluation(
        self, commit: str, rows: dict[str, list], *, suite: str = "facts", limit: int | None = None, metrics: dict | None = None
    ):
        data = arrow(rows)
        n = len(rows["example"])
        return Evaluation(
            self.snapshot_of(commit),
            suite,
            blob_digest(suite.encode()),
            "cloze",
            metrics or {"accuracy": 0.5},
            n,
            self.blob(data),
            limit=limit,
        )

    def record_evaluation(self, evaluation: Evaluation) -> int:
        return self.record({"kind": "evaluation", "evaluation": self.blob(evaluation.encode()), "pack": None}).seq


def arrow(rows: dict[str, list]) -> bytes:
    """The columnar object of an evaluation."""
    import pyarrow as pa

    n = len(rows["example"])
    full = {"answer": ["x"] * n, "correct": [True] * n, "score": [0.5] * n, "logprob": [-1.0] * n, "slice": [None] * n} | rows
    kinds = {
        "example": pa.string(),
        "answer": pa.string(),
        "correct": pa.bool_(),
        "score": pa.float64(),
        "logprob": pa.float64(),
        "slice": pa.string(),
    }
    table = pa.table({name: pa.array(full[name], kind) for name, kind in kinds.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def dump(history: Any) -> dict[str, list]:
    """Every table of the catalog, sorted: what two catalogs of one history must share."""

    def ask(connection: Any) -> dict[str, list]:
        tables = [row[0] for row in connection.execute("select table_name from duckdb_tables() where not internal order by 1").fetchall()]
        return {table: sorted(map(repr, connection.execute(f"from {table}").fetchall())) for table in tables}

    return history.catalog.read(history, ask)
