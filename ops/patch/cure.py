"""`patch.train`: a robust version trained from a clean one, against an adversary that moves inputs a little. Imports no torch.

CURE: Gowda, Zonooz, Arani, arXiv 2401.14948 (ICLR 2024). Its two baselines train in the same room: TRADES is CURE without conserving and
without a revision model, AT learns from moved inputs alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...registry.errors import BadParameter
from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("patch train")
METHODS = ("cure", "trades", "at")
EPSILON = 0.031  # of the paper, for pixels from 0 to 1


@dataclass(frozen=True, slots=True)
class Cure(Operation):
    """Train a robust version against small changes of its inputs."""

    name: ClassVar[str] = "patch.train"
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = True

    data: str = option(help="labelled records: JSONL of image or text with a label, or prompt with its answer; or a suite (.toml)")
    method: str = option("cure", help="cure, or a baseline: trades (nothing conserved, no revision), at (moved inputs alone)")
    epsilon: float | None = option(
        None, help=f"how far an input may move: pixels {EPSILON:g}; embeddings: times their root mean square, to be given"
    )
    attack_steps: int = option(10, help="steps of the adversary")
    conserve: float = option(0.3, help="cure: share of each matrix that stays as it is in a step, by prominence")
    natural: float = option(0.1, help="cure: weight of clean inputs in the prominence of a weight; moved ones have the rest")
    trade: float = option(1.0, help="weight of the difference between answers to clean and to moved inputs")
    consistency: float = option(1.0, help="cure: weight of the difference to the revision model's answers")
    revise: float = option(0.2, help="cure: how often the revision model takes a step towards the trained one")
    decay: float | None = option(None, help="cure: what the revision model keeps of itself in such a step (default: by number of steps)")
    scope: str = option(".", help="cure: regular expression; matrices whose names it finds are conserved, others move freely")
    strict: bool = option(True, help="cure: what is conserved keeps its bits; else momentum and decay still move it")
    steps: int = option(200, help="optimizer steps")
    lr: float | None = option(None, help="peak learning rate (default: by model size)")
    batch: int = option(64, help="records per step")
    holdout: float = option(0.1, help="share of the records that is measured and not trained on")
    clean_limit: float = option(0.02, help="share of held-out records, right before, that may be lost on clean inputs")
    weight_decay: float = option(0.0, help="AdamW weight decay of matrices")
    clip: float = option(1.0, help="largest gradient norm; 0 turns clipping off")
    save_every: int = option(50, help="steps between resumable states; 0 for none")

    def __post_init__(self) -> None:
        require(bool(self.data), "--data needs the path of a file of records")
        require(self.method in METHODS, f"--method is one of {', '.join(METHODS)}, not {self.method!r}", "--method cure")
        for flag, count in (("steps", self.steps), ("batch", self.batch), ("attack-steps", self.attack_steps)):
            require(count >= 1, f"--{flag} must be at least 1, not {count}")
        require(self.save_every >= 0, f"--save-every must not be negative, it is {self.save_every}")
        for flag, positive in (("epsilon", self.epsilon), ("lr", self.lr)):
            require(positive is None or (math.isfinite(positive) and positive > 0), f"--{flag} must be a positive number, not {positive}")
        for flag, number in (("trade", self.trade), ("consistency", self.consistency), ("clip", self.clip)):
            require(math.isfinite(number) and number >= 0, f"--{flag} must not be negative, it is {number}")
        shares = {"conserve": self.conserve, "natural": self.natural, "revise": self.revise, "decay": self.decay}
        for flag, share in {**shares, "clean-limit": self.clean_limit}.items():
            require(share is None or 0 <= share <= 1, f"--{flag} is a share from 0 to 1, not {share}")
        require(0 < self.holdout <= 0.5, f"--holdout is a share above 0 and at most 0.5, not {self.holdout}")
        require(0 <= self.weight_decay < 1, f"--weight-decay is from 0 to 1, not {self.weight_decay}")
        try:
            re.compile(self.scope)
        except re.error as fault:
            raise BadParameter(f"--scope {self.scope!r} is no regular expression: {fault}", hint="for example: --scope mlp") from fault

    # --- the contract ---

    def plan(self, view: ModelView) -> Plan:
        from .curing import plan

        return plan(self, view)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .curing import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .curing import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        return Expectations(notes=("robustness costs some accuracy on clean inputs; the check says how much",))
