"""A tensor that is a pinned function of stored tensors: what an operation says of it. Light: torch arrives with the first evaluation.

An operation computes its tensor by `derive` and hands the same `Derived` to storage, which keeps recipe, factors and an exact integer
residual (none, when the tensor is what the recipe says). Nothing is trusted: a wrong recipe costs bytes, never a bit of the tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor, dtype

RANK1, LINEAR, TASK, ELECT = "rank1", "linear", "task", "elect"
BASED = (TASK, ELECT)  # the first source is what the others are measured from
FLOATS = ("F32", "BF16", "F16")  # float32 holds every value of these; in others nothing is derived
LARGEST = (2 - 2**-23) * 2.0**127  # of float32
LOW = struct.Struct("<f")
Cut = tuple[float, int]  # smallest magnitude that is kept, and the flat index of the last element kept among its equals
Read = Callable[[str, slice], "Tensor"]  # (digest of a source, rows) -> those rows, in the source's type


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """A pinned function of stored tensors; only `kernels.exact` takes part, in a fixed order.

    - `rank1`: sources (w,), factors (up fp32 `[d_out, r]`, down fp32 `[r, d_in]`), numbers (scale,): `add_rank1_terms(w, up, down, scale)`.
      w has the type and shape of the result; what follows its first dimension counts as d_in.
    - `linear`: sources (x_1, ..., x_n), numbers (w_1, ..., w_n) or (w_1, ..., w_n, total): `weighted_sum`.
    - `task`: sources (base, x_1, ..., x_n), numbers (w_1, ..., w_n, lam) or (w_1, ..., w_n, lam, total): `task_sum`.
    - `elect`: sources as `task`, a cut for each x, numbers (w_1, ..., w_n, lam), or (w_1, ..., w_n, lam, 1) to normalize: `elect_sum`.

    Sources of all but `rank1` have the shape of the result; they and the result may be of any types among fp32, bf16 and fp16.
    Raises BadParameter for an unknown function, numbers that are not finite or do not fit, or a total of zero.
    """

    function: str
    sources: tuple[str, ...]  # digests of stored tensors, base first
    numbers: tuple[float, ...] = ()  # float64, kept as given
    factors: tuple[Tensor, ...] = ()
    cuts: tuple[Cut, ...] = ()  # low is a number of float32

    def __post_init__(self) -> None:
        if (fault := misfit(self.function, len(self.sources), self.numbers)) is not None:
            raise BadParameter(f"a derived tensor cannot be so described: {fault}")
        if len(self.factors) != (2 if self.function == RANK1 else 0) or any(factor.dim() != 2 for factor in self.factors):
            raise BadParameter(f"{self.function} takes {'two matrices' if self.function == RANK1 else 'no factors'}")
        if len(self.cuts) != cut_count(self.function, len(self.sources)) or any(miscut(*cut) for cut in self.cuts):
            raise BadParameter(f"{self.function} takes {'a cut for each tensor' if self.function == ELECT else 'no cuts'}")


def cut_count(function: str, sources: int) -> int:
    """How many cuts a function of so many sources has."""
    return sources - 1 if function == ELECT else 0


def miscut(low: float, last: int) -> bool:
    """Whether no trim can be told by these two, a number of float32 and an index."""
    return not abs(low) <= LARGEST or LOW.unpack(LOW.pack(low)) != (low,) or not -1 <= last < 1 << 62


def misfit(function: str, sources: int, numbers: Sequence[float]) -> str | None:
    """What is wrong with a function of so many sources and these numbers, in words; None when it can be evaluated."""
    counts = {RANK1: (1,), **dict.fromkeys((LINEAR, TASK, ELECT), (sources, sources + 1))}
    if function not in counts:
        return f"there is no function {function!r:.40}"
    if not sources or (function in BASED and sources < 2):
        return f"{function} needs more sources than {sources}"
    if (function == RANK1 and sources != 1) or len(numbers) not in counts[function]:
        return f"{function} does not take {len(numbers)} numbers for {sources} sources"
    if not all(isinstance(number, int | float) and abs(number) <= LARGEST for number in numbers):
        return "its numbers are not all finite in float32"
    if len(numbers) > sources and not numbers[-1]:
        return "its total is zero"
    if function == ELECT and len(numbers) > sources and numbers[-1] != 1:
        return "its last number is not 1"
    return None


def derive(derived: Derived, read: Read, dtype: dtype, shape: Sequence[int], rows: slice = slice(None)) -> Tensor:
    """The rows `rows` of the tensor `[*shape]` of type `dtype` that `derived` describes: what operation and storage both compute.

    `read(digest, rows)` gives rows of a source; it is asked for a few million elements at a time, so that no more need be in memory.
    """
    from .derivation import derive as evaluate

    return evaluate(derived, read, dtype, shape, rows)
