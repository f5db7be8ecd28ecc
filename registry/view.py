"""What operations see of a version: named tensors, read lazily, verified on every read; and an adapter merged into its base.

Nothing here writes, and nothing from a model runs. torch is imported when the first tensor is asked for.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import NotFound
from .formats.configs import parse, sanitised
from .formats.names import shown
from .formats.source import choose_primary
from .formats.torch_bytes import to_tensor
from .ids import SnapshotId
from .records import FileEntry, Snapshot, TensorEntry

if TYPE_CHECKING:
    import torch

    from .objects.store import ObjectStore


class ModelView:
    """The tensors and files of one snapshot. Cheap to make; bytes are read when asked for."""

    def __init__(self, objects: ObjectStore, snapshot: Snapshot, snapshot_id: SnapshotId | None = None) -> None:
        self.objects = objects
        self.snapshot = snapshot
        self.snapshot_id: SnapshotId = snapshot_id or snapshot.id
        self._tensors = {entry.name: entry for entry in snapshot.tensors}
        self._files = {entry.path: entry for entry in snapshot.files}

    @property
    def adapter(self) -> bool:
        """Whether this is an adapter, seen alone or on its base."""
        return self.snapshot.kind == "adapter"

    # --- tensors ---------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def primary_names(self) -> tuple[str, ...]:
        """Names that a loader would take: those of model.safetensors or its shards; further weight files are left out."""
        weights = {entry.path: entry for entry in self.snapshot.files if entry.kind == "weights"}
        chosen = choose_primary(weights, self._shard_maps(weights))
        return tuple(sorted(name for path in chosen for name in weights[path].tensors))

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def entry(self, name: str) -> TensorEntry:
        """Type, shape and digest of a tensor. Raises NotFound."""
        try:
            return self._tensors[name]
        except KeyError:
            raise NotFound(f"the model has no tensor {shown(name)}", hint="mlc show REV --tensors lists them") from None

    def raw(self, name: str) -> memoryview:
        """Little-endian row-major bytes of a tensor, verified; not to be written into. Raises NotFound, IntegrityError."""
        return self.objects.tensor_bytes(self.entry(name).digest)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored type, on the CPU, in memory of its own: writing into it harms nobody."""
        entry = self.entry(name)
        return to_tensor(entry.dtype, entry.shape, self.raw(name))

    # --- files -----------------------------------------------------------------------------------------------

    def files(self) -> tuple[FileEntry, ...]:
        """All files of the directory, sorted by path."""
        return self.snapshot.files

    def file(self, path: str) -> bytes | None:
        """The content of an opaque file, verified; None when there is none of that path. Weight files are read by tensor."""
        entry = self._files.get(path)
        return None if entry is None or entry.kind == "weights" else self.objects.blob(entry.digest)

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """config.json without the keys that name code, kernels or repositories; None for a model that has no config.

        The file itself, as it was imported, is `file("config.json")`.
        """
        data = self.file("config.json")
        return None if data is None else sanitised(parse("config.json", data))

    def _shard_maps(self, weights: dict[str, FileEntry]) -> dict[str, dict[str, str]]:
        from .formats.index import INDEX_SUFFIX, parse_index

        indexes = [path for path in self._files if path.endswith(INDEX_SUFFIX)]
        maps = {path: parse_index(self.objects.blob(self._files[path].digest), path=path) for path in indexes}
        return {path: found for path, found in maps.items() if set(found.values()) <= set(weights)}
