"""Small stored models and derived tensors of them, for tests of derived storage."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from mlc.ops.base import SetTensor
from mlc.registry.delta.derived import Derived, derive
from mlc.registry.formats.directory import ingest, rebuild, scan
from mlc.registry.ids import CommitId
from mlc.registry.records import Commit, OperationRecord, RefUpdate, Snapshot, TensorDelta
from mlc.registry.repository import Repository

Tensors = dict[str, torch.Tensor]


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Like weights, from integers: the same on every processor."""
    random = torch.randint(-(1 << 20), 1 << 20, shape, generator=torch.Generator().manual_seed(seed))
    return (random.to(torch.float32) * 2.0**-25).to(dtype)


def model(tensors: int = 4, shape: tuple[int, ...] = (24, 32), seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    return {f"layers.{i}.weight": weights(*shape, seed=1000 * seed + i, dtype=dtype) for i in range(tensors)}


def imported(repo: Repository, folder: Path, tensors: Tensors, branch: str) -> CommitId:
    """A root commit of these tensors on a branch of its own."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    with repo.ingest() as tx:
        snapshot, *_ = ingest(tx, scan(folder))
        tx.put_snapshot(snapshot)
        return commit(repo, tx, snapshot, [], branch)


def commit(repo: Repository, tx, snapshot: Snapshot, deltas: list[TensorDelta], branch: str, *parents: CommitId) -> CommitId:
    record = Commit(parents, snapshot.id, OperationRecord("test", 1, {}), "ann", "2026-01-01T00:00:00.000000Z", f"on {branch}")
    refs = [RefUpdate(f"heads/{branch}", repo.refs.read(f"heads/{branch}"), record.id)]
    return tx.commit(record, refs=refs, deltas=deltas)


def changed(repo: Repository, parent: CommitId, changes, branch: str) -> tuple[CommitId, list[TensorDelta]]:
    """A commit of changes on `parent`, and its delta records."""
    with repo.ingest() as tx:
        snapshot, deltas = rebuild(tx, repo.snapshot(repo.commit(parent).snapshot), iter(changes))
        return commit(repo, tx, snapshot, deltas, branch, parent), deltas


def made(repo: Repository, function: str, numbers: tuple[float, ...], *sources: CommitId, dtype: torch.dtype = torch.float32, cuts=()):
    """SetTensor of every tensor of the first source: the function of the tensors of that name in all of them."""
    views = [repo.view(source) for source in sources]
    for name in views[0].names():
        derived = Derived(function, tuple(view.entry(name).digest for view in views), numbers, cuts=cuts)
        tensors = {view.entry(name).digest: view.tensor(name) for view in views}
        read = lambda digest, rows, tensors=tensors: tensors[digest][rows]  # noqa: E731
        yield SetTensor(name, derive(derived, read, dtype, views[0].entry(name).shape), derived=derived)


def recipes(repo: Repository) -> list[bytes]:
    """The recipes in a registry, as they are stored."""
    blobs = [info for info in repo.objects.iter_infos() if info.kind == "blob"]
    return [bytes(repo.objects.payload(i.digest)) for i in blobs if repo.objects.blob(i.digest).startswith(b"mlc.recipe.v1\n")]
