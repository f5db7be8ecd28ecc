"""`edit`: write facts into the weights in closed form. MEMIT (Meng et al. 2023) and AlphaEdit (Fang et al. 2025), all facts at once.

The dataclass is the whole surface: options, recipe keys and audit record. It imports no torch; the work is done by the rooms
beside it. What the papers tune by hand per model (rate, weight of the old keys, layer) is derived from the model unless given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ...registry.errors import BadParameter
from ..base import Change, Check, Expectations, History, Operation, Plan, Run, option, requirement
from .conflicts import settled
from .requests import asked
from .world import parse_dates

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("edit")
METHODS = ("memit", "alphaedit")
PRECISIONS = ("fp32", "fp64")
CONFLICTS = ("refuse", "new", "old")
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Edit(Operation):
    """Write facts into the model's weights."""

    name: ClassVar[str] = "edit"
    version: ClassVar[int] = 3  # 3: what stands before a subject is read once
    needs_forward: ClassVar[bool] = True

    facts: str | None = option(None, help="facts to write: JSONL with subject, prompt (one {}) and target_new")
    world: tuple[str, ...] = option((), help="two files of triples, the old world and the new one: what changed is written")
    method: str = option("memit", help="memit, or alphaedit (writes only where ordinary text leaves no trace)")
    layers: str = option(AUTO, help="blocks whose MLP output is changed, such as 5 or 3-8; auto finds where the model keeps its facts")
    covariance: str | None = option(None, help="ordinary text whose keys are to be spared (default: sampled from the model itself)")
    steps: int = option(40, help="most optimisation steps per target vector")
    lr: float | None = option(None, help="rate of the target vectors (default: by the size of the hidden state)")
    clamp: float = option(1.5, help="largest length of a target's change, relative to the hidden state: most are held to two thirds of it")
    kl: float = option(1.0, help="weight of what else the model says, about the subject and at large")
    weight_decay: float = option(0.05, help="weight of the target's relative length")
    strength: float | None = option(
        None, help="share of a single fact that is written, 0 to 1: sets the weight of old keys (default: 0.95)"
    )
    prefixes: int = option(3, help="sampled beginnings in front of each prompt")
    memory: bool = option(True, help="keep the keys of earlier edits as they are")
    dates: str | None = option(None, help="OLD..NEW: when the two worlds were (default: as their first lines say)")
    on_conflict: str = option("refuse", help="against an earlier edit, a request to forget or another line: refuse, new or old wins")
    skip: tuple[str, ...] = option((), help="ids of facts to leave out")
    over_capacity: bool = option(False, help="write even more facts than the layer can hold apart")
    threshold: float = option(0.02, help="alphaedit: share of the energy of ordinary keys that may be written into")
    batch: int = option(16, help="subjects whose targets are optimised together")
    precision: str = option("fp32", help="fp32, or fp64: no target depends on which facts stand beside it; twice the time")

    def __post_init__(self) -> None:
        require(bool(self.facts) or bool(self.world), "--facts needs the path of a file of facts")
        require(not (self.facts and self.world), "--facts and --world cannot be combined")
        require(len(self.world) in (0, 2), "--world takes two files: OLD NEW")
        require(self.method in METHODS, f"--method is one of {', '.join(METHODS)}, not {self.method!r}")
        require(self.on_conflict in CONFLICTS, f"--on-conflict is one of {', '.join(CONFLICTS)}, not {self.on_conflict!r}")
        require(self.precision in PRECISIONS, f"--precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        for flag, value, least in (("steps", self.steps, 1), ("batch", self.batch, 1), ("prefixes", self.prefixes, 0)):
            require(value >= least, f"--{flag} must be at least {least}, not {value}")
        require(self.lr is None or _positive(self.lr), f"--lr must be a positive number, not {self.lr}")
        require(_positive(self.clamp), f"--clamp must be a positive number, not {self.clamp}")
        require(self.kl >= 0 and math.isfinite(self.kl), f"--kl must not be negative, it is {self.kl}")
        decay = self.weight_decay
        require(decay >= 0 and math.isfinite(decay), f"--weight-decay must not be negative, it is {decay}")
        share = self.strength
        require(share is None or 0 < share < 1, f"--strength is a share between 0 and 1, not {share}")
        require(0 < self.threshold < 1, f"--threshold is a share between 0 and 1, not {self.threshold}")
        require(self.dates is None or bool(self.world), "--dates goes with --world")
        require(self.dates is None or parse_dates(self.dates) is not None, "--dates takes OLD..NEW")
        parse_layers(self.layers)

    # --- what the options mean ---

    @property
    def span(self) -> tuple[int, int] | None:
        """First and last block to change; None for auto."""
        return parse_layers(self.layers)

    @property
    def share(self) -> float:
        """The write fraction that a single fact is to reach."""
        return self.strength if self.strength is not None else 0.95

    # --- the contract ---

    def foresee(self, past: History) -> Edit:
        """Without the facts that what is behind wins against; raises BadParameter when nobody was told to win."""
        found = settled(asked(self), past, self.on_conflict)
        return replace(self, skip=tuple(dict.fromkeys((*self.skip, *found)))) if found else self

    def plan(self, view: ModelView) -> Plan:
        from .planning import plan

        return plan(self, view)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .session import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .checking import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=("the old answers of the edited facts are meant to go",))


def parse_layers(text: str) -> tuple[int, int] | None:
    """(first, last) of `5` or `3-8`, None for `auto`. Raises BadParameter."""
    if text == AUTO:
        return None
    first, dash, last = text.partition("-")
    if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
        raise BadParameter(f"--layers {text!r} is not auto, a block number, or a range such as 3-8", hint="--layers auto")
    low, high = int(first), int(last) if dash else int(first)
    if low > high:
        raise BadParameter(f"--layers {text} runs backwards", hint=f"--layers {high}-{low}")
    return low, high


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
