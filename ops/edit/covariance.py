"""The uncentred second moment of keys, C = E[k k^T]: which directions ordinary text uses at the input of an MLP output matrix.

Streamed in float64 over rows of text, kept as an artifact of (everything below the matrix, layer, rows): an edit changes only what lies
above, so its descendants find the same artifact again. One matrix of float64 [d0, d0] per layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import Incompatible
from ...registry.ids import blob_digest
from ..arch import Family, layer_of, role_of
from ..data.corpus import read_corpus
from ..data.packing import Marks, pack
from ..models import load_core_tokenizer, special_tokens
from ..update.replay import sampled_rows
from .site import Editable

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run

KIND = "covariance"
TEXT = "edit-text"
LENGTH = 128  # tokens per row, or the window where that is shorter
PER_KEY = 96  # tokens of text per dimension of a key
LEAST, MOST = 64, 2048  # rows
TOGETHER = 16  # rows in one pass
CHUNK = 1 << 14  # keys whose products are summed at once


@dataclass(frozen=True, slots=True)
class Moment:
    """C [d0, d0] float64 and how many keys it is the mean of."""

    matrix: Tensor
    keys: int
    key: str = ""  # of the artifact it came from


def ordinary_rows(path: str | None, view: ModelView, run: Run, width: int) -> Tensor:
    """int64 [n, length] of ordinary text: the file's, or sampled from the model (once: descendants inherit the rows)."""
    from safetensors.torch import load, save

    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    window = (view.config or {}).get("max_position_embeddings") or (view.config or {}).get("n_positions") or LENGTH
    length = min(LENGTH, int(window))
    wanted = min(MOST, max(LEAST, math.ceil(PER_KEY * width / length)))
    if path is None:
        if (kept := run.inherited(TEXT)) is not None:
            run.artifact(TEXT, blob_digest(kept), lambda: kept)  # handed on to this version's descendants
            return load(kept)["rows"].long()
        rows = sampled_rows(view, run, count=wanted, length=length, first=marks.first)[0]
        data = save({"rows": rows.to(torch.int32)})
        run.artifact(TEXT, blob_digest(data), lambda: data)
        return rows
    corpus = read_corpus(path, role="covariance")
    run.input(corpus.record)
    rows = pack(corpus, core, marks, length).train
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), wanted)).round().long()
    return rows[chosen]


def moments(model: Editable, layers: Iterable[int], rows: Tensor, run: Run) -> dict[int, Moment]:
    """C of each layer, from the store or in one pass over the rows for those that are missing. Raises Incompatible for a wrong shape."""
    data = blob_digest(rows.to(torch.int32).numpy().tobytes())
    found = {}
    for layer in layers:
        key = f"{below(model.view, model.family, layer)}/{layer}/{data}"
        stored = run.artifact(KIND, key, lambda layer=layer, key=key: pack_moment(stream(model, layer, rows, run), key))
        found[layer] = unpack_moment(stored, model.weight(layer).shape[1], key)
    return found


def below(view: ModelView, family: Family, layer: int) -> str:
    """Digest over every tensor that a key of this layer depends on: all but this MLP's output and what lies behind it."""
    parts = []
    for name in view.primary_names():
        place = layer_of(family, name)
        role = role_of(family, name)[1]
        after = place is not None and (place[0] > layer or (place[0] == layer and role == "mlp.out"))
        if not after and not (place is None and role in ("norm.final", "head")):
            parts.append(f"{name}={view.entry(name).digest}")
    return blob_digest("\n".join(sorted(parts)).encode())


@torch.no_grad()
def stream(model: Editable, layer: int, rows: Tensor, run: Run) -> Moment:
    """One pass over the rows; blocks behind the layer are not run. Products in float64, summed CHUNK keys at a time."""
    width = model.weight(layer).shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    count = 0
    for start in range(0, len(rows), TOGETHER):
        run.progress("covariance", start, len(rows))
        keys = model.keys_everywhere(rows[start : start + TOGETHER], layer).double()
        for part in keys.split(CHUNK):
            total += (part.T @ part).cpu()
        count += len(keys)
    run.progress("covariance", len(rows), len(rows))
    return Moment((total + total.T) / (2 * count), count)


def pack_moment(moment: Moment, key: str = "") -> bytes:
    """safetensors: `moment` float64 [d0, d0], `keys` int64; in the metadata the digests of what it was measured on (`key`)."""
    from safetensors.torch import save

    return save({"moment": moment.matrix.contiguous(), "keys": torch.tensor([moment.keys])}, {"of": key})


def unpack_moment(data: bytes, width: int, key: str = "") -> Moment:
    """The moment, if it was measured on what `key` names and belongs to keys of this width. Raises Incompatible when not."""
    from safetensors.torch import load

    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    if key and about.get("of") and about["of"] != key:
        raise Incompatible(
            f"the second moments belong to {about['of'][:12]}, and not to what lies below this matrix ({key[:12]}): another model's",
            hint="--covariance TEXT measures them anew, on another text",
        )
    held: dict[str, Any] = load(data)
    if tuple(held["moment"].shape) != (width, width):
        raise Incompatible(
            f"the second moments are of keys of {held['moment'].shape[0]} numbers, this layer's keys have {width}: another model's"
        )
    return Moment(held["moment"], int(held["keys"][0]), key)
