"""Text sampled from the parent itself: old text for when the old data is gone.

The rows are an artifact of (snapshot, seed, count, length), so a second update of the same parent does not sample again. Sampling is
at temperature 1 without truncation: what is wanted is the parent's own distribution, not its best sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import Incompatible

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run

KIND = "self-replay"
CAP = 2048  # rows; beyond that they are read again (a second epoch of sampled text costs less than sampling on)
SPARE = 32  # further rows that are measured and never trained on
TOGETHER = 256  # rows sampled in one batch


def sampled_rows(view: ModelView, run: Run, *, count: int, length: int, first: int | None) -> tuple[Tensor, Tensor]:
    """(rows to train on, rows to measure on), int64 [n, length], each row from `first` on. Raises Incompatible without `first`."""
    if first is None:
        raise Incompatible("the tokenizer has neither BOS nor EOS, so the model cannot be asked for text", hint="use --replay FILE:RATIO")
    total = min(count, CAP) + SPARE
    key = f"{view.snapshot_id}/{run.seed}/{total}/{length}"
    data = run.artifact(KIND, key, lambda: _pack(_sample_view(view, run, total, length, first)))
    rows = _unpack(data)
    return rows[SPARE:], rows[:SPARE]


def _sample_view(view: ModelView, run: Run, count: int, length: int, first: int) -> Tensor:
    from ..engine.local import device, placed, threads
    from ..models import load_model

    module = placed(load_model(view, dtype=torch.float32))
    parts = []
    with threads(run.threads):
        generator = torch.Generator(device=device()).manual_seed(run.seed)
        for start in range(0, count, TOGETHER):
            run.progress("sample", start, count)
            parts.append(sample(module, min(TOGETHER, count - start), length, first, generator))
    run.progress("sample", count, count)
    return torch.cat(parts).cpu()


@torch.no_grad()
def sample(module: Any, count: int, length: int, first: int, generator: torch.Generator) -> Tensor:
    """int64 [count, length] sampled token by token from `first`, with a key-value cache. After an end mark the text goes on."""
    ids = torch.full((count, length), first, dtype=torch.int64, device=generator.device)
    cache = None
    for position in range(1, length):
        out = module(input_ids=ids[:, position - 1 : position], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chances = torch.softmax(out.logits[:, -1].float(), dim=-1)
        ids[:, position] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return ids


def _pack(rows: Tensor) -> bytes:
    from safetensors.torch import save

    return save({"rows": rows.to(torch.int32)})


def _unpack(data: bytes) -> Tensor:
    from safetensors.torch import load

    return load(data)["rows"].long()
