"""The pinned elementwise functions that restoring may use: IEEE arithmetic in a stated type and order, never fused.

A version that is stored as "this function of stored tensors" must come back to the bit on every machine. IEEE defines single additions,
subtractions, multiplications and roundings to the bit; it does not define what a matrix product, a fused multiply-add or a sum over an axis
does inside. Hence each step below is an operator of its own, operands are float32 or float64 (narrower types are widened by `widen`, which
is exact, and narrowed by `round_to`), and nothing in this file is fused, multiplies matrices or sums: a test reads the source to make sure.
Every NaN that leaves `round_to` is the one canonical NaN, since processors disagree about the payload.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)
CHUNK = 1 << 17  # elements of one step: as much as a processor's cache holds; no bit depends on it
ELECTION = 1 << 17  # the same for an election, which takes more room
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
    _exacting()
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


def weighted_sum(
    xs: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype, total: float | None = None, out: Tensor | None = None
) -> Tensor:
    """(w_1 x_1 + w_2 x_2 + ...) / total, defined to the bit: summed in float32 in the order given, at last rounded to `dtype`.

    Args: `xs` of one shape and of types that float32 holds; as many weights; `out`: contiguous, where the result is to be written. Numbers
    are first rounded to float32. In order: `y = scale(x_1, w_1)`; for each further k: `y = add(y, scale(x_k, w_k))`; with a total
    `y = div(y, total)`.
    """
    _single(xs, weights)
    out = torch.empty(xs[0].shape, dtype=dtype, device=xs[0].device) if out is None else out
    _exacting()
    shares, divisor = _numbers(weights, out), _number(total, out)
    for new, y, term, parts in _steps(out, xs):
        _product(parts[0], None, shares[0], y)
        for part, share in zip(parts[1:], shares[1:], strict=True):
            torch.add(y, _product(part, None, share, term), out=y)
        round_into(new, y if divisor is None else torch.div(y, divisor, out=y))
    return out


def task_sum(
    base: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[float],
    factor: float,
    dtype: torch.dtype,
    total: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base + factor * (w_1 (x_1 - base) + ...) / total, defined to the bit: in float32, in the order given, at last rounded to `dtype`.

    In order: `y = scale(sub(x_1, base), w_1)`; for each further k: `y = add(y, scale(sub(x_k, base), w_k))`; with a total
    `y = div(y, total)`; `add(base, scale(y, factor))`. `out` as in `weighted_sum`.
    """
    _single((base, *xs), (factor, *weights))
    out = torch.empty(base.shape, dtype=dtype, device=base.device) if out is None else out
    _exacting()
    shares, divisor, (last,) = _numbers(weights, out), _number(total, out), _numbers((factor,), out)
    known = torch.empty(min(_chunk(), out.numel()), dtype=torch.float32, device=out.device)
    for new, y, term, (old, *parts) in _steps(out, (base, *xs)):
        wide = known[: len(y)].copy_(old)
        _product(parts[0], wide, shares[0], y)
        for part, share in zip(parts[1:], shares[1:], strict=True):
            torch.add(y, _product(part, wide, share, term), out=y)
        if divisor is not None:
            torch.div(y, divisor, out=y)
        if last is not None:
            torch.mul(y, last, out=y)
        round_into(new, torch.add(wide, y, out=y))
    return out


def elect_sum(
    base: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[float],
    cuts: Sequence[tuple[float, int]],
    factor: float,
    dtype: torch.dtype,
    normalize: bool = True,
    out: Tensor | None = None,
    start: int = 0,
    vectors: bool = False,
) -> Tensor:
    """base + factor * the mean of those trimmed differences that have the elected sign, defined to the bit as the sums above.

    Args: for each of `xs` a pair (low, last) in `cuts`: of its difference what is smaller than `low` in magnitude becomes 0, and so does
    what equals it at a flat index beyond `last` (a negative `low` drops nothing, and NaN is never dropped). `start`: the flat index of the
    first element. `vectors`: `xs` are the differences themselves. `out` as in `weighted_sum`.
    In order: `e_k = scale(trimmed(sub(x_k, base)), w_k)`; v is the sum of the e_k, s is - where v < 0, else +; y is the sum of those s e_k
    that are greater than 0, m that of their w_k, sums by `add` in the order given; to normalize `y = div(y, m)`, with 1 for an m of 0;
    `add(base, scale(s y, factor))`.
    """
    _single((base, *xs), (factor, *weights))
    out = torch.empty(base.shape, dtype=dtype, device=base.device) if out is None else out
    _exacting()
    shares = (
        None if all(weight == 1 for weight in weights) else torch.tensor([[w] for w in weights], dtype=torch.float32, device=out.device)
    )
    scaled, least, bounds = _number(factor, out), min(weights), [_bounds(low) for low, _ in cuts]
    step = min(ELECTION, _chunk())
    room = torch.empty((len(xs) + 3) * min(step, out.numel()), dtype=torch.float32, device=out.device)  # fresh memory costs more than sums
    for new, (old, *parts) in _pieces(out, (base, *xs), step):
        terms, (wide, signs, y) = _rows(room, len(xs), len(new)), _rows(room[len(xs) * len(new) :], 3, len(new))
        wide.copy_(old)
        for term, part in zip(terms, parts, strict=True):
            term.copy_(part)
        if not vectors:
            torch.sub(terms, wide, out=terms)
        for term, bound, (_, end) in zip(terms, bounds, cuts, strict=True):
            _trim(term, bound, end - start)
        if shares is not None:
            torch.mul(terms, shares, out=terms)
        flips, whole = torch.lt(_added(terms, signs), 0, out=signs).view(torch.int32), terms.view(torch.int32)
        torch.bitwise_left_shift(flips, 8, out=flips)  # of 1.0 just the bit of the sign is left, of 0.0 nothing
        torch.bitwise_xor(whole, flips, out=whole)
        torch.threshold_(terms, 0, 0)  # what is not greater than 0 becomes +0.0
        _added(terms, y)
        if normalize:
            torch.div(y, _agreeing(terms, shares, least), out=y)
        raw = y.view(torch.int32)
        torch.bitwise_xor(raw, flips, out=raw)
        if scaled is not None:
            torch.mul(y, scaled, out=y)
        round_into(new, torch.add(wide, y, out=y))
        start += len(new)
    return out


def _rows(room: Tensor, count: int, length: int) -> Tensor:
    return room[: count * length].view(count, length)


def _bounds(low: float) -> tuple[float, float] | None:
    """Of what is dropped, where equals of `low` stay and where they go, too: what a hard shrinkage keeps is greater than its bound."""
    return None if low < 0 else (float(torch.nextafter(torch.tensor(low, dtype=torch.float32), torch.tensor(-1.0))), low)


def _trim(delta: Tensor, bounds: tuple[float, float] | None, last: int) -> None:
    """Trim delta `[n]` in place; what equals the threshold stays up to the index `last`."""
    if bounds is None:
        return
    ends = min(max(last + 1, 0), len(delta))
    for part, bound in zip((delta[:ends], delta[ends:]), bounds, strict=True):
        if len(part):
            torch.hardshrink(part, bound, out=part)


def _added(terms: Tensor, out: Tensor) -> Tensor:
    """The sum of the rows in the order given, without a zero to start with."""
    first, *others = terms
    if not others:
        return out.copy_(first)
    torch.add(first, others[0], out=out)
    for term in others[1:]:
        torch.add(out, term, out=out)
    return out


def _agreeing(terms: Tensor, shares: Tensor | None, least: float) -> Tensor:
    """The sum of the shares of those terms that are greater than 0, in the place of the first term; 1 (or `least`) for a sum of 0."""
    torch.gt(terms, 0, out=terms)
    if shares is not None:
        torch.mul(terms, shares, out=terms)
    first, *others = terms
    for term in others:
        torch.add(first, term, out=first)
    if least > 0:  # sums of numbers that are all positive are at least the smallest of them; and 0 is divided by anything
        return torch.clamp(first, min=least, out=first)
    return torch.add(first, torch.eq(first, 0), out=first)


def _steps(out: Tensor, xs: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor, list[Tensor]]]:
    """A piece of the result at a time: where it goes, two float32 vectors of its length to work in, and the same piece of each operand."""
    step = _chunk()
    sums, terms = torch.empty(2, min(step, out.numel()), dtype=torch.float32, device=out.device)  # fresh memory costs more than sums
    for new, parts in _pieces(out, xs, step):
        yield new, sums[: len(new)], terms[: len(new)], parts


def _pieces(out: Tensor, xs: Sequence[Tensor], step: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    new, flat = out.view(-1), [x.reshape(-1) for x in xs]
    for start in range(0, out.numel(), step):
        part = slice(start, min(start + step, out.numel()))
        yield new[part], [x[part] for x in flat]


def _product(x: Tensor, base: Tensor | None, share: Tensor | None, y: Tensor) -> Tensor:
    """(x - base) * share in y, which is float32; None stands for zero and for one, which change no number."""
    y.copy_(x)
    if base is not None:
        torch.sub(y, base, out=y)
    return y if share is None else torch.mul(y, share, out=y)


def round_into(out: Tensor, x: Tensor) -> None:
    """`round_to` of x `[n]`, written into `out` `[n]`."""
    out.copy_(x)
    if x.numel() and bool(torch.isnan(torch.amax(x))):
        out.copy_(round_to(x, out.dtype))


def _numbers(numbers: Sequence[float], like: Tensor) -> list[Tensor | None]:
    return [_number(number, like) for number in numbers]


def _number(number: float | None, like: Tensor) -> Tensor | None:
    """A number in float32, where like is; None for one, and for none: neither product nor quotient changes by it."""
    found = None if number is None else torch.tensor(number, dtype=torch.float32, device=like.device)
    return None if found is None or bool(found == 1) else found


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


def _exacting() -> None:
    """Raise RuntimeError when this thread flushes tiny numbers to zero."""
    tiny = torch.tensor(1e-45, dtype=torch.float32)
    if not bool(tiny + tiny > tiny):
        raise RuntimeError("tiny numbers are flushed to zero here; call torch.set_flush_denormal(False) before restoring")
