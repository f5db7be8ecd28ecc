"""The small languages inside two options: `--replay FILE:RATIO|self:RATIO` and `--adapter lora:R[:ALPHA]`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...registry.errors import BadParameter

SELF = "self"


@dataclass(frozen=True, slots=True)
class Replay:
    """One source of old text and its share of all rows. `path` is None for text sampled from the parent."""

    path: str | None
    share: float

    @property
    def label(self) -> str:
        """How messages and records call it."""
        return SELF if self.path is None else self.path


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of rank `rank`; its output is scaled by alpha / rank."""

    rank: int
    alpha: float


def parse_replay(items: Sequence[str]) -> tuple[Replay, ...]:
    """The sources named by `--replay`; raises BadParameter for a malformed one, a share outside 0..1, or shares that leave nothing."""
    found = tuple(_one_replay(item) for item in items)
    if (total := sum(r.share for r in found)) >= 1:
        raise BadParameter(f"the replay shares add up to {total:g}: nothing is left for --data", hint="use shares that sum to less than 1")
    if sum(r.path is None for r in found) > 1:
        raise BadParameter("--replay self is given twice", hint="give it once, with the whole share")
    return found


def _one_replay(item: str) -> Replay:
    head, colon, tail = item.rpartition(":")
    try:
        share = float(tail)
    except ValueError:
        share = math.nan
    if not colon or not head or not 0 < share < 1:
        raise BadParameter(
            f"--replay {item!r} is not FILE:RATIO or self:RATIO with a ratio between 0 and 1", hint="for example: --replay self:0.5"
        )
    return Replay(None if head == SELF else head, share)


def parse_adapter(text: str | None) -> Adapter | None:
    """The adapter named by `--adapter`; alpha is twice the rank unless given. Raises BadParameter."""
    if text is None:
        return None
    kind, *numbers = text.split(":")
    try:
        rank = int(numbers[0])
        alpha = float(numbers[1]) if len(numbers) > 1 else 2.0 * rank
    except (ValueError, IndexError):
        rank, alpha = 0, 0.0
    if kind != "lora" or len(numbers) > 2 or rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise BadParameter(f"--adapter {text!r} is not lora:RANK or lora:RANK:ALPHA", hint="for example: --adapter lora:8")
    return Adapter(rank, alpha)
