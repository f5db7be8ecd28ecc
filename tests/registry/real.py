"""A real registry with a small history: deltas, a fork, an evaluation, a refused candidate, tags; built in half a second."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from mlc.registry.ids import CommitId, Digest
from mlc.registry.records import (
    ArtifactRecord,
    Commit,
    Evaluation,
    FileEntry,
    OperationRecord,
    RefUpdate,
    Snapshot,
    TensorDelta,
    TensorEntry,
    Verdict,
)
from mlc.registry.repository import Repository
from mlc.tests.registry.history import arrow

SHAPE = (24, 32)


def weights(seed: int) -> list[float]:
    """A tensor's values, reproducible."""
    chance = random.Random(seed)
    return [chance.gauss(0, 0.02) for _ in range(SHAPE[0] * SHAPE[1])]


def nudged(values: list[float], seed: int) -> list[float]:
    """The same, moved a little."""
    chance = random.Random(seed)
    return [value + chance.gauss(0, 1e-6) for value in values]


def packed(values: list[float]) -> bytes:
    """Little-endian F32."""
    return struct.pack(f"<{len(values)}f", *values)


def add(
    repo: Repository, tensors: dict[str, list[float]], *parents: CommitId, branch: str | None = "main", config: str = "{}", **fields
) -> CommitId:
    """Commit F32 tensors, coded against the first parent's, with one weights file and one config. (Without tensors no torch is loaded.)"""
    with repo.ingest() as tx:
        before = {e.name: e.digest for e in repo.snapshot(repo.commit(parents[0]).snapshot).tensors} if parents else {}
        entries, deltas = [], []
        for name, values in sorted(tensors.items()):
            data = packed(values)
            digest = tx.put_tensor("F32", SHAPE, data, base=before.get(name), reference=before.get(name))
            info = tx.info(digest)
            entries.append(TensorEntry(name, "F32", SHAPE, digest))
            deltas.append(TensorDelta(name, info.base, digest, info.codec, info.raw_size, info.stored_size))
        header, settings = tx.put_blob(b"header of " + " ".join(tensors).encode()), tx.put_blob(config.encode())
        files = (
            FileEntry("config.json", len(config), "0" * 64, "blob", settings),
            FileEntry("model.safetensors", len(b"header of " + " ".join(tensors).encode()) + sum(4 * len(v) for v in tensors.values()),
                      "1" * 64, "weights", header, tuple(tensors)),
        )  # fmt: skip
        snapshot = tx.put_snapshot(Snapshot(tuple(entries), files))
        told = {"author": "ann", "time": "2026-01-01T00:00:00.000000Z", "message": "a commit"} | fields
        commit = Commit(parents, snapshot, told.pop("op", OperationRecord("update", 1, {"lr": 0.001})), **told)
        old = repo.refs.read(f"heads/{branch}") if branch else None
        return tx.commit(commit, refs=[RefUpdate(f"heads/{branch}", old, commit.id)] if branch else [], reason="update", deltas=deltas)


def evaluate(repo: Repository, commit: CommitId, right: list[bool], suite: str = "facts") -> Digest:
    """Record an evaluation of a commit."""
    rows = {"example": [f"e{i}" for i in range(len(right))], "correct": right}
    with repo.ingest() as tx:
        blob = tx.put_blob(arrow(rows))
        metrics = {"accuracy": sum(right) / len(right)}
        return tx.record_evaluation(Evaluation(repo.commit(commit).snapshot, suite, "s" * 64, "cloze", metrics, len(right), blob))


def small_history(place: Path) -> Repository:
    """import - update - update on main, a fork on dev, a refused candidate without a ref, two evaluations, a tag, an artifact."""
    repo = Repository.init(place)
    first = {"a": weights(1), "b": weights(2)}
    one = add(repo, first, op=OperationRecord("import", 1, {}), message="one")
    second = first | {"a": nudged(first["a"], 3)}
    with repo.ingest() as tx:
        artifact = ArtifactRecord("fisher", "key", tx.put_blob(b"importance of weights"), 21)
        tx.record({"kind": "note", "text": "an artifact was kept"})
    two = add(repo, second, one, message="two", artifacts=(artifact,))
    add(repo, second | {"b": nudged(first["b"], 4)}, two, message="three", metrics={"facts": {"accuracy": 0.5}})
    fork = add(repo, first | {"c": weights(5)}, one, branch=None, message="fork")
    repo.move_refs([RefUpdate("heads/dev", None, fork)], reason="branch", author="ann")
    add(repo, first | {"a": weights(6)}, two, branch=None, message="refused", verdict=Verdict("refused", against=two))
    evaluate(repo, one, [True, False, True])
    evaluate(repo, two, [True, True, False])
    repo.move_refs([RefUpdate("tags/v1", None, two)], reason="tag", author="ann")
    repo.catalog.load_predictions(repo)
    return Repository.open(place)
