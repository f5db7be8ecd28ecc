"""fp32 or bf16 autocast: `auto` takes bf16 only where it was measured to pay."""

from __future__ import annotations

from typing import Any

import torch

from ..engine.base import Precision

BF16_WIDTH = 1024  # below this width the casts cost more than the multiplications save on a CPU


def choose_precision(asked: str, config: dict[str, Any]) -> Precision:
    """`fp32` or `bf16` as asked; for `auto`, bf16 on a GPU that has it, and on a CPU with bf16 units for wide models only."""
    if asked in ("fp32", "bf16"):
        return asked  # type: ignore[return-value]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    width = config.get("hidden_size") or config.get("n_embd") or 0
    return "bf16" if width >= BF16_WIDTH and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
