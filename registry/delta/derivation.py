"""Evaluating a derived tensor range by range, and coding what it leaves: an exact integer residual, normally none.

The prediction is computed by `kernels.exact` alone and is the base of the residual, which the codecs of ordinary deltas code. A range of a
tensor is decoded from just those ranges of its sources (whole rows for rank1), a few million elements at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...kernels import exact
from ..errors import CorruptRecord, HashMismatch
from . import against
from .alone import encode_constant, segments
from .blocks import block_sizes, row_of, write_table
from .buffers import Buffer, as_bytes, bits, borrow, dtype_of, fresh, lend
from .chooser import encode_block
from .decode import decode_block, decode_range
from .derived import ELECT, RANK1, TASK, Cut, Derived, Read, cut_count
from .dtypes import CONSTANT, PLANES, RAW, SPARSE, item_size
from .recipes import Head, Recipe, read_cuts, read_parts, write_cuts, write_head, write_parts

SEGMENTS = 8  # segments evaluated at a time: of few megabytes, and cut where the segments of the sources are
ALONE = (RAW, CONSTANT, PLANES)  # codecs of factors
AT_ONCE = 4  # segments of a piece that passes through the processor's cache
SMALLEST = 32  # bytes of a tensor below which nothing is gained

ReadSource = Callable[[int, slice], Buffer]  # (number of the source, elements) -> its bytes


@dataclass(frozen=True, slots=True)
class Formula:
    """What a derived tensor is a function of: everything but the sources' bytes."""

    function: str
    numbers: tuple[float, ...]
    word: str  # type of the result
    shape: tuple[int, ...]
    sources: tuple[str, ...]  # types of the sources
    up: Tensor | None = None  # fp32 [rows, r]
    down: Tensor | None = None  # fp32 [r, columns]
    cuts: tuple[Cut, ...] = ()


# --- evaluating ----------------------------------------------------------------------------------------------


def combine(function: str, numbers: Sequence[float], xs: Sequence[Tensor], out: Tensor, cuts: Sequence[Cut] = (), start: int = 0) -> None:
    """`linear`, `task` or `elect` of vectors of one length, into `out`. `start`: the flat index of their first element."""
    count, total = len(xs), numbers[len(xs)] if len(numbers) > len(xs) else None
    if function == ELECT:
        weights, factor = numbers[: count - 1], numbers[count - 1]
        exact.elect_sum(xs[0], xs[1:], weights, cuts, factor, out.dtype, total is not None, out, start)
    elif function == TASK:
        exact.task_sum(xs[0], xs[1:], numbers[: count - 1], numbers[count - 1], out.dtype, total, out)
    else:
        exact.weighted_sum(xs, numbers[:count], out.dtype, total, out)


def derive(derived: Derived, read: Read, dtype: torch.dtype, shape: Sequence[int], rows: slice = slice(None)) -> Tensor:
    """Rows of the tensor that `derived` describes; see `derived.derive`."""
    row, (first, last, _) = row_of(shape), rows.indices(shape[0] if shape else 1)
    out, step = None, max(1, SEGMENTS * (1 << 19) // row)
    for low in range(first, last, step):
        high = min(low + step, last)
        xs = [read(digest, slice(low, high)).reshape(-1) for digest in derived.sources]
        if out is None:
            out = _room((last - first) * math.prod(shape[1:]), dtype, xs[0].device)
        part = out[(low - first) * row : (high - first) * row]
        if derived.function == RANK1:
            up, down = (factor.to(xs[0].device) for factor in derived.factors)
            w = xs[0].view(high - low, -1) if xs[0].numel() else xs[0].view(high - low, down.shape[1])
            part[:] = exact.add_rank1_terms(w, up[low:high], down, derived.numbers[0]).view(-1)
        else:
            combine(derived.function, derived.numbers, xs, part, derived.cuts, low * row)
    out = torch.empty((max(last - first, 0)) * math.prod(shape[1:]), dtype=dtype) if out is None else out
    return out.view(last - first, *shape[1:]) if shape else out.view(())


def _room(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return fresh(count, dtype) if device.type == "cpu" else torch.empty(count, dtype=dtype, device=device)


def predicted(formula: Formula, read: ReadSource, wanted: slice) -> Tensor:
    """Elements `wanted` `[n]` of what the formula gives."""
    out = fresh(wanted.stop - wanted.start, dtype_of(formula.word))
    for part in _steps(formula, wanted):
        here = out[part.start - wanted.start : part.stop - wanted.start]
        if formula.function == RANK1:
            bits(here)[:] = bits(_rank1(formula, read, part))
        else:
            _combined(formula, read, part, here)
    return out


def _combined(formula: Formula, read: ReadSource, part: slice, out: Tensor) -> None:
    xs = [borrow(read(index, part), dtype_of(word)) for index, word in enumerate(formula.sources)]
    combine(formula.function, formula.numbers, xs, out, formula.cuts, part.start)


def _rank1(formula: Formula, read: ReadSource, part: slice) -> Tensor:
    assert formula.up is not None and formula.down is not None  # noqa: PT018 - of the function rank1
    columns = formula.down.shape[1]
    first, last = part.start // columns, -(-part.stop // columns)
    w = borrow(read(0, slice(first * columns, last * columns)), dtype_of(formula.word)).view(-1, columns)
    whole = exact.add_rank1_terms(w, formula.up[first:last], formula.down, formula.numbers[0]).view(-1)
    return whole[part.start - first * columns : part.stop - first * columns]


def _steps(formula: Formula, wanted: slice) -> Iterator[slice]:
    """`wanted` cut where blocks and segments of a tensor of this type and shape are cut: a source is read in the pieces it is stored in."""
    item, row, start = item_size(formula.word), row_of(formula.shape), 0
    for size in block_sizes(formula.word, formula.shape):
        cuts = segments(size // item, row)
        for group in (cuts[i : i + SEGMENTS] for i in range(0, len(cuts), SEGMENTS)):
            low, high = max(start + group[0].start, wanted.start), min(start + group[-1].stop, wanted.stop)
            if low < high:
                yield slice(low, high)
        start += size // item


def cut(word: str, shape: Sequence[int]) -> list[slice]:
    """A tensor's elements in pieces of a few megabytes, cut where tensors of its type and shape are cut when they are stored."""
    item, start, found = item_size(word), 0, []
    for size in block_sizes(word, shape):
        parts = segments(size // item, row_of(shape))
        groups = [parts[i : i + AT_ONCE] for i in range(0, len(parts), AT_ONCE)]
        found += [slice(start + group[0].start, start + group[-1].stop) for group in groups]
        start += size // item
    return found


# --- decoding ------------------------------------------------------------------------------------------------


def parse_formula(
    recipe: Recipe, word: str, shape: tuple[int, ...], sources: tuple[str, ...], data: memoryview
) -> tuple[Formula, memoryview]:
    """The formula that recipe and payload (behind its head) tell, and the residual's bytes. Raises CorruptRecord."""
    if recipe.function != RANK1:
        cuts, data = read_cuts(data, cut_count(recipe.function, len(sources)))
        return Formula(recipe.function, recipe.numbers, word, shape, sources, cuts=cuts), data
    rows, columns = sides(shape)
    rank, data = (int.from_bytes(data[:4], "little"), data[4:]) if len(data) >= 4 else (1 << 32, data)
    if not columns or rank > min(rows, columns):
        raise CorruptRecord("a derived tensor has a rank that cannot be")
    parts, data = read_parts(data, 2)
    up, down = (_factor(codec, part, pair) for (codec, part), pair in zip(parts, ((rows, rank), (rank, columns)), strict=True))
    return Formula(recipe.function, recipe.numbers, word, shape, sources, up, down), data


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)


def _factor(codec: int, data: memoryview, shape: tuple[int, int]) -> Tensor:
    if codec not in ALONE:
        raise CorruptRecord("a factor has an unknown codec")
    out = torch.empty(math.prod(shape), dtype=torch.float32)
    decode_block(codec, data, len(out), max(1, shape[1]), slice(0, len(out)), None, out)
    return out.view(shape)


def decode(formula: Formula, residual: int | None, blocked: bool, data: memoryview, wanted: slice, read: ReadSource) -> np.ndarray:
    """uint8 `[wanted]`: a range of a derived tensor's raw bytes. `data` is the coded residual. Raises CorruptRecord."""
    item = item_size(formula.word)
    if residual is not None:
        read_base = lambda low, high: lend(predicted(formula, read, slice(low // item, high // item)))  # noqa: E731 - whole elements
        return decode_range(data, formula.word, formula.shape, residual, blocked, wanted, read_base)
    if len(data) or blocked:
        raise CorruptRecord("a derived tensor without a residual is longer than it says")
    first, last = wanted.start // item, -(-wanted.stop // item)
    return lend(predicted(formula, read, slice(first, last)))[wanted.start - first * item : wanted.stop - first * item]


# --- encoding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coded:
    """A derived tensor ready to be stored."""

    payload: bytes
    blocked: bool
    exactly: bool  # the tensor is what the recipe says: there is no residual


def exactly(derived: Derived, head: Head, told: bytes | None = None) -> Coded:
    """A tensor that is what the recipe says: nothing is left. `told`: what a payload says of it beside the head (default: its cuts)."""
    return Coded(write_head(head) + (write_cuts(derived.cuts) if told is None else told), False, True)


def encode(
    recipe: Recipe, derived: Derived, head: Head, word: str, shape: tuple[int, ...], data: Buffer,
    sources: tuple[str, ...], read: ReadSource | None,
) -> Coded | None:  # fmt: skip
    """Code a tensor's bytes as the function of its sources that the recipe tells, and what that leaves; proven to decode.

    `recipe` and `sources` (their types) are in the order of the function, `head` is that of a payload without a residual. `read` is None
    where these bytes are what was computed here, of the sources, as `derived` says: then there is nothing to prove. None when it is not
    worth it: a tensor of one value or of a few bytes, or factors of a rank beyond the sides of the matrix. Raises HashMismatch if what
    was coded does not decode (a defect, or broken memory).
    """
    raw = as_bytes(data)
    if len(raw) < SMALLEST or encode_constant(borrow(raw, dtype_of(word))) is not None:
        return None
    told = _write_factors(derived.factors, shape) if recipe.function == RANK1 else write_cuts(derived.cuts)
    if told is None:
        return None
    if read is None:
        return exactly(derived, head, told)
    formula, _ = parse_formula(recipe, word, shape, sources, memoryview(told))  # what a reader will see, not what was given
    blocks = list(_residuals(formula, raw, read))
    if all(equal for equal, *_ in blocks):
        return Coded(write_head(head) + told, False, True)
    blocked = len(blocks) > 1
    table = write_table([(codec, size, len(stored)) for _, codec, size, stored in blocks]) if blocked else b""
    head, residual = replace(head, residual=0 if blocked else blocks[0][1]), b"".join([table, *(stored for *_, stored in blocks)])
    _prove(formula, head, blocked, memoryview(residual), raw, read)
    return Coded(write_head(head) + told + residual, blocked, False)


def _residuals(formula: Formula, raw: np.ndarray, read: ReadSource) -> Iterator[tuple[bool, int, int, bytes]]:
    """(is as predicted, codec, raw bytes, stored bytes) of each block; `encode_block` proves each against the prediction."""
    item, start = item_size(formula.word), 0
    nothing = torch.empty(0, dtype=dtype_of(formula.word))
    unchanged = b"".join(against.encode_sparse(nothing, nothing))
    for size in block_sizes(formula.word, formula.shape):
        mine, wanted = raw[start : start + size], slice(start // item, (start + size) // item)
        if _foretold(formula, mine, read, wanted):
            yield True, SPARSE, size, unchanged
        else:
            guess = lend(predicted(formula, read, wanted))
            codec, chunks = encode_block(formula.word, mine, guess, row_of(formula.shape))
            yield False, codec, size, b"".join(chunks)
        start += size


def _foretold(formula: Formula, mine: np.ndarray, read: ReadSource, wanted: slice) -> bool:
    """Whether the formula gives just these bytes; worked out in pieces, in memory that is used again."""
    item, start = item_size(formula.word), wanted.start
    if formula.function == RANK1:
        return np.array_equal(mine, lend(predicted(formula, read, wanted)))
    room, equal = torch.empty(0, dtype=dtype_of(formula.word)), True
    for part in _steps(formula, wanted):  # to the end in any case: the sources are verified on the way
        count = part.stop - part.start
        room = room if len(room) >= count else torch.empty(count, dtype=room.dtype)
        _combined(formula, read, part, room[:count])
        equal = equal and np.array_equal(mine[(part.start - start) * item : (part.stop - start) * item], lend(room[:count]))
    return equal


def _write_factors(factors: Sequence[Tensor], shape: tuple[int, ...]) -> bytes | None:
    """Rank and coded factors; None when they do not fit the tensor."""
    up, down = (factor.detach().to("cpu", torch.float32).contiguous() for factor in factors)
    rows, columns = sides(shape)
    if (len(up), down.shape[1], up.shape[1]) != (rows, columns, len(down)) or len(down) > min(rows, columns):
        return None
    coded = [encode_block("F32", lend(factor), None, max(1, factor.shape[1])) for factor in (up, down)]
    return len(down).to_bytes(4, "little") + write_parts([(codec, b"".join(chunks)) for codec, chunks in coded])


def _prove(formula: Formula, head: Head, blocked: bool, residual: memoryview, raw: np.ndarray, read: ReadSource) -> None:
    """Decode as a reader will, block by block. Raises HashMismatch when that gives other bytes."""
    start = 0
    for size in block_sizes(formula.word, formula.shape):
        again = decode(formula, head.residual, blocked, residual, slice(start, start + size), read)
        if not np.array_equal(again, raw[start : start + size]):
            raise HashMismatch("a derived tensor did not survive its own encoding; nothing was stored", hint="mlc doctor")
        start += size
