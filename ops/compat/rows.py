"""Which anchors go into which step. A row of a mixture stands for an anchor by its number, so shares and order are those of replay."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...registry.ids import blob_digest
from ..data.mixing import Mixture, Source
from .anchors import Anchors

LEAST = 20  # records below which none is kept out of training


def with_anchors(mixture: Mixture | None, anchors: Anchors, chosen: Sequence[int], share: float, *, batch: int, seed: int) -> Mixture:
    """The mixture with `share` of its rows given to the chosen anchors, as its last source; anchors alone where there is no mixture."""
    width = mixture.seq_len if mixture is not None else 1
    numbers = torch.zeros(len(chosen), width, dtype=torch.int64)
    numbers[:, 0] = torch.tensor(list(chosen))
    sources = [Source(s.name, s.rows, s.share * (1 - share), s.origin) for s in mixture.sources] if mixture is not None else []
    taken = share if sources else 1.0
    return Mixture([*sources, Source(f"anchors/{anchors.digest()[:16]}", numbers, taken)], batch=batch, seed=seed)


def kept_out(anchors: Anchors, share: float) -> tuple[list[int], list[int]]:
    """(trained on, only measured) numbers of anchors: chosen by content, not by seed. Too few to spare any: all are in both."""
    everything = list(range(len(anchors)))
    if not share or len(everything) < LEAST:
        return everything, everything
    digest = anchors.digest()
    order = sorted(everything, key=lambda i: blob_digest(f"{digest}/{i}".encode()))
    spared = sorted(order[: math.ceil(share * len(everything))])
    return sorted(set(everything) - set(spared)), spared
