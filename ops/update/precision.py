"""fp32 or bf16 autocast: `auto` takes bf16 only where it was measured to pay."""

from __future__ import annotations

from typing import Any

import torch

from ..engine.base import Precision

# Forward and backward of two Llama blocks on 512 tokens, one core with AVX512-BF16, bf16 time over fp32 time:
# width 128: 0.66, 256: 0.49, 512: 0.39, 1024: 0.32. Below 256 what is saved is not worth the lost digits.
BF16_WIDTH = 256


def choose_precision(asked: str, config: dict[str, Any]) -> Precision:
    """`fp32` or `bf16` as asked; for `auto`, bf16 on a GPU that has it, and on a CPU with bf16 units unless the model is small."""
    if asked in ("fp32", "bf16"):
        return asked  # type: ignore[return-value]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    width = config.get("hidden_size") or config.get("n_embd") or 0
    return "bf16" if width >= BF16_WIDTH and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); where it does not, bf16 is emulated and slower than fp32."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)
