"""States by (parameter, kind): what one process wrote whole, or many in pieces, read by rows.

Names are `param.NAME`, `m.NAME`, `v.NAME` (moments), `t.NAME` (steps of the optimizer), `rng` or `rng.RANK`. In pieces each worker has a
consecutive range of the first dimension, and says which in its file's header; no process ever holds all of a tensor. Who reads asks
for the rows that it wants, whatever number of processes wrote (Universal Checkpointing, 2406.18820, with its atoms cut at read time).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...registry import fs
from ...registry.errors import CorruptRecord

PIECES, SHAPES = "pieces", "shapes"


class Atoms(Protocol):
    """A state, read by rows."""

    def names(self) -> frozenset[str]:
        """Everything that it holds."""
        ...

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows first <= i < last of dimension 0, on the CPU."""
        ...

    def whole(self, name: str) -> Tensor:
        """All of one tensor, on the CPU."""
        ...


class Held:
    """A state in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        return self._tensors[name][first:last]

    def whole(self, name: str) -> Tensor:
        return self._tensors[name]


class Filed:
    """A state in one safetensors file."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, "pt")
        self._names = frozenset(self._file.keys())

    def names(self) -> frozenset[str]:
        return self._names

    def rows(self, name: str, first: int, last: int) -> Tensor:
        return self._file.get_slice(name)[first:last]

    def whole(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class Pieces:
    """A state in a folder with one file per worker. Raises CorruptRecord where rows are missing."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._folder = folder
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}  # (first row, last row, file), in order
        self._loose: dict[str, Any] = {}  # what is not cut
        self._shapes: dict[str, list[int]] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            file = safe_open(path, "pt")
            said = json.loads((file.metadata() or {})["mlc"])
            self._shapes |= said[SHAPES]
            for name, (first, last) in said[PIECES].items():
                self._parts.setdefault(name, []).append((first, last, file))
            self._loose |= dict.fromkeys(set(file.keys()) - said[PIECES].keys(), file)

    def names(self) -> frozenset[str]:
        return frozenset(self._shapes) | frozenset(self._loose)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        found, at = [], first
        for begin, end, file in sorted(self._parts.get(name, []), key=lambda part: part[0]):
            if begin <= at < end and at < last:
                found.append(file.get_slice(name)[at - begin : min(end, last) - begin])
                at = min(end, last)
        if at < last or (not found and not self._parts.get(name)):
            raise CorruptRecord(f"{self._folder.name} lacks rows {at} to {last} of {name}", hint="start the run again without --resume")
        if not found:
            return self._parts[name][0][2].get_slice(name)[0:0]
        return found[0] if len(found) == 1 else torch.cat(found)

    def whole(self, name: str) -> Tensor:
        if name in self._loose:
            return self._loose[name].get_tensor(name)
        if name not in self._shapes:
            raise CorruptRecord(f"{self._folder.name} lacks {name}", hint="start the run again without --resume")
        return self.rows(name, 0, self._shapes[name][0])


def write_pieces(folder: Path, rank: int, tensors: Mapping[str, Tensor], rows: Mapping[str, tuple[int, int, tuple[int, ...]]]) -> None:
    """One worker's share, made durable before it gets its name.

    rows: by name (first row, last row, shape of the whole tensor); a tensor without an entry is not cut. Empty shares are left out.
    """
    from safetensors.torch import save_file

    kept = {n: t for n, t in tensors.items() if n not in rows or rows[n][0] < rows[n][1]}
    cut = {n: rows[n][:2] for n in kept if n in rows}
    head = json.dumps({PIECES: cut, SHAPES: {n: list(rows[n][2]) for n in tensors if n in rows}})
    folder.mkdir(parents=True, exist_ok=True)
    fresh, target = folder / f".{rank}.tmp", _file(folder, rank)
    save_file(kept, fresh, metadata={"mlc": head})
    with fresh.open("rb+") as file:
        fs.fsync_file(file.fileno())
    fs.rename(fresh, target)
    fs.fsync_dir(folder)


def complete(folder: Path, workers: int) -> bool:
    """Whether every worker has written its share."""
    return all(_file(folder, rank).is_file() for rank in range(workers))


def stream(atoms: Atoms, names: Iterator[str]) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors, one in memory at a time."""
    for name in names:
        yield name, atoms.whole(name)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05}.safetensors"
