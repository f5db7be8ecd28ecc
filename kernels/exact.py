"""The pinned elementwise functions that restoring may use: IEEE arithmetic in a stated type and order, never fused.

A version that is stored as "this function of stored tensors" must come back to the bit on every machine. IEEE defines single additions,
subtractions, multiplications and roundings to the bit; it does not define what a matrix product, a fused multiply-add or a sum over an axis
does inside. Hence each step below is an operator of its own, operands are float32 or float64 (narrower types are widened by `widen`, which
is exact, and narrowed by `round_to`), and nothing in this file is fused, multiplies matrices or sums: a test reads the source to make sure.
Every NaN that leaves `round_to` is the one canonical NaN, since processors disagree about the payload.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)
CHUNK = 1 << 18  # elements of one step of add_rank1_terms: as much as a processor's cache holds; no bit depends on it
GRAIN = (1 << 15) - 64  # the same when torch has several threads: below what it hands to them, for on a busy machine they wait


def widen(x: Tensor) -> Tensor:
    """x in float32 (float64 stays): exact for every floating type, nothing is rounded."""
    if not x.is_floating_point():
        raise TypeError(f"only floats can be widened, not {x.dtype}")
    return x if x.dtype in WIDE else x.to(torch.float32)


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, each element rounded once to their common type (float32 or float64)."""
    return torch.add(*_wide(a, b))


def sub(a: Tensor, b: Tensor) -> Tensor:
    """a - b, each element rounded once to their common type (float32 or float64)."""
    return torch.sub(*_wide(a, b))


def mul(a: Tensor, b: Tensor) -> Tensor:
    """a * b, each element rounded once to their common type (float32 or float64)."""
    return torch.mul(*_wide(a, b))


def div(a: Tensor, b: Tensor) -> Tensor:
    """a / b, each element rounded once to their common type (float32 or float64)."""
    return torch.div(*_wide(a, b))


def scale(x: Tensor, factor: float) -> Tensor:
    """x times a number that is first rounded to x's type (float32 or float64)."""
    return mul(x, torch.tensor(factor, dtype=x.dtype, device=x.device))


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (float32 or float64) rounded to the nearest value of `dtype`, ties to even; every NaN becomes the canonical one.

    Raises RuntimeError when this thread flushes tiny numbers to zero: its results would not be IEEE's.
    """
    _wide(x, x)
    if _flushes():
        raise RuntimeError("tiny numbers are flushed to zero here; call torch.set_flush_denormal(False) before restoring")
    out = x.to(dtype)
    if x.numel() and bool(torch.isnan(torch.amax(x))):  # a maximum rounds nothing, and is NaN if anything is
        out = torch.where(torch.isnan(x), torch.tensor(float("nan"), dtype=torch.float32, device=x.device).to(dtype), out)
    return out


def add_rank1_terms(w: Tensor, up: Tensor, down: Tensor, factor: float = 1.0) -> Tensor:
    """w + factor * up @ down, defined to the bit: rank-1 terms are added one after another in float32, then rounded to w's type.

    Args: w `[out, in]`, up `[out, r]`, down `[r, in]`, any floating types. In order: `d = scale(down, factor)`, `y = w`; for each k:
    `y = add(y, mul(up[:, k], d[k]))`; at last `round_to(y, w.dtype)`. Returns `[out, in]` in w's type.
    """
    if up.dim() != 2 or down.dim() != 2 or tuple(w.shape) != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
        raise ValueError(f"{list(up.shape)} times {list(down.shape)} does not make {list(w.shape)}")
    columns, down = up.to(torch.float32).t().contiguous(), scale(down.to(torch.float32), factor)
    out, rows = torch.empty_like(w), max(1, _chunk() // max(1, w.shape[1]))
    sums, term = torch.empty(2, min(rows, len(w)), w.shape[1], dtype=torch.float32, device=w.device)  # fresh memory costs more than sums
    for start in range(0, len(w), rows):
        part = slice(start, min(start + rows, len(w)))
        y, product = sums[: part.stop - start], term[: part.stop - start]
        y.copy_(w[part])
        for k in range(len(down)):
            torch.mul(columns[k, part, None], down[k : k + 1], out=product)
            torch.add(y, product, out=y)
        out[part] = round_to(y, w.dtype)
    return out


def weighted_sum(xs: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype, total: float | None = None) -> Tensor:
    """(w_1 x_1 + w_2 x_2 + ...) / total, defined to the bit: summed in float32 in the order given, at last rounded to `dtype`.

    Args: `xs` of one shape and of types that float32 holds; as many weights. Numbers are first rounded to float32. In order:
    `y = scale(x_1, w_1)`; for each further k: `y = add(y, scale(x_k, w_k))`; with a total `y = div(y, total)`.
    """
    _single(xs, weights)
    y = scale(widen(xs[0]), weights[0])
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        y = add(y, scale(widen(x), weight))
    return round_to(_shared(y, total), dtype)


def task_sum(
    base: Tensor, xs: Sequence[Tensor], weights: Sequence[float], factor: float, dtype: torch.dtype, total: float | None = None
) -> Tensor:
    """base + factor * (w_1 (x_1 - base) + ...) / total, defined to the bit: in float32, in the order given, at last rounded to `dtype`.

    In order: `y = scale(sub(x_1, base), w_1)`; for each further k: `y = add(y, scale(sub(x_k, base), w_k))`; with a total
    `y = div(y, total)`; `add(base, scale(y, factor))`.
    """
    _single((base, *xs), (factor, *weights))
    known = widen(base)
    y = scale(sub(widen(xs[0]), known), weights[0])
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        y = add(y, scale(sub(widen(x), known), weight))
    return round_to(add(known, scale(_shared(y, total), factor)), dtype)


def _shared(y: Tensor, total: float | None) -> Tensor:
    return y if total is None else div(y, torch.tensor(total, dtype=y.dtype, device=y.device))


def _single(xs: Sequence[Tensor], numbers: Sequence[float]) -> None:
    if len(xs) != len(numbers) or not len(xs):
        raise ValueError(f"{len(xs)} tensors cannot be combined with {len(numbers)} numbers")
    if any(tuple(x.shape) != tuple(xs[0].shape) or x.dtype == torch.float64 for x in xs):
        raise ValueError("only tensors of one shape, and of types that float32 holds, can be combined")


def _chunk() -> int:
    return CHUNK if torch.get_num_threads() == 1 else GRAIN


def _wide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dtype != b.dtype or a.dtype not in WIDE:
        raise TypeError(f"exact arithmetic needs two float32 or two float64 tensors, not {a.dtype} and {b.dtype}")
    return a, b


def _flushes() -> bool:
    tiny = torch.tensor(1e-45, dtype=torch.float32)
    return not bool(tiny + tiny > tiny)
