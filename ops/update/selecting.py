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
from ..engine.local import placed, threads
from ..models import load_model
from .mixes import select_count

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

KIND = "selection"
TARGETS = 128  # rows of the target that are looked at, evenly spaced


def selected(op: Update, view: ModelView, run: Run, rows: Tensor, target: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The chosen rows of `rows` int64 [n, seq_len] and their places; an artifact says which. Raises BadParameter where there are fewer."""
    count = select_count(op)
    if count > len(rows):
        raise BadParameter(f"--select asks for {count} rows, and the data has {len(rows)}", hint=f"--select tarot:{len(rows) // 2}")
    aims = target[torch.linspace(0, len(target) - 1, min(TARGETS, len(target))).round().long()]
    key = f"{view.snapshot_id}/{blob_digest(rows.numpy().tobytes())}/{blob_digest(aims.contiguous().numpy().tobytes())}/{count}/{run.seed}"
    found = json.loads(run.artifact(KIND, key, lambda: canonical(_chosen(view, run, rows, aims, count))))
    return rows[torch.tensor(found)], tuple(found)


def _chosen(view: ModelView, run: Run, rows: Tensor, aims: Tensor, count: int) -> list[int]:
    with threads(run.threads):
        module = placed(load_model(view, dtype=torch.float32))
        ours = features(module, rows, run.seed, lambda done: run.progress("select", done, len(rows)))
        return nearest_fill(distances(ours, features(module, aims, run.seed)), count)
