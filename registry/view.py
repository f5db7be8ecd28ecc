"""What operations see of a version: named tensors, read lazily, verified on every read; and an adapter merged into its base.

Nothing here writes, and nothing from a model runs. torch is imported when the first tensor is asked for.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import Incompatible, NotFound, ShapeMismatch
from .formats import peft
from .formats.configs import parse, sanitised
from .formats.names import shown
from .formats.shards import ADAPTER_CONFIG, choose_primary, shard_maps
from .formats.torch_bytes import from_tensor, to_tensor
from .ids import Digest, SnapshotId, record_digest, short
from .records import FileEntry, Snapshot, TensorEntry, canonical

if TYPE_CHECKING:
    import torch

    from .delta.derived import Derived
    from .objects.store import ObjectStore
    from .repository import Repository

PLAIN = ("F64", "F32", "F16", "BF16")  # types whose bytes are lent


def open_view(repo: Repository, snapshot_id: SnapshotId) -> ModelView:
    """The view of a snapshot; an adapter whose base is known is seen on its base, and `.own` is the adapter alone.

    Raises Incompatible for a kind of adapter that cannot be merged, ShapeMismatch for one that does not fit, IntegrityError for damage.
    """
    snapshot = repo.snapshot(snapshot_id)
    own = ModelView(repo.objects, snapshot, snapshot_id)
    if snapshot.kind != "adapter" or snapshot.base is None:
        return own
    return EffectiveView(open_view(repo, snapshot.base), own)


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
        chosen = choose_primary(weights, shard_maps(self.objects, self.snapshot))
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

    def lent(self, name: str) -> torch.Tensor:
        """The tensor as `tensor` gives it, in memory that others may read, too: never to be written into.

        While somebody holds it, storage finds its bytes there, and decodes them for no one else.
        """
        entry = self.entry(name)
        if entry.dtype not in PLAIN:
            return self.tensor(name)
        from .delta.buffers import borrow, dtype_of

        return borrow(self.objects.lent(entry.digest), dtype_of(entry.dtype)).view(entry.shape)

    def derive(self, derived: Derived, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor that `derived` describes, of any tensors that are stored beside this version: storage computes it, and only once."""
        from .delta.buffers import dtype_of
        from .delta.derived import FLOATS

        return self.objects.derive(derived, {dtype_of(word): word for word in FLOATS}[dtype], shape)

    def promise(self, derived: Derived, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """The same for a `SetTensor` with this `derived`, on the `meta` device: storage computes it piece by piece, when it stores it."""
        import torch

        return torch.empty(shape, dtype=dtype, device="meta")

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


class EffectiveView(ModelView):
    """An adapter on its base, with the interface of a model: the tensors it changes are merged when asked for, one at a time.

    Merging is W + scale * B @ A as rank-one terms in fp32, in a fixed order, rounded once to the base's type: the same bytes on every
    machine. `snapshot` and `snapshot_id` are the adapter's; `base` and `own` are the two views it is made of.
    """

    def __init__(self, base: ModelView, own: ModelView) -> None:
        super().__init__(own.objects, own.snapshot, own.snapshot_id)
        self.base, self.own = base, own
        config = parse(ADAPTER_CONFIG, own.file(ADAPTER_CONFIG) or b"{}") or {}
        if (reason := peft.unsupported(config)) is not None:
            raise Incompatible(
                f"adapter {short(own.snapshot_id)} cannot be merged into its base: {reason}", hint="mlc export writes it out as it is"
            )
        adapter = {name: own.entry(name).shape for name in own.names()}
        self._plan = peft.plan_merge(config, adapter, {name: base.entry(name).shape for name in base.names()})
        self._tensors = {entry.name: entry for entry in map(self._merged_entry, {*base.names(), *self._plan.replaced})}

    @property
    def plan(self) -> peft.MergePlan:
        """Which tensors of the base the adapter changes, and by which of its own."""
        return self._plan

    def changed_names(self) -> tuple[str, ...]:
        """Names of the tensors that differ from the base's, sorted."""
        return tuple(sorted({*self._plan.replaced, *self._plan.added}))

    def primary_names(self) -> tuple[str, ...]:
        """The base's, and what the adapter adds."""
        return tuple(sorted({*self.base.primary_names(), *self._plan.replaced}))

    def raw(self, name: str) -> memoryview:
        """Bytes of a tensor after the merge."""
        if name in self._plan.added:
            return from_tensor(self.tensor(name))[2]
        return self.own.raw(self._plan.replaced[name]) if name in self._plan.replaced else self.base.raw(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor after the merge, in the base's type."""
        entry = self.entry(name)
        weight = self.own.tensor(self._plan.replaced[name]) if name in self._plan.replaced else self.base.tensor(name)
        term = self._plan.added.get(name)
        if term is None:
            return weight
        if entry.dtype not in ("F32", "BF16", "F16"):  # the sum is taken in fp32: F64 would lose bits, eight-bit types nearly all
            raise ShapeMismatch(f"tensor {shown(name)} is of type {entry.dtype}, to which an adapter cannot be added")
        return _add(weight, self.own.tensor(term.up), self.own.tensor(term.down), term)

    def lent(self, name: str) -> torch.Tensor:
        """The tensor after the merge; one that the adapter does not change is lent by what holds it."""
        plan = self._plan
        return self.tensor(name) if name in plan.added or name in plan.replaced else self.base.lent(name)

    def files(self) -> tuple[FileEntry, ...]:
        """The files of base and adapter; where both have a path, the one that `file` reads."""
        paths = {entry.path: entry for entry in (*self.base.files(), *self.own.files())}
        paths |= {entry.path: entry for entry in self.base.files() if entry.path == "config.json"}
        return tuple(paths[path] for path in sorted(paths))

    def file(self, path: str) -> bytes | None:
        """A file of the adapter, else of the base; config.json is always the base's, which says how the model is built."""
        own = self.own.file(path) if path != "config.json" else None
        return own if own is not None else self.base.file(path)

    def _merged_entry(self, name: str) -> TensorEntry:
        """Type and shape after the merge. The digest of a merged tensor names what it is made of: its bytes are stored nowhere."""
        source = self.own.entry(self._plan.replaced[name]) if name in self._plan.replaced else self.base.entry(name)
        term, digest = self._plan.added.get(name), source.digest
        if term is not None:
            parts = [digest, self.own.entry(term.up).digest, self.own.entry(term.down).digest, term.scale, term.transposed]
            digest = Digest(record_digest("mlc.merged.v1", canonical(parts)))
        return TensorEntry(name, source.dtype, source.shape, digest)


def _add(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, term: peft.LowRank) -> torch.Tensor:
    """weight + scale * up @ down, where a convolution's kernel counts as columns and a transposed weight takes the transposed product."""
    from ..kernels.exact import add_rank1_terms

    rank = down.shape[0]
    up, down = up.reshape(-1, rank), down.reshape(rank, -1)  # [out, r], [r, in]
    if term.transposed:
        up, down = down.T.contiguous(), up.T.contiguous()
    return add_rank1_terms(weight.reshape(len(up), -1), up, down, term.scale).reshape(weight.shape)
