"""What is dropped from a task vector before a merge: small entries (TIES), random ones (DARE, DELLA), small and very large (breadcrumbs).

Exact counts are kept, found by selection instead of a sort; among equals the first by index. In parity mode, where equals have to be
told apart, the order is that of mergekit's sort.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.merge import NEVER
from ...kernels.select import kth_largest, top_k_masks
from .case import Draw, Threshold

SMALL = 1 << 16  # elements up to which all magnitudes are counted, and no sample is taken
LOOK = 1 << 17  # elements of one step of a pass in memory that is used again
STEP = 1 << 16  # elements of one step: what fits a cache
TINY = 1e-7  # sums of magnitudes below this are not rescaled


def kept_count(n: int, density: float) -> int:
    """How many of n entries a magnitude trim keeps: at least one."""
    return max(1, int(density * n))


def difference(x: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """x - base, taken in `dtype`: in steps that fit a cache, since fresh memory costs more than the subtraction."""
    if x.dtype == base.dtype == dtype:
        return x - base
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    for new, one, other in zip(*(t.reshape(-1).split(STEP) for t in (out, x, base)), strict=True):
        torch.sub(one.to(dtype), other.to(dtype), out=new)
    return out


def thresholds(xs: Sequence[Tensor], base: Tensor, densities: Sequence[float]) -> list[Threshold]:
    """Where a magnitude trim of each x - base cuts: the smallest magnitude kept, and the last flat index kept among its equals.

    A sample tells between which two magnitudes a cut must lie; one pass over all counts what lies above and picks out what lies between,
    and only that is put in order. When the sample misled, everything is counted. Either way the answer is exact. Nothing is cut where the
    density is 1, or from a single number. Raises ValueError for NaN.
    """
    n, flat = base.numel(), base.reshape(-1)
    found: list[Threshold] = [(NEVER, -1)] * len(xs)
    cut = [i for i, density in enumerate(densities) if density < 1 and n >= 2]
    sought = [_Search(xs[i].reshape(-1), flat, kept_count(n, densities[i])) for i in cut] if n > SMALL else []
    room = torch.empty(2, min(LOOK, n), dtype=torch.float32)
    for start in range(0, n if sought else 0, LOOK):
        part = slice(start, min(start + LOOK, n))
        known = room[0, : part.stop - start].copy_(flat[part])
        for search in sought:
            search.look(part, known, room[1, : part.stop - start])
    for place, i in enumerate(cut):
        x, k = xs[i].reshape(-1), kept_count(n, densities[i])
        found[i] = (sought[place].found() if sought else None) or _counted(x, flat, k)
    return found


def stride(n: int) -> int:
    """From one element of a sample of n to the next: a larger sample costs more, a smaller one leaves more to be put in order."""
    return round(0.7 * n ** (1 / 3)) | 1  # odd: hardly any row is a whole number of strides


def _counted(x: Tensor, base: Tensor, k: int) -> Threshold:
    scores = difference(x, base, torch.float32).abs_()
    low = kth_largest([scores], k)
    equal = (scores == low).nonzero().reshape(-1)
    return low, int(equal[k - int((scores > low).sum()) - 1])


class _Search:
    """For the k-th greatest of the magnitudes of x - base, between two of a sample of them."""

    def __init__(self, x: Tensor, base: Tensor, k: int) -> None:
        self.x, self.base, self.left = x, base, k  # left: of the k, those that were not seen above yet
        step = stride(len(x))
        sample = np.sort(difference(x[::step], base[::step], torch.float32).abs_().numpy())
        m, share = len(sample), k / len(x)
        spread = 4 * (m * share * (1 - share)) ** 0.5 + 2  # four standard deviations of a quantile
        self.high, self.low = (sample[min(max(int(m * (1 - share) + s), 0), m - 1)] for s in (spread, -spread))
        self.between: list[np.ndarray] = []
        self.parts: list[slice] = []

    def look(self, part: slice, known: Tensor, moved: Tensor) -> None:
        """At a part of x; `known`: the same part of the base in float32; `moved`: room for as much."""
        scores = torch.sub(moved.copy_(self.x[part]), known, out=moved).abs_().numpy()
        above, below = scores > self.high, scores < self.low
        self.left -= int(np.count_nonzero(above))
        self.between.append(scores[np.flatnonzero(np.equal(above, below, out=below))])  # neither: NaN, too
        self.parts.append(part)

    def found(self) -> Threshold | None:
        """The cut; None when the sample misled, or for NaN."""
        among = np.concatenate(self.between)
        if not 0 < self.left <= len(among) or np.isnan(among).any():
            return None
        cut = np.partition(among, len(among) - self.left)[len(among) - self.left]
        left = self.left - int(np.count_nonzero(among > cut))
        for part, scores in zip(self.parts, self.between, strict=True):
            here = int(np.count_nonzero(scores == cut))
            if left <= here:
                moved = difference(self.x[part], self.base[part], torch.float32).abs_().numpy()
                return float(cut), part.start + int(np.flatnonzero(moved == cut)[left - 1])
            left -= here
        raise AssertionError("there are as many equals as were counted")


def magnitude_mask(delta: Tensor, density: float, parity: bool) -> Tensor:
    """Bool mask of the max(1, int(density n)) greatest magnitudes."""
    scores = _scores(delta)
    k = kept_count(scores.numel(), density)
    if parity and _split(scores, k):
        return _at(scores, torch.argsort(scores, descending=True)[:k]).reshape(delta.shape)
    return top_k_masks([scores], k)[0].reshape(delta.shape)


def outlier_mask(delta: Tensor, density: float, gamma: float, parity: bool) -> Tensor:
    """Bool mask without the int(gamma n) greatest magnitudes and without the smallest ones, int(density n) entries in all.

    When both do not fit, fewer of the greatest are dropped (Davari and Belilovsky, 2312.06795, with mergekit's counts).
    """
    scores = _scores(delta)
    n = scores.numel()
    kept = int(density * n)
    bottom = max(0, n - kept - int(gamma * n))
    if parity and (_split(scores, n - bottom) or _split(scores, n - bottom - kept)):
        return _at(scores, torch.sort(scores, descending=False).indices[bottom : bottom + kept]).reshape(delta.shape)
    below, above = (top_k_masks([scores], k)[0] for k in (n - bottom, n - bottom - kept))
    return (below & ~above).reshape(delta.shape)


def random_mask(delta: Tensor, density: float, draw: Draw) -> Tensor:
    """Zeros and ones, each one with probability `density` (Yu et al., 2311.03099)."""
    return draw(torch.full_like(delta, density, dtype=_drawn(delta)))


def rank_mask(delta: Tensor, density: float, epsilon: float, draw: Draw) -> Tensor:
    """Zeros and ones: the chance to be kept rises with the rank of the magnitude in its row, from density - epsilon to density + epsilon.

    Deep et al., 2406.11617 (MagPrune); a vector is one row. Rows of one entry are kept whole: they have no ranks.
    """
    rows = delta if delta.dim() >= 2 else delta.unsqueeze(0)
    if rows.shape[1] < 2:
        return torch.ones_like(delta)
    ranks = torch.argsort(torch.argsort(rows.abs(), dim=1), dim=1).to(_drawn(delta)) + 1
    least, most = ranks.min(dim=1, keepdim=True).values, ranks.max(dim=1, keepdim=True).values
    share = ((ranks - least) / (most - least)).clamp(0, 1)
    return draw((density - epsilon) + share * 2 * epsilon).reshape(delta.shape)


def masked(delta: Tensor, mask: Tensor, rescale: bool) -> Tensor:
    """delta where the mask is one, else zero; with `rescale` times sum |delta| / sum |kept|, so that the mass stays."""
    work = delta.to(_drawn(delta))
    kept = work * mask
    if rescale:
        before, after = work.abs().sum(), kept.abs().sum()
        if not (before < TINY or after < TINY):
            kept = kept * (before / after)
    return kept.to(delta.dtype)


def _drawn(delta: Tensor) -> torch.dtype:
    return delta.dtype if delta.dtype == torch.bfloat16 else torch.float32


def _scores(delta: Tensor) -> Tensor:
    return delta.abs().reshape(-1).to(torch.float32)


def _split(scores: Tensor, k: int) -> bool:
    """Whether a cut after the k greatest goes between equals."""
    return 0 < k < scores.numel() and int((scores >= kth_largest([scores], k)).sum()) != k


def _at(scores: Tensor, chosen: Tensor) -> Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[chosen] = True
    return mask
