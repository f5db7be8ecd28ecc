"""What is dropped from a task vector before a merge: small entries (TIES), random ones (DARE, DELLA), small and very large (breadcrumbs).

Exact counts are kept, found by selection instead of a sort; among equals the first by index. In parity mode, where equals have to be
told apart, the order is that of mergekit's sort.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...kernels.select import kth_largest, top_k_masks
from .case import Draw, Threshold

SAMPLE = 1 << 15  # magnitudes that are looked at first
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


def threshold(x: Tensor, base: Tensor, density: float) -> Threshold:
    """Where a magnitude trim of x - base cuts: the smallest magnitude kept, and the last flat index kept among its equals.

    A sample tells between which two magnitudes the cut must lie; one pass counts what lies above and picks out what lies between, and only
    that is put in order. When the sample misled, everything is counted. Either way the answer is exact. Raises ValueError for NaN.
    """
    k = kept_count(x.numel(), density)
    if x.numel() >= 4 * SAMPLE and (found := _between(x.reshape(-1), base.reshape(-1), k)) is not None:
        return found
    scores = difference(x, base, torch.float32).abs_().reshape(-1)
    low = kth_largest([scores], k)
    equal = (scores == low).nonzero().reshape(-1)
    return low, int(equal[k - int((scores > low).sum()) - 1])


def _between(x: Tensor, base: Tensor, k: int) -> Threshold | None:
    n, step = x.numel(), x.numel() // SAMPLE
    sample = np.sort(difference(x[::step], base[::step], torch.float32).abs_().numpy())
    middle, spread = len(sample) * (1 - k / n), 3 * len(sample) ** 0.5  # six standard deviations of a quantile
    high, low = (sample[min(max(int(middle + s), 0), len(sample) - 1)] for s in (spread, -spread))
    room, over, values, places = torch.empty(2, LOOK, dtype=torch.float32), 0, [], []
    for start in range(0, n, LOOK):
        part = slice(start, min(start + LOOK, n))
        moved, known = room[:, : part.stop - part.start]
        torch.sub(moved.copy_(x[part]), known.copy_(base[part]), out=moved)
        if bool(torch.isnan(moved.abs_().amax())):
            return None
        scores = moved.numpy()
        above, inside = scores > high, scores >= low
        over += int(np.count_nonzero(above))
        at = np.flatnonzero(np.not_equal(above, inside, out=inside))
        values.append(scores[at])
        places.append(at + start)
    among, where, left = np.concatenate(values), np.concatenate(places), k - over
    if not 0 < left <= len(among):
        return None
    cut = np.partition(among, len(among) - left)[len(among) - left]
    equal = where[among == cut]
    return float(cut), int(equal[left - int(np.count_nonzero(among > cut)) - 1])


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
