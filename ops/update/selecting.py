"""`--select tarot:N --select-for FILE`: of the rows of `--data` the N that serve FILE best. See data/selection.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.errors import BadParameter
from ...registry.ids import blob_digest
from ...registry.records import canonical
from ..data.selection import distances, features, nearest_fill
from ..engine.documents import reads_apart
from ..engine.local import placed, threads
from ..models import load_model
from .mixes import select_count

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from ..data import Packed
    from .train import Update

KIND = "selection"
TARGETS = 128  # rows of the target that are looked at, evenly spaced


def selected(op: Update, view: ModelView, run: Run, packed: Packed, target: Packed) -> tuple[Tensor, tuple[int, ...]]:
    """The chosen training rows int64 [n, seq_len] of `packed` and their places; an artifact says which.

    Both are read as training reads them. Raises BadParameter where there are fewer rows than are asked for.
    """
    count, rows = select_count(op), packed.train
    if count > len(rows):
        raise BadParameter(f"--select asks for {count} rows, and the data has {len(rows)}", hint=f"--select tarot:{len(rows) // 2}")
    aims = target.train[torch.linspace(0, len(target.train) - 1, min(TARGETS, len(target.train))).round().long()]
    key = f"{view.snapshot_id}/{blob_digest(rows.numpy().tobytes())}/{blob_digest(aims.contiguous().numpy().tobytes())}/{count}/{run.seed}"
    if packed.begin is not None or target.begin is not None:
        key += "/apart"  # chosen by gradients of documents that were read as one text, it is another choice
    parts = (rows, packed.begin), (aims, target.begin)
    found = json.loads(run.artifact(KIND, key, lambda: canonical(_chosen(view, run, *parts, count))))
    return rows[torch.tensor(found)], tuple(found)


_Part = tuple[Tensor, int | None]  # rows, and what begins a document in them


def _chosen(view: ModelView, run: Run, ours: _Part, theirs: _Part, count: int) -> list[int]:
    with threads(run.threads):
        module = placed(load_model(view, dtype=torch.float32))
        apart = [begin if begin is not None and reads_apart(module, begin) else None for _, begin in (ours, theirs)]
        found = features(module, ours[0], run.seed, lambda done: run.progress("select", done, len(ours[0])), apart[0])
        return nearest_fill(distances(found, features(module, theirs[0], run.seed, begin=apart[1])), count)
