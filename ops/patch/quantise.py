"""Signatures in few bits: a sign and one scale per tensor, or evenly spaced levels between the least and the greatest value.

Decoding is IEEE arithmetic in a stated order, so that a code means the same number on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.exact import add, round_to, scale
from ...kernels.select import top_k_masks

TERNARY = "ternary"
BITS = {"8": 8, "4": 4}
TRITS = 5  # per byte: 3**5 = 243


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor in codes, flat: `codes` uint8 (0, 1, 2 for -, 0, + of a ternary one; else levels of the elements that are kept), two numbers
    that float32 holds (ternary: scale and 0; else least and greatest kept value), and which elements are kept (None: all)."""

    codes: np.ndarray[Any, Any]
    numbers: tuple[float, float]
    kept: np.ndarray[Any, Any] | None = None


def quantise(x: Tensor, bits: str, density: float) -> Coded:
    """Code a float32 tensor; `density` is the share that is kept, by magnitude, equals by flat index.

    Ternary: the scale is the mean magnitude of what is kept, which no other single scale beats in squared error. Levels: the error of a
    kept element is at most (greatest - least) / (2 (levels - 1)). Raises ValueError for NaN or infinities.
    """
    flat = x.detach().reshape(-1).to(torch.float32)
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("only finite numbers can be coded")
    chosen = top_k_masks([flat.abs()], math.ceil(density * flat.numel()))[0] if density < 1 else torch.ones_like(flat, dtype=torch.bool)
    if bits == TERNARY:
        chosen &= flat != 0
        mean = float(flat[chosen].abs().double().mean()) if bool(chosen.any()) else 0.0
        return Coded((torch.sign(flat) * chosen + 1).to(torch.uint8).numpy(), (float(np.float32(mean)), 0.0))
    kept = flat[chosen]
    low, high = (float(kept.min()), float(kept.max())) if kept.numel() else (0.0, 0.0)
    top = 2 ** BITS[bits] - 1
    share = (kept.double() - low) / (high - low) if high > low else torch.zeros_like(kept, dtype=torch.float64)
    codes = torch.round(share * top).to(torch.uint8).numpy()
    return Coded(codes, (low, high), chosen.numpy() if density < 1 else None)


def restore(coded: Coded, bits: str, count: int) -> Tensor:
    """The float32 values `[count]` that codes stand for.

    Ternary: the scale with its sign. Levels: `low + code * step` in float64, step = (high - low) / (levels - 1), rounded once.
    """
    codes, (first, second) = torch.from_numpy(np.ascontiguousarray(coded.codes)), coded.numbers
    if bits == TERNARY:
        return scale(codes.to(torch.float32) - 1, first)
    step = (second - first) / (2 ** BITS[bits] - 1)
    values = round_to(add(scale(codes.double(), step), torch.tensor(first, dtype=torch.float64)), torch.float32)
    if coded.kept is None:
        return values
    out = torch.zeros(count, dtype=torch.float32)
    out[torch.from_numpy(np.ascontiguousarray(coded.kept))] = values
    return out


def pack(codes: np.ndarray[Any, Any], bits: str) -> bytes:
    """Codes as bytes: five ternary digits, two nibbles, or one code in each; the last byte is filled up with zeros."""
    if bits == "8":
        return codes.tobytes()
    each, base = (TRITS, 3) if bits == TERNARY else (2, 16)
    padded = np.zeros(-(-len(codes) // each) * each, dtype=np.uint8)
    padded[: len(codes)] = codes
    weights = np.array([base**i for i in range(each)], dtype=np.uint8)
    return (padded.reshape(-1, each) * weights).sum(axis=1, dtype=np.uint8).tobytes()


def packed_size(count: int, bits: str) -> int:
    """Bytes that `pack` makes of so many codes."""
    return -(-count // {"8": 1, "4": 2, TERNARY: TRITS}[bits])


def unpack(data: bytes, count: int, bits: str) -> np.ndarray[Any, Any]:
    """The inverse of `pack`. Raises ValueError for bytes that hold no such codes."""
    raw = np.frombuffer(data, dtype=np.uint8)
    if len(raw) != packed_size(count, bits) or (bits == TERNARY and len(raw) and int(raw.max()) >= 3**TRITS):
        raise ValueError("these are no codes of a signature")
    if bits == "8":
        return raw.copy()
    each, base = (TRITS, 3) if bits == TERNARY else (2, 16)
    weights = np.array([base**i for i in range(each)], dtype=np.uint8)
    return (raw[:, None] // weights % base).reshape(-1)[:count]
