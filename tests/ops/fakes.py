"""An in-memory ModelView and Run for tests of floor 2: the same interface as the registry's, without a registry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from mlc.ops.base import Change, CopyTensor, DropTensor, SetFile, SetTensor
from mlc.registry.delta.derived import Derived, derive
from mlc.registry.ids import SnapshotId, blob_digest, tensor_digest
from mlc.registry.records import FileEntry, InputRecord, Snapshot, TensorEntry

WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


STORED: dict[str, torch.Tensor] = {}  # what any view ever held, by digest


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The little-endian row-major bytes of a tensor."""
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


class MemoryObjects:
    """Blobs by digest, as a view's object store holds them."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def keep(self, data: bytes) -> str:
        """Store bytes; returns their digest."""
        digest = blob_digest(data)
        self.blobs[digest] = data
        return digest

    def blob(self, digest: str) -> bytes:
        return self.blobs[digest]


class MemoryView:
    """A ModelView over a dict of tensors and a dict of files."""

    def __init__(self, tensors: dict[str, torch.Tensor], files: dict[str, bytes], *, adapter: bool = False) -> None:
        self._tensors = dict(tensors)
        self._files = dict(files)
        self.adapter = adapter
        self.objects = MemoryObjects()
        self._entries = {name: _entry(name, tensor) for name, tensor in sorted(tensors.items())}
        self.reads: list[str] = []
        STORED.update({entry.digest: tensors[name] for name, entry in self._entries.items()})
        self.snapshot = Snapshot(
            tuple(self._entries.values()),
            tuple(FileEntry(p, len(b), "0" * 64, "blob", blob_digest(b)) for p, b in sorted(files.items())),
            "adapter" if adapter else "model",
        )

    @classmethod
    def of(cls, directory: Path) -> MemoryView:
        """The view of a Hugging Face directory with safetensors weights."""
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(directory.glob("*.safetensors")):
            tensors |= load_file(path)
        return cls(tensors, {p.name: p.read_bytes() for p in directory.iterdir() if p.suffix == ".json"})

    @property
    def snapshot_id(self) -> SnapshotId:
        return self.snapshot.id

    @property
    def config(self) -> dict[str, Any] | None:
        data = self._files.get("config.json")
        return None if data is None else json.loads(data)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def has(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name: str) -> TensorEntry:
        return self._entries[name]

    def raw(self, name: str) -> memoryview:
        self.reads.append(name)
        return memoryview(raw_bytes(self._tensors[name]))

    def tensor(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self._tensors[name].clone()

    def lent(self, name: str) -> torch.Tensor:
        return self.tensor(name)

    def derive(self, derived: Derived, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return derive(derived, lambda digest, rows: STORED[digest][rows] if shape else STORED[digest], dtype, shape)

    promise = derive  # what storage will compute, computed here

    def primary_names(self) -> tuple[str, ...]:
        return self.names()

    def files(self) -> tuple[FileEntry, ...]:
        return self.snapshot.files

    def file(self, path: str) -> bytes | None:
        return self._files.get(path)

    def digests(self) -> dict[str, str]:
        """Digests recomputed from the tensors as they are now: shows whether anybody wrote into them."""
        return {name: _entry(name, tensor).digest for name, tensor in self._tensors.items()}

    def after(self, changes: Iterable[Change], *, adapter: bool = False) -> MemoryView:
        """The view that results from `changes`, as the registry would rebuild it."""
        tensors = {} if adapter else dict(self._tensors)
        files = {} if adapter else dict(self._files)
        for change in changes:
            match change:
                case SetTensor(name, data):
                    tensors[name] = data.detach().clone()
                case CopyTensor(name, source):
                    tensors[name] = self._tensors[source]
                case DropTensor(name):
                    del tensors[name]
                case SetFile(path, None):
                    files.pop(path, None)
                case SetFile(path, data):
                    files[path] = data
        return MemoryView(tensors, files, adapter=adapter)

    def save(self, directory: Path) -> Path:
        """Write the view as a directory that other tools can load."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        weights = "adapter_model.safetensors" if self.adapter else "model.safetensors"
        save_file({n: t.contiguous() for n, t in self._tensors.items()}, directory / weights, metadata={"format": "pt"})
        for path, data in self._files.items():
            (directory / path).write_bytes(data)
        return directory


def _entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    word, shape = WORDS[tensor.dtype], tuple(tensor.shape)
    return TensorEntry(name, word, shape, tensor_digest(word, shape, [raw_bytes(tensor)]))


class Killed(Exception):
    """Raised by a MemoryRun that was told to die."""


class MemoryRun:
    """A Run that keeps everything in memory and can be told to die after a saved step."""

    def __init__(self, *, seed: int = 0, threads: int = 1, scratch: Path | None = None, die_after: int | None = None) -> None:
        self.id, self.seed, self.threads = "test", seed, threads
        self.scratch = scratch or Path("unused")
        self.engine: Any = None
        self.die_after = die_after
        self.notes: list[str] = []
        self.records: dict[str, Any] = {}
        self.inputs: list[InputRecord] = []
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.ancestry: dict[str, bytes] = {}
        self.keeps: dict[tuple[str, str], bytes] = {}
        self.versions: dict[str, MemoryView] = {}
        self.computed = 0
        self.steps: list[tuple[str, int, int, dict[str, float]]] = []
        self.state: tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None = None

    def progress(self, phase: str, done: int, total: int, **values: float) -> None:
        self.steps.append((phase, done, total, values))
        if self.die_after is not None and phase == "train" and done == self.die_after:
            raise Killed

    def note(self, text: str) -> None:
        self.notes.append(text)

    def record(self, key: str, value: Any) -> None:
        self.records[key] = json.loads(json.dumps(value, allow_nan=False))

    def input(self, record: InputRecord) -> None:
        self.inputs.append(record)

    def artifact(self, kind: str, key: str, compute: Callable[[], bytes]) -> bytes:
        if (kind, key) not in self.artifacts:
            self.computed += 1
            self.artifacts[kind, key] = compute()
        return self.artifacts[kind, key]

    def kept(self, rev: str, kind: str) -> bytes | None:
        return self.keeps.get((rev, kind))

    def inherited(self, kind: str) -> bytes | None:
        return self.ancestry.get(kind)

    def pseudonym(self, data: bytes, *, scope: str = "request") -> str:
        key = blake3(scope.encode()).digest()
        return f"hmac:{scope}:{blake3(data, key=key).hexdigest()}"

    def version(self, rev: str) -> MemoryView:
        return self.versions[rev]

    def save_state(self, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        self.state = (step, {k: v.detach().clone() for k, v in tensors.items()}, json.loads(json.dumps(meta)))

    def load_state(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        return self.state
