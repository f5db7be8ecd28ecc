"""`align.embeddings`: an encoder whose vectors may be searched against the gallery of an older one.

The dataclass is the whole surface: options, recipe keys and audit record. It imports no torch. Methods: `oca` (orthogonal layer over
an expanded representation, arXiv 2408.08793), `bt2` (basis transformation, arXiv 2211.03989), `bct` (the old prototypes as a second
classifier, arXiv 2003.11942), `procrustes` (no training: the best rotation of what is there).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("align")
METHODS = ("oca", "bt2", "bct", "procrustes")


@dataclass(frozen=True, slots=True)
class AlignEmbeddings(Operation):
    """Make an encoder's vectors searchable in the gallery of an older version."""

    name: ClassVar[str] = "align.embeddings"
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = True

    to: str = option(help="the older version, whose gallery is to be searched")
    data: str = option(help="labelled texts: JSONL with `text` and `label`; texts of one label belong together")
    method: str = option("oca", help="oca, bt2, bct or procrustes (which trains nothing)")
    steps: int = option(200, help="optimizer steps")
    lr: float = option(1e-4, help="peak learning rate")
    batch: int = option(64, help="texts per step")
    extra: int = option(32, help="oca: dimensions beside the old ones; bt2: old dimensions that are kept as they are")
    old_weight: float = option(10.0, help="weight of the loss against the old version's class means")
    scale: float = option(20.0, help="factor on cosines before the softmax over classes")
    holdout: float = option(0.2, help="share of the labels that is measured and never trained on")
    save_every: int = option(100, help="steps between resumable states; 0 for none")

    def __post_init__(self) -> None:
        require(self.method in METHODS, f"--method is one of {', '.join(METHODS)}, not {self.method!r}")
        require(bool(self.to) and bool(self.data), "--to needs a version and --data a file of labelled texts")
        for flag, value in (("steps", self.steps), ("batch", self.batch)):
            require(value >= 1, f"--{flag} must be at least 1, not {value}")
        for flag, value in (("extra", self.extra), ("save-every", self.save_every)):
            require(value >= 0, f"--{flag} must not be negative, it is {value}")
        for flag, value in (("lr", self.lr), ("scale", self.scale)):
            require(math.isfinite(value) and value > 0, f"--{flag} must be a positive number, not {value}")
        require(math.isfinite(self.old_weight) and self.old_weight >= 0, f"--old-weight must not be negative, it is {self.old_weight}")
        require(0 < self.holdout <= 0.5, f"--holdout is a share of the labels, above 0 and at most 0.5, not {self.holdout}")

    def plan(self, view: ModelView) -> Plan:
        from .planning import plan

        return plan(self, view)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .session import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .verdict import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        return Expectations(notes=("vectors of the version before cannot be compared with the new ones, except where a verdict says so",))
