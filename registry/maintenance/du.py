"""What history costs on disk, and what plain copies of it would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog.queries import StorageRow, logical_bytes, storage
from ..records import Json

PARTS = ("objects", "journal", "catalog.duckdb", "refs", "runs", "quarantine", "tmp")  # below .mlc; the rest counts as `other`


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes. `logical_bytes` is what a full copy of every recorded version's directory would take; `parts` sum to `total_bytes`."""

    total_bytes: int
    logical_bytes: int
    by: list[StorageRow]
    parts: dict[str, int]

    @property
    def ratio(self) -> float | None:
        """Bytes on disk per byte of content; None for an empty registry."""
        return self.total_bytes / self.logical_bytes if self.logical_bytes else None

    def to_json(self) -> dict[str, Json]:
        """The document of `mlc du --json`."""
        rows = {row.key: {"objects": row.objects, "bytes_logical": row.bytes_logical, "bytes_stored": row.bytes_stored} for row in self.by}
        return {"total_bytes": self.total_bytes, "logical_bytes": self.logical_bytes, "ratio": self.ratio, "by": rows, "parts": self.parts}


def du(repo: Any, by: str = "codec") -> Usage:
    """Disk use by `codec` (of all stored objects), `op` or `branch` (of the tensors their commits changed). Raises BadParameter."""
    rows = storage(repo, by)
    logical = logical_bytes(repo)
    sizes = _sizes(repo.path)
    parts = {part: sizes.pop(part, 0) for part in PARTS}
    parts["other"] = sum(sizes.values())
    return Usage(sum(parts.values()), logical, rows, parts)


def _sizes(root: Path) -> dict[str, int]:
    """Bytes below each entry of a directory; files that vanish meanwhile count nothing."""
    sizes: dict[str, int] = {}
    for path in root.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if not path.is_dir() or path.is_symlink():
            top = path.relative_to(root).parts[0]
            sizes[top] = sizes.get(top, 0) + status.st_size
    return sizes
