"""A dense delta against a forecast: the base plus a low-rank update whose factors are a few small integers per row and column.

The steps of a short fine-tune are far from random: the gradients of a few batches have low rank, and so has most of what they did to a
matrix (rank 8 explains 40 to 90 % of the energy of 20 AdamW steps). The factors are fitted once, rounded to 8-bit integers and stored; the
reader applies them through `kernels.exact.add_rank1_terms`, which is defined to the bit, and adds the integer residual. Fitting uses matrix
products and may differ between machines: it decides how short the delta is, never what it decodes to.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.exact import add_rank1_terms
from ..errors import CorruptRecord
from .against import Base, decode_dense, encode_dense
from .buffers import lend
from .crew import one_thread
from .entropy import Chunks, decode_section, encode_section

RANK = 8
SMALLEST = 64  # rows and columns: below, the factors cost more than they save
ENERGY = 0.2  # share of the update that must be explained before it is tried
GLANCE = 256  # rows that are looked at before all are
PIECE = 1 << 17  # elements that are subtracted at a time
FINENESS = 4  # units of the forecast per standard deviation of what it leaves
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD = struct.Struct("<BbHI")  # rank, exponent of the unit, zero, columns


@dataclass(frozen=True, slots=True)
class Forecast:
    """A block that is whole rows, forecast as its base plus a low-rank update."""

    base: Base  # [n]
    up: Tensor  # int8 [rows, r]
    down: Tensor  # int8 [r, columns]
    exponent: int  # of the unit: the update is up @ down * 2^exponent

    def part(self, wanted: slice) -> Tensor:
        """Elements `wanted` of the forecast: the rows they lie in are computed."""
        columns = self.down.shape[1]
        first, last = wanted.start // columns, -(-wanted.stop // columns)
        rows, up = self.base(slice(first * columns, last * columns)).view(-1, columns), self.up[first:last]
        known = add_rank1_terms(rows, up.to(torch.float32), self.down.to(torch.float32), 2.0**self.exponent)
        return known.view(-1)[wanted.start - first * columns : wanted.stop - first * columns]


def fit(target: Tensor, base: Tensor, columns: int) -> Forecast | None:
    """The forecast of a block of rows of `columns` elements; None when a low rank explains too little of the update."""
    rows = len(target) // columns
    if target.dtype not in DTYPES or min(rows, columns) < SMALLEST or len(target) % columns:
        return None
    with one_thread():
        if rows > 2 * GLANCE and _explained(_update(target, base, columns, slice(0, rows, rows // GLANCE))) < ENERGY / 2:
            return None  # what a low rank explains of all rows it explains of some
        factors = _factors(_update(target, base, columns, slice(0, rows)))
    return None if factors is None else Forecast(lambda part: base[part], *factors)


def encode_forecast(target: Tensor, forecast: Forecast) -> Chunks:
    """Factors and residual."""
    head = HEAD.pack(forecast.down.shape[0], forecast.exponent, 0, forecast.down.shape[1])
    return [head, *encode_factors(forecast), *encode_dense(target, forecast.part, forecast.down.shape[1])]


def encode_factors(forecast: Forecast) -> Chunks:
    """The two factors, coded."""
    return encode_section([lend(forecast.up), lend(forecast.down)])


def decode_forecast(data: memoryview, count: int, wanted: slice, base: Base, out: Tensor) -> None:
    """Elements `wanted` of the block of `count` elements that `encode_forecast` coded, into `out`."""
    if len(data) < HEAD.size or out.dtype not in DTYPES:
        raise CorruptRecord("a forecast is cut short or of an impossible type")
    rank, exponent, zero, columns = HEAD.unpack(data[: HEAD.size])
    if zero or not columns or count % columns or not 0 < rank <= min(columns, count // columns):
        raise CorruptRecord("a forecast does not fit its tensor")
    shapes = (count // columns, rank), (rank, columns)
    streams, rest = decode_section(data[HEAD.size :], [math.prod(shape) for shape in shapes])
    up, down = (torch.from_numpy(stream.view(np.int8).copy()).view(shape) for stream, shape in zip(streams, shapes, strict=True))
    decode_dense(rest, count, columns, wanted, Forecast(base, up, down, exponent).part, out)


def _update(target: Tensor, base: Tensor, columns: int, rows: slice) -> Tensor:
    """float32 `[rows, columns]`: target - base in these rows, taken in pieces; in numpy's memory, which has large pages."""
    mine, known = target.view(-1, columns)[rows], base.view(-1, columns)[rows]
    out, step = torch.from_numpy(np.empty(mine.shape, np.float32)), max(1, PIECE // columns)
    room = torch.empty(min(step, len(mine)), columns)
    for new, one, other in zip(*(x.split(step) for x in (out, mine, known)), strict=True):
        torch.sub(new.copy_(one), room[: len(new)].copy_(other), out=new)
    return out


def _explained(update: Tensor) -> float:
    """The share of an update's energy that a low rank explains; 1 where that cannot be said."""
    total = float(torch.dot(update.view(-1), update.view(-1)))
    if not math.isfinite(total) or total == 0:
        return 1.0
    right = _orthonormal(_leading(update) @ update)
    return float((right @ update.T).square().sum()) / total


def _leading(update: Tensor) -> Tensor:
    """A basis `[r, rows]` of what one round of subspace iteration finds."""
    start = torch.randn(RANK, update.shape[0], generator=torch.Generator().manual_seed(0))
    return _orthonormal(_orthonormal(start @ update) @ update.T)


def _factors(update: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """int8 factors `[rows, r]` and `[r, columns]`, the exponent of their unit, by two rounds of subspace iteration.

    Bases are kept as wide rows `[r, n]`: a product of that form is five times faster than one with thin columns.
    """
    total = float(torch.dot(update.view(-1), update.view(-1)))
    if not math.isfinite(total) or total == 0:
        return None
    right = _orthonormal(_leading(update) @ update)  # [r, columns]
    scores = right @ update.T  # [r, rows]
    explained = float(scores.square().sum()) / total
    if not ENERGY < explained < 1.01:
        return None
    rest = max(1 - explained, 1e-3) * total / update.numel()
    exponent = round(math.log2(math.sqrt(rest) / FINENESS))
    balance = (_power(scores) / _power(right)).sqrt()  # both factors get the same range
    fine = 2.0 ** (-exponent / 2)
    up, down = (scores / balance * fine).round().T, (right * balance * fine).round()
    if not -126 <= exponent <= 0 or max(float(up.abs().max()), float(down.abs().max())) > 127:
        return None
    return up.to(torch.int8).contiguous(), down.to(torch.int8), exponent


def _power(x: Tensor) -> Tensor:
    return x.square().mean(1, keepdim=True).clamp_min(1e-30).sqrt()


def _orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the rows of x `[r, n]`, through the Cholesky factor of its small Gram matrix."""
    gram = (x @ x.T).to(torch.float64)
    gram.diagonal().add_(1e-7 * float(gram.diagonal().sum()) + 1e-300)
    inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), torch.eye(len(gram), dtype=torch.float64), upper=False)
    return inverse.to(x.dtype) @ x
