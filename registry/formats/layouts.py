"""Which files an export consists of: those of the import, or the same tensors laid out anew as one file or as shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import BadParameter
from ..ids import Digest
from ..records import Snapshot, TensorEntry
from .index import INDEX_SUFFIX, write_index
from .safetensors import byte_size, parse_header, write_header
from .shards import choose_primary, shard_maps

if TYPE_CHECKING:
    from ..objects.store import ObjectStore

Layout = Literal["hf", "single", "shards"]


@dataclass(frozen=True, slots=True)
class OutFile:
    """A file to write: its first bytes, then tensors in order. `sha256` is known for files that were imported."""

    path: str
    head: bytes | Digest  # a digest names the stored blob that holds them
    tensors: tuple[str, ...] = ()
    sha256: str | None = None


def as_imported(snapshot: Snapshot) -> list[OutFile]:
    """The files of the snapshot as they were."""
    return [OutFile(file.path, file.digest, file.tensors, file.sha256) for file in snapshot.files]


def relayout(objects: ObjectStore, snapshot: Snapshot, layout: Layout, max_shard_size: int) -> list[OutFile]:
    """The files with the weights a loader would take laid out anew: one file, or shards of at most `max_shard_size` bytes and their index.

    Every other file stays as it was. Raises BadParameter for an unknown layout, a size below one, or a name that is taken.
    """
    if layout not in ("single", "shards") or max_shard_size < 1:
        raise BadParameter(f"there is no layout {layout!r} with shards of {max_shard_size} bytes", hint="--layout hf|single|shards")
    weights = {file.path: file for file in snapshot.files if file.kind == "weights"}
    maps = shard_maps(objects, snapshot)
    primary = choose_primary(weights, maps)
    replaced = {*primary, *(path for path, found in maps.items() if set(found.values()) <= set(primary))}
    kept = [file for file in as_imported(snapshot) if file.path not in replaced]
    entries = {entry.name: entry for entry in snapshot.tensors}
    names = [name for path in primary for name in weights[path].tensors]
    groups = [names] if layout == "single" else _groups([(name, _size(entries[name])) for name in names], max_shard_size)
    first = weights[primary[0]]
    metadata = parse_header(objects.blob(first.digest), path=first.path, size=first.size).metadata
    made = _shards("adapter_model" if snapshot.kind == "adapter" else "model", groups, entries, metadata)
    if taken := {file.path for file in kept} & {file.path for file in made}:
        raise BadParameter(f"{min(taken)} is already the name of another file of this model", hint="--layout hf")
    return kept + made


def _size(entry: TensorEntry) -> int:
    return byte_size(entry.dtype, entry.shape)


def _groups(sized: list[tuple[str, int]], limit: int) -> list[list[str]]:
    """Names in order, a new group whenever the next one would exceed the limit; a tensor larger than it stands alone."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, size in sized:
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def _shards(stem: str, groups: list[list[str]], entries: dict[str, TensorEntry], metadata: dict[str, str] | None) -> list[OutFile]:
    out, weight_map = [], {}
    for number, names in enumerate(groups, 1):
        part = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        path = f"{stem}{part}.safetensors"
        header = write_header([(name, entries[name].dtype, entries[name].shape) for name in names], metadata)
        out.append(OutFile(path, header.raw, tuple(entry.name for entry in header.entries)))
        weight_map |= dict.fromkeys(names, path)
    if len(groups) > 1:
        total = sum(_size(entries[name]) for name in weight_map)
        out.append(OutFile(f"{stem}{INDEX_SUFFIX}", write_index(weight_map, {"total_size": total})))
    return out
