"""The small languages inside options: what is replayed, which adapter, what is protected, which mean. Imports nothing that computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...registry.errors import BadParameter
from ..base import requirement

if TYPE_CHECKING:
    from .train import Update

require = requirement("update")
SELF, SAMPLE = "self", "sample"  # text sampled from the parent: matched as distributions, or learned as text
PROTECTIONS = ("spu", "ewc", "hle", "l2sp")
AVERAGES = ("none", "dynamic", "paper")
BEGINNINGS = ("weights", "stable")
# Weights of the pulls where none is given. Importances have mean 1 over all elements, so that these hold for any model. EWC's was chosen
# on the 260 k model, 150 steps, one seed: loss on new text / rise on old text 2.768 / 0.302 without, 0.3: 2.905 / 0.027, 1: 3.067 / -0.023.
WEIGHTS = {"ewc": 0.3, "hle": 1.0, "l2sp": 0.1}


@dataclass(frozen=True, slots=True)
class Replay:
    """One source of old text and its share of all rows. `path` is None for text sampled from the parent.

    distilled: on these rows the parent's distributions are matched, instead of learning the rows as text.
    """

    path: str | None
    share: float
    distilled: bool = False

    @property
    def label(self) -> str:
        """How messages and records call it."""
        return self.path if self.path is not None else SELF if self.distilled else SAMPLE


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of rank `rank`; its output is scaled by alpha / rank."""

    rank: int
    alpha: float


def parse_replay(items: Sequence[str], flag: str = "--replay") -> tuple[Replay, ...]:
    """The sources named by `--replay`, or by a flag of the like.

    Raises BadParameter for a malformed one, a share outside 0..1, or shares that leave nothing.
    """
    found = tuple(_one_replay(item, flag) for item in items)
    if (total := sum(r.share for r in found)) >= 1:
        raise BadParameter(
            f"the shares of {flag} add up to {total:g}: nothing is left for --data", hint="use shares that sum to less than 1"
        )
    for kind in (SELF, SAMPLE):
        if sum(r.path is None and r.label == kind for r in found) > 1:
            raise BadParameter(f"--replay {kind} is given twice", hint="give it once, with the whole share")
    return found


def _one_replay(item: str, flag: str) -> Replay:
    head, colon, tail = item.rpartition(":")
    try:
        share = float(tail)
    except ValueError:
        share = math.nan
    if not colon or not head or not 0 < share < 1:
        own = flag == "--replay"
        raise BadParameter(
            f"{flag} {item!r} is not {'FILE:RATIO, self:RATIO or sample:RATIO' if own else 'FILE:RATIO'} with a ratio between 0 and 1",
            hint=f"for example: {flag} {'self' if own else 'old.txt'}:0.5",
        )
    return Replay(None if head in (SELF, SAMPLE) else head, share, head == SELF)


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


def parse_protect(text: str) -> tuple[str, ...]:
    """The methods named by `--protect`, in the order given; () for `none`. Raises BadParameter for an unknown or repeated one."""
    if text == "none":
        return ()
    kinds = tuple(part.strip() for part in text.split(","))
    for kind in kinds:
        if kind not in PROTECTIONS:
            raise BadParameter(
                f"--protect is none, or some of {', '.join(PROTECTIONS)} with commas between, not {text!r}", hint="--protect spu,ewc"
            )
    if len(set(kinds)) < len(kinds):
        raise BadParameter(f"--protect {text} names a method twice", hint="name it once; --protect-weight makes it stronger")
    return kinds


def parse_ema(text: str) -> str | float:
    """`none`, `dynamic`, `paper`, or the share of the new weights in a fixed mean, above 0 and at most 1. Raises BadParameter."""
    if text in AVERAGES:
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise BadParameter(f"--ema is {', '.join(AVERAGES)} or a share such as 0.01, not {text!r}", hint="for example: --ema dynamic")
    return share


def parse_slow(items: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """(step, counted from 1, factor) of every `--slow STEP:FACTOR`. Raises BadParameter."""
    found = []
    for item in items:
        head, _, tail = item.partition(":")
        try:
            step, factor = int(head), float(tail)
        except ValueError:
            step, factor = 0, math.nan
        if step < 1 or not 0 < factor < 1:
            raise BadParameter(f"--slow {item!r} is not STEP:FACTOR with a factor between 0 and 1", hint="for example: --slow 80:0.25")
        found.append((step, factor))
    return tuple(found)


def check_controls(op: Update) -> None:
    """What `Update` checks about the controls of forgetting: values, and what cannot be combined. Raises BadParameter."""
    kinds, _, _ = parse_protect(op.protect), parse_ema(op.ema), parse_slow(op.slow)
    require(0 < op.protect_rate <= 1, f"--protect-rate is a share above 0, up to 1, not {op.protect_rate}")
    weight = op.protect_weight
    require(weight is None or (math.isfinite(weight) and weight > 0), f"--protect-weight must be a positive number, not {weight}")
    require(weight is None or any(k != "spu" for k in kinds), "--protect-weight is for ewc, hle and l2sp", "--protect ewc")
    require(0 < op.blend <= 1, f"--blend is a share above 0, up to 1, not {op.blend}")
    require(op.renew_embeddings >= 0, f"--renew-embeddings must not be negative, it is {op.renew_embeddings}")
    require(op.begin in BEGINNINGS, f"--from is one of {', '.join(BEGINNINGS)}, not {op.begin!r}")
    if op.method != "full":
        for said, flag in ((kinds, "--protect"), (op.renew_embeddings, "--renew-embeddings"), (op.begin != "weights", "--from stable")):
            require(not said, f"{flag} is for an update of all weights", "leave out --expand, --tune and --adapter")
    if op.renew_embeddings:
        require(op.renew_embeddings <= op.steps, "--renew-embeddings must leave a whole round: at most --steps")
        require("spu" not in kinds, "--protect spu holds the embeddings still that --renew-embeddings draws again")
    if op.begin == "stable":
        require(not kinds and not op.renew_embeddings, "--from stable goes on with a run as it was", "leave the other controls out")
