"""Which blocks an update freezes, tunes and adds: decided before training and kept with the commit. Pure Python, no tensor.

LLM-ADE (Choi and Gazeley, 2404.13028): blocks that turn the new text most are adapted, or get a new block behind them; the others are
frozen. How many new blocks, and whether the block that a new one was copied from is trained, the paper leaves open: both are options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadParameter, Incompatible
from .layout import Layout, explicit, lay_out, layout_for
from .options import require

if TYPE_CHECKING:
    from .train import Update

INITS = ("zeros", "copy", "random", "merge-linear", "merge-slerp")
TOKENS = ("mean", "last")
RANKS = ("new", "difference")
SOURCES = ("frozen", "tuned")
FROZEN, TUNED, NEW, ADAPTED = "frozen", "tuned", "new", "adapted"


@dataclass(frozen=True, slots=True)
class Importance:
    """How far each block of the parent turns what passes through it: mean angle / pi on new and on old text, 0 to 1."""

    new: tuple[float, ...]
    old: tuple[float, ...] | None  # None: there is no old text, and the model cannot be asked for any
    old_text: str | None  # name of the replayed file, or "self" for text sampled from the model
    token: str
    rows: tuple[int, int]  # of new and of old text

    def to_json(self) -> dict[str, Any]:
        """For artifacts and records."""
        return {
            "new": list(self.new),
            "old": None if self.old is None else list(self.old),
            "old_text": self.old_text,
            "token": self.token,
            "rows": list(self.rows),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Importance:
        """The inverse of `to_json`."""
        old = None if data["old"] is None else tuple(data["old"])
        return cls(tuple(data["new"]), old, data["old_text"], data["token"], (data["rows"][0], data["rows"][1]))


@dataclass(frozen=True, slots=True)
class Growth:
    """The plan of one update: the origin table, the old blocks that are trained (numbers of the parent), and what decided it."""

    layout: Layout
    tuned: tuple[int, ...] = ()
    importance: Importance | None = None

    def trained(self) -> frozenset[int]:
        """Numbers in the result of the blocks that are trained."""
        places = self.layout.old_index()
        return frozenset(self.layout.new_blocks) | {places[i] for i in self.tuned}

    def to_json(self) -> dict[str, Any]:
        """For the artifact that check and later transfers read."""
        found = None if self.importance is None else self.importance.to_json()
        return {"origin": [list(entry) for entry in self.layout.origin], "tuned": list(self.tuned), "importance": found}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Growth:
        """The inverse of `to_json`."""
        found = None if data["importance"] is None else Importance.from_json(data["importance"])
        return cls(Layout(tuple((source, new) for source, new in data["origin"])), tuple(data["tuned"]), found)


def check_growth(op: Update) -> None:
    """Raise BadParameter for options about blocks that cannot work, or would do nothing."""
    words = (
        ("init", op.init, INITS),
        ("token", op.token, TOKENS),
        ("rank", op.rank, RANKS),
        ("source", op.source, SOURCES),
    )
    for flag, value, known in words:
        require(value in known, f"--{flag} is one of {', '.join(known)}, not {value!r}")
    require(op.expand >= 0, f"--expand must not be negative, it is {op.expand}")
    require(op.tune >= 0, f"--tune must not be negative, it is {op.tune}")
    numbers = explicit(op.where)
    require(numbers is None or not op.expand or len(numbers) == op.expand, f"--where {op.where} does not name {op.expand} blocks")
    require(not (op.expand and op.adapter), "--expand and --adapter cannot be combined", "expand first, then train an adapter")
    require(not (op.tune and op.adapter), "--tune and --adapter cannot be combined", "an adapter leaves every block frozen")
    require(op.grows or op.init == "zeros", f"--init {op.init} is about new blocks, and there are none", "add some: --expand N")
    require(op.grows or op.source == "frozen", "--source tuned is about new blocks, and there are none", "--tune K trains old ones")


def ranked(importance: Importance, by: str = "new") -> list[int]:
    """Blocks by falling importance. The first is left out (it rewrites the embedding and would always win), and so is the last.

    `by`: `new`, the angle on new text; `difference`, that minus the angle on old text. In a model of two blocks the last one is ranked,
    or there would be none. Raises Incompatible for a difference from nothing.
    """
    scores = importance.new
    if by == "difference":
        if importance.old is None:
            raise Incompatible("there is no old text to compare with, and the model cannot be asked for any", hint="--replay FILE:RATIO")
        scores = tuple(a - b for a, b in zip(importance.new, importance.old, strict=True))
    return sorted(rankable(len(scores)), key=lambda i: -scores[i])


def rankable(blocks: int) -> range:
    """Numbers of the blocks that importance may choose."""
    return range(1, blocks - 1) if blocks > 2 else range(1, blocks)


def choose(op: Update, blocks: int, importance: Importance | None = None) -> Growth:
    """The plan of `op` for a model of `blocks` blocks; `importance` is needed where `op.measures_blocks`. Raises BadParameter."""
    ranking = None if importance is None else ranked(importance, op.rank)
    count = op.new_blocks(blocks)
    fits_ranking(op, blocks)
    layout = layout_for(op.where, blocks, count, ranking) if count else lay_out(blocks, ())
    tuned = set((ranking or ())[: op.tune])
    if op.source == "tuned":
        tuned |= {source for source, new in layout.origin if new}
    return Growth(layout, tuple(sorted(tuned)), importance)


def fits_ranking(op: Update, blocks: int) -> None:
    """Raise BadParameter when more blocks are to be chosen by importance than it ranks."""
    most = len(rankable(blocks))
    if op.where == "importance" and op.new_blocks(blocks) > most:
        raise BadParameter(f"importance can place at most {most} blocks in this model of {blocks}", hint="--where interleave")
    if op.tune > most:
        raise BadParameter(f"--tune {op.tune}: importance ranks {most} of the {blocks} blocks of this model", hint=f"--tune {most}")


def table(growth: Growth, untouched: str = FROZEN) -> list[dict[str, Any]]:
    """One row per block of the result: its number, the parent's block it comes from, the angles there, and what happens to it.

    `untouched`: what is said of blocks that are neither new nor tuned. New blocks have no angles: nothing has passed through them yet.
    """
    found, rows = growth.importance, []
    blocks = sum(not new for _, new in growth.layout.origin)
    for number, (source, new) in enumerate(growth.layout.origin):
        angle = None if new or found is None else round(found.new[source], 6)
        old = None if new or found is None or found.old is None else round(found.old[source], 6)
        rows.append(
            {
                "block": number,
                "from": source,
                "plan": NEW if new else TUNED if source in growth.tuned else untouched,
                "new_data": angle,
                "old_data": old,
                "difference": None if angle is None or old is None else round(angle - old, 6),
                "ranked": not new and source in rankable(blocks),
            }
        )
    return rows
