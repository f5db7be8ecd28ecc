"""Which weight files of a model a loader takes, and what its shard indexes say, also after tensors came, went or grew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..records import FileEntry, Snapshot, TensorEntry
from .index import INDEX_SUFFIX, parse_index, write_index
from .limits import DEFAULT
from .safetensors import byte_size
from .strict_json import read_object

if TYPE_CHECKING:
    from ..objects.store import ObjectStore

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS = "model.safetensors"


def choose_primary(paths: Iterable[str], indexes: dict[str, dict[str, str]]) -> tuple[str, ...]:
    """The files a loader would take: model.safetensors, else its index's shards, else an adapter's, else all of the top folder."""
    paths = sorted(paths)
    top = [path for path in paths if "/" not in path]
    shards = {path: sorted(set(found.values())) for path, found in indexes.items() if "/" not in path}
    for name in (MODEL_WEIGHTS, MODEL_WEIGHTS + ".index.json", ADAPTER_WEIGHTS):
        if name in top:
            return (name,)
        if name in shards:
            return tuple(shards[name])
    if shards:
        return tuple(shards[min(shards)])
    return tuple(top or paths)


def shard_maps(objects: ObjectStore, snapshot: Snapshot) -> dict[str, dict[str, str]]:
    """Path of each index -> tensor name -> path of its shard. An index that names files kept as opaque bytes is left out."""
    weights = {file.path for file in snapshot.files if file.kind == "weights"}
    maps = {file.path: parse_index(objects.blob(file.digest), path=file.path) for file in index_files(snapshot)}
    return {path: found for path, found in maps.items() if set(found.values()) <= weights}


def index_files(snapshot: Snapshot) -> list[FileEntry]:
    """The shard indexes among the files."""
    return [file for file in snapshot.files if file.kind == "blob" and file.path.endswith(INDEX_SUFFIX)]


def updated_indexes(
    objects: ObjectStore, parent: Snapshot, shards: Mapping[str, tuple[str, ...]], tensors: Mapping[str, TensorEntry]
) -> dict[str, bytes]:
    """New bytes for every index of `parent` that no longer fits: `shards` are the names each weight file holds now."""
    before = {entry.name: entry for entry in parent.tensors}
    found = {}
    for path, old in shard_maps(objects, parent).items():
        own = [shard for shard in dict.fromkeys(old.values()) if shard in shards]
        new = {name: shard for shard in own for name in shards[shard]}
        totals = _totals(before, old), _totals(tensors, new)
        if new != old or totals[0] != totals[1]:
            digest = next(file.digest for file in parent.files if file.path == path)
            content = read_object(objects.blob(digest), path=path, limit=DEFAULT.index_bytes)
            found[path] = _rewritten(path, content, new, *totals)
    return found


def _totals(entries: Mapping[str, TensorEntry], names: Mapping[str, str]) -> tuple[int, int]:
    """(bytes, elements) of the named tensors."""
    held = [entries[name] for name in names if name in entries]
    return sum(byte_size(e.dtype, e.shape) for e in held), sum(math.prod(e.shape) for e in held)


def _rewritten(path: str, content: dict[str, Any], new: dict[str, str], was: tuple[int, int], now: tuple[int, int]) -> bytes:
    metadata = content.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    for key, before, after in zip(("total_size", "total_parameters"), was, now, strict=True):
        if isinstance(metadata.get(key), int):
            metadata[key] += after - before  # a file's own way of counting (tied weights, say) is kept
        elif key == "total_size":
            metadata[key] = after
    folder = path.rpartition("/")[0]
    return write_index({name: shard.removeprefix(f"{folder}/") for name, shard in new.items()}, metadata)
