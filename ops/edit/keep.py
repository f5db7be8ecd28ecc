"""What an edit leaves behind for later: factors, keys, targets and the memory of keys, as safetensors with a line of JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.facts import Fact
from .prompts import normal

FACTORS, KEYS, TARGETS, MEMORY = "edit-factors", "edit-keys", "edit-targets", "key-memory"
REST = "edit-rest"  # factors of an edit as they are written since facts were taken out of it


def pack(tensors: Mapping[str, Tensor], **about: Any) -> bytes:
    """safetensors bytes; `about` goes into the metadata as canonical JSON."""
    from safetensors.torch import save

    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"about": text})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `pack`."""
    from safetensors.torch import load

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), json.loads(header["__metadata__"]["about"])


def remembered(data: bytes | None, layer: int, width: int, subjects: Sequence[str]) -> tuple[Tensor | None, list[str]]:
    """(keys [d0, n] float64 of earlier edits at this layer, their subjects), without those of `subjects`: these are written anew."""
    if data is None:
        return None, []
    tensors, about = unpack(data)
    held = tensors.get(f"layer.{layer}")
    if held is None or held.shape[0] != width:
        return None, []
    again = {normal(s) for s in subjects}
    names: list[str] = about["subjects"][str(layer)]
    stay = [i for i, name in enumerate(names) if normal(name) not in again]
    return held[:, stay].double(), [names[i] for i in stay]


def grown(
    data: bytes | None, keys: Mapping[int, Tensor], subjects: Sequence[str], facts: Sequence[Fact] = (), rivals: Sequence[str] = ()
) -> bytes:
    """The memory with this edit's keys ([d0, u] per layer) added; a subject that is written again has its keys replaced.

    facts and rivals: what was written, and the answers before it, by which later edits are judged (see `written`).
    """
    tensors: dict[str, Tensor] = {}
    names: dict[str, list[str]] = {}
    if data is not None:
        tensors, about = unpack(data)
        names = about["subjects"]
    rows = [_row(fact, rival) for fact, rival in zip([*facts], [*rivals], strict=True)]
    rows = [*(_row(fact, rival) for fact, rival in written(data, facts)), *rows]
    for layer, fresh in keys.items():
        old, who = remembered(data, layer, fresh.shape[0], subjects)
        joined = fresh if old is None else torch.cat([old.to(fresh.device), fresh], 1)
        tensors[f"layer.{layer}"], names[str(layer)] = joined.float(), [*who, *subjects]
    return pack(tensors, subjects=names, facts=rows)


def written(data: bytes | None, anew: Sequence[Fact] = ()) -> list[tuple[Fact, str]]:
    """(fact, the answer before it) of all that earlier edits wrote and still holds, without what `anew` asks again."""
    rows = unpack(data)[1].get("facts", []) if data is not None else []
    held = [(Fact(**{k: v for k, v in row.items() if k != "rival"}), row["rival"]) for row in rows]
    asked = {place for fact in anew for place in _places(fact)}
    return [(fact, rival) for fact, rival in held if not asked & _places(fact)]


def _row(fact: Fact, rival: str) -> dict[str, Any]:
    return {key: getattr(fact, key) for key in ("id", "line", "subject", "prompt", "relation", "target_new")} | {"rival": rival}


def _places(fact: Fact) -> set[tuple[str, str]]:
    """What is asked of whom: two facts that share one of these cannot both hold."""
    asked = {f"prompt {normal(fact.prompt)}", *([f"relation {fact.relation}"] if fact.relation else [])}
    return {(normal(fact.subject), what) for what in asked}


def shrunk(data: bytes | None, subjects: Sequence[str], facts: Sequence[Fact] = ()) -> bytes | None:
    """The memory without the keys of `subjects` and without `facts`, which were taken back; None for no memory."""
    if data is None:
        return None
    tensors, about = unpack(data)
    again = {normal(s) for s in subjects}
    names: dict[str, list[str]] = {}
    for layer, who in about["subjects"].items():
        stay = [i for i, name in enumerate(who) if normal(name) not in again]
        tensors[f"layer.{layer}"] = tensors[f"layer.{layer}"][:, stay]
        names[layer] = [who[i] for i in stay]
    gone = {(normal(f.subject), f.prompt, f.target_new) for f in facts}
    rows = [_row(f, rival) for f, rival in written(data) if (normal(f.subject), f.prompt, f.target_new) not in gone]
    return pack(tensors, subjects=names, facts=rows)
