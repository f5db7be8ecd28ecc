"""How well vectors find each other: CMC and mAP of queries against a gallery, and what a gain between two versions is worth.

Formulas: cumulative matching characteristics (share of queries with a relevant item among the k nearest) and mean average precision.
Ties go to the lower index of the gallery, so the numbers do not depend on how a sort happens to break them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 1 << 24  # similarities held at once (64 MiB in fp32)


@dataclass(frozen=True, slots=True)
class Ranking:
    """One entry per query. nearest, first: int64 [queries]; precision: fp64 [queries].

    nearest: index of the nearest gallery item. first: rank (from 0) of the nearest relevant item, -1 where none is relevant.
    precision: average precision over the ranked gallery, 0 where none is relevant.
    """

    nearest: Tensor
    first: Tensor
    precision: Tensor

    def cmc(self, k: int) -> float:
        """Share of queries that find a relevant item among the k nearest."""
        return float(((self.first >= 0) & (self.first < k)).double().mean())

    def mean_precision(self) -> float:
        """mAP."""
        return float(self.precision.mean())


def rank(queries: Tensor, gallery: Tensor, relevant: Tensor) -> Ranking:
    """Search `queries` fp32 [q, d] in `gallery` fp32 [g, d] by cosine. relevant: bool [q, g]."""
    queries, gallery = normalize(queries.float(), dim=-1), normalize(gallery.float(), dim=-1)
    parts = []
    step = max(1, CHUNK // max(1, len(gallery)))
    for start in range(0, len(queries), step):
        near = queries[start : start + step] @ gallery.T
        parts.append(_rank(near, relevant[start : start + step]))
    return Ranking(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rank(near: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = near.argsort(dim=-1, descending=True, stable=True)
    hits = relevant.gather(1, order)
    found = hits.any(1)
    first = torch.where(found, hits.to(torch.int8).argmax(1), -1)
    places = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    precision = (hits.double().cumsum(1) / places * hits).sum(1) / hits.sum(1).clamp_min(1)
    return order[:, 0], first, precision


def same_label(queries: list[tuple[str, ...]], gallery: list[tuple[str, ...]]) -> Tensor:
    """bool [q, g]: the two share a label."""
    names = {name: i for i, name in enumerate(dict.fromkeys(label for labels in (*queries, *gallery) for label in labels))}

    def marks(rows: list[tuple[str, ...]]) -> Tensor:
        table = torch.zeros(len(rows), max(1, len(names)))
        for i, labels in enumerate(rows):
            table[i, [names[label] for label in labels]] = 1.0
        return table

    return marks(queries) @ marks(gallery).T > 0


@dataclass(frozen=True, slots=True)
class Gain:
    """B's queries in A's gallery against A's own: the mean difference, and its one-sided 95 % bound from a paired bootstrap."""

    mean: float
    lower95: float


SLACK = 0.01  # of mAP: where less than this is left to gain, as much may be lost


def compatible(lower95: float, own: float) -> bool:
    """BCT's criterion on the bound of the gain: the old gallery is surely searched better than by the old version itself.

    own: the old version's mAP in its own gallery. Where that is all but perfect nothing can be gained; then it must surely not be worse
    by SLACK.
    """
    return lower95 > 0.0 or (own > 1.0 - SLACK and lower95 > -SLACK)


def paired_gain(after: Tensor, before: Tensor, *, rounds: int = 2000, seed: int = 0) -> Gain:
    """after, before: one score per query, in the same order, [n]. Compatible when the lower bound is above zero."""
    apart = after.double() - before.double()
    chance = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(apart), (rounds, len(apart)), generator=chance)
    means = apart[picks].mean(1)
    return Gain(float(apart.mean()), float(means.quantile(0.05)))
