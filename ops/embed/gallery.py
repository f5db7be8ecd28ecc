"""A gallery: vectors in a safetensors file that says which version made them, so that nobody searches it with strangers' vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...registry.errors import BadInputFile, InputNotFound

if TYPE_CHECKING:
    from torch import Tensor

STAMP = "mlc.gallery"
METRIC = "cosine"


@dataclass(frozen=True)
class Gallery:
    """vectors: fp32 [items, size], unit length; ids: one per item; commit and snapshot: the version that made them."""

    vectors: Tensor
    ids: list[str]
    commit: str
    snapshot: str

    def to_bytes(self) -> bytes:
        """The file: one tensor `vectors`, and the stamp in its metadata."""
        from safetensors.torch import save

        stamp = {"commit": self.commit, "snapshot": self.snapshot, "metric": METRIC, "size": self.vectors.shape[1], "ids": self.ids}
        return save({"vectors": self.vectors.contiguous()}, metadata={STAMP: json.dumps(stamp)})


def read_gallery(path: Path) -> Gallery:
    """Raises InputNotFound, or BadInputFile for a file that is no gallery of ours."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputNotFound(f"the gallery does not exist: {path}", hint="mlc embed REV --data F --out GALLERY")
    try:
        with safe_open(str(path), "pt") as file:
            stamp = json.loads((file.metadata() or {}).get(STAMP, "null"))
            vectors = file.get_tensor("vectors") if stamp is not None else None
    except (SafetensorError, ValueError) as fault:
        raise BadInputFile(
            f"{path} cannot be read as a gallery: {fault}", hint="mlc embed REV --data F --out GALLERY", path=str(path)
        ) from None
    if stamp is None or vectors is None or vectors.dim() != 2 or len(vectors) != len(stamp.get("ids", ())):
        said = "does not say which version made its vectors" if vectors is None else "holds something else than one vector per id"
        raise BadInputFile(f"{path} {said}", hint="embed the texts again: mlc embed REV --data F --out GALLERY", path=str(path))
    return Gallery(vectors.float(), [str(i) for i in stamp["ids"]], stamp["commit"], stamp["snapshot"])


def read_texts(path: str) -> list[tuple[str, str]]:
    """(id, text) of every row: JSONL with `text` and perhaps `id`, else one text per line; without an id the number of the line.

    Raises InputNotFound, BadInputFile naming the line: a row without text, an id that comes twice.
    """
    place = Path(path)
    if not place.is_file():
        raise InputNotFound(f"there is no file {path}", hint="one JSON object per line with `text`, or one text per line")
    jsonl, seen = place.suffix.lower() in (".jsonl", ".ndjson", ".json"), {}
    found: list[tuple[str, str]] = []
    for number, line in enumerate(_utf8(place).split("\n"), 1):
        if not line.strip():
            continue
        ident, text = _row(place, number, line) if jsonl else (str(number), line.strip())
        if ident in seen:
            raise BadInputFile(
                f"{path}, line {number}: the id {ident!r} is already used in line {seen[ident]}", hint="make each id unique", path=path
            )
        seen[ident] = number
        found.append((ident, text))
    if not found:
        raise BadInputFile(f"{path} is empty", hint="one JSON object per line with `text`", path=path)
    return found


def _row(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise BadInputFile(
            f"{path}, line {number}: no JSON object with a `text`", hint='such as {"id": "a", "text": "..."}', path=str(path), line=number
        )
    return str(row.get("id", number)), row["text"]


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadInputFile(f"{path} is not UTF-8 text", hint="save it as UTF-8", path=str(path)) from None


def nearest(asking: Tensor, gallery: Gallery, count: int) -> list[list[tuple[str, float]]]:
    """Per query the `count` nearest items and their cosines, nearest first; equal ones by their place. asking: fp32 [q, size or more]."""
    from torch.nn.functional import normalize

    near = normalize(asking[:, : gallery.vectors.shape[1]].float(), dim=-1) @ normalize(gallery.vectors, dim=-1).T
    order = near.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return [[(gallery.ids[j], round(float(row[j]), 6)) for j in places.tolist()] for row, places in zip(near, order, strict=True)]


def ids_of(rows: Sequence[tuple[str, str]]) -> list[str]:
    """The ids of rows as `read_texts` gives them."""
    return [ident for ident, _ in rows]
