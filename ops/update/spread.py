"""Which updates several processes can train: all whose steps need no more than rows, gradients and moments. Pure Python.

An option that is not named here is refused, so that a new one is never carried out by half.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train import Update

# What is decided before training begins, or works row by row and element by element.
SHARED = (
    "data", "steps", "lr", "batch", "seq_len", "expand", "where", "tune", "source", "init", "rank", "token", "mix", "mix_temperature",
    "mix_eta", "mix_window", "mix_every", "mix_graph", "mix_from", "select", "select_for", "dedup", "replay", "protect_rate",
    "protect_weight", "blend", "begin", "adapter", "holdout", "warmup", "decay", "slow", "weight_decay", "grad_accum", "clip",
    "precision", "save_every", "auto", "auto_keep",
)  # fmt: skip
VALUES: dict[str, tuple[Any, ...]] = {"protect": ("none", "spu"), "mix_policy": ("fixed", "learned")}


def alone(op: Update) -> str:
    """Why one process must train it, naming the option; "" when several can."""
    for field in fields(op):
        value = getattr(op, field.name)
        if field.name in SHARED or value == field.default or value in VALUES.get(field.name, ()):
            continue
        flag = (field.metadata.get("flag") or f"--{field.name.replace('_', '-')}").strip()
        said = f" {value}" if isinstance(value, str) else ""
        return f"{flag}{said} looks at the whole model or the whole batch in every step, which only one process has"
    return ""
