"""Triton twin of `kernels/fisher.py`: a tile of the result per program, one sample's gradient at a time in registers, never in memory.

A program walks over its share of the samples; for each it sums delta^T x over the positions with the matrix unit, squares, and adds. Small
results would leave most of a card idle, so samples are split over programs too; their parts are added in a fixed order afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..fisher import check_pair

OUT, IN, TIME = 64, 64, 16  # the tile, and positions per product
PROGRAMS = 528  # four for each multiprocessor of a large card
PARTS = 1 << 26  # elements of all parts together


@triton.jit
def _fisher(
    x, delta, parts, samples, times, outs, ins, per,
    xb, xt, xi, db, dt, do,
    ABSOLUTE: tl.constexpr, PRECISION: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * OUT + tl.arange(0, OUT)
    column = tl.program_id(1) * IN + tl.arange(0, IN)
    first = tl.program_id(2) * per
    total = tl.zeros([OUT, IN], tl.float32)
    for step in range(per):
        here = (first + step).to(tl.int64)
        length = tl.where(here < samples, times, 0)  # the last share may be short
        gradient = tl.zeros([OUT, IN], tl.float32)
        for start in range(0, times, TIME):
            t = start + tl.arange(0, TIME)
            known = t < length
            left_inside, right_inside = (row[:, None] < outs) & known[None, :], known[:, None] & (column[None, :] < ins)
            left = tl.load(delta + here * db + t[None, :] * dt + row[:, None] * do, mask=left_inside, other=0.0)
            right = tl.load(x + here * xb + t[:, None] * xt + column[None, :] * xi, mask=right_inside, other=0.0)
            gradient = tl.dot(left.to(tl.float32), right.to(tl.float32), gradient, input_precision=PRECISION)
        total += tl.abs(gradient) if ABSOLUTE else gradient * gradient
    place = tl.program_id(2).to(tl.int64) * outs * ins + row[:, None].to(tl.int64) * ins + column[None, :]
    tl.store(parts + place, total, mask=(row[:, None] < outs) & (column[None, :] < ins))


def fisher_diag(x: Tensor, delta: Tensor, absolute: bool = False) -> Tensor:
    """See `kernels.fisher.fisher_diag`. Half-width inputs fit TF32's mantissa, so that the matrix unit multiplies them exactly."""
    check_pair(x, delta)
    precision = "tf32" if {x.dtype, delta.dtype} <= {torch.float16, torch.bfloat16} else "ieee"
    x, delta = (t.float() if t.dtype is torch.float64 else t for t in (x, delta))
    (samples, times, ins), outs = x.shape, delta.shape[2]
    if not samples or not times or not ins or not outs:
        return torch.zeros(outs, ins, dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(outs, OUT) * triton.cdiv(ins, IN)
    split = max(1, min(samples, triton.cdiv(PROGRAMS, tiles), PARTS // (outs * ins)))
    per = triton.cdiv(samples, split)
    split = triton.cdiv(samples, per)
    parts = torch.empty(split, outs, ins, dtype=torch.float32, device=x.device)
    _fisher[(triton.cdiv(outs, OUT), triton.cdiv(ins, IN), split)](
        x,
        delta,
        parts,
        samples,
        times,
        outs,
        ins,
        per,
        *x.stride(),
        *delta.stride(),
        ABSOLUTE=absolute,
        PRECISION=precision,
        OUT=OUT,
        IN=IN,
        TIME=TIME,
    )
    return parts.sum(0) if split > 1 else parts[0]
