"""The shard index beside a sharded model (`*.safetensors.index.json`): read strictly, written as transformers writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import BadInputFile
from .limits import DEFAULT, Limits
from .names import bad_path, bad_tensor_name, shown
from .safetensors import Header
from .strict_json import read_object

INDEX_SUFFIX = ".safetensors.index.json"


def parse_index(data: bytes, *, path: str, limits: Limits = DEFAULT) -> dict[str, str]:
    """Tensor name -> path of its shard, relative to the source's root.

    Raises BadInputFile for anything but an object with a `weight_map` of safe names to safetensors files beside or below the index.
    """
    content = read_object(data, path=path, limit=limits.index_bytes, limits=limits)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputFile(f"{path} has no weight_map of tensor names to shards", path=path)
    if len(weight_map) > limits.tensors_per_model:
        raise BadInputFile(f"{path} names {len(weight_map)} tensors, more than the limit of {limits.tensors_per_model}", path=path)
    folder = path.rpartition("/")[0]
    return {_name(name, path, limits): _shard(shard, folder, path, limits) for name, shard in weight_map.items()}


def check_index(path: str, weight_map: Mapping[str, str], headers: Mapping[str, Header]) -> list[str]:
    """Compare an index with the headers of its shards. Raises BadInputFile; returns warnings about tensors it does not name."""
    holds = {shard: {entry.name for entry in headers[shard].entries} for shard in set(weight_map.values()) if shard in headers}
    for name, shard in weight_map.items():
        if shard not in holds:
            raise BadInputFile(f"{path} names the shard {shown(shard)}, which is missing", path=path, hint="fetch the missing shard")
        if name not in holds[shard]:
            raise BadInputFile(f"{path} says that {shown(shard)} holds tensor {shown(name)}, which it does not", path=path)
    extra = sum(len(names - weight_map.keys()) for names in holds.values())
    return [f"{path} does not name {extra} of the tensors in its shards"] if extra else []


def write_index(weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> bytes:
    """The bytes of an index, names sorted and indented by two, as transformers writes it."""
    return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n").encode()


def _name(name: str, path: str, limits: Limits) -> str:
    if fault := bad_tensor_name(name, limits):
        raise BadInputFile(f"{path} names a tensor that {fault}: {shown(name)}", path=path)
    return name


def _shard(shard: Any, folder: str, path: str, limits: Limits) -> str:
    fault = "is not text" if not isinstance(shard, str) else bad_path(shard, limits)
    if fault is None and not shard.endswith(".safetensors"):
        fault = "is not a safetensors file"
    if fault is not None:
        raise BadInputFile(f"{path} points to the shard {shown(shard)}, which {fault}", path=path, hint="a shard lies beside its index")
    return f"{folder}/{shard}" if folder else shard
