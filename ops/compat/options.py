"""What may be asked of a compatible update, and what it means. Pure Python.

Focal distillation is positive-congruent training's (Yan et al., 2011.09161), the token masks are MUSCLE's (2407.09435), whose description
leaves open whose mistakes decide: those of the model in training (`muscle-student`) or those of the frozen new version (`muscle-new`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..base import requirement

if TYPE_CHECKING:
    from ..update.train import Update

require = requirement("align")
METHODS = ("focal-kl", "focal-logits", "kd", "muscle-student", "muscle-new")
SHARE = 0.5  # of the rows, when no ratio is given
DEFAULTS = "the defaults are focal-kl, alpha 1, beta 5, tau 1, lambda 1"  # a hint that fits every verb that asks
TOP = 64  # tokens of a stored distribution


@dataclass(frozen=True, slots=True)
class Settings:
    """How a version is held to an older one: `focal` weights are alpha + beta where the old version is right."""

    method: str = "focal-kl"
    alpha: float = 1.0
    beta: float = 5.0
    tau: float = 1.0  # temperature of the divergence; the card's 100 is for image classes, 1 was measured for language models
    weight: float = 1.0  # lambda
    labels: float = 1.0  # of the anchors' own answers, which focal distillation and kd learn beside the old version's

    def __post_init__(self) -> None:
        require(self.method in METHODS, f"a compatible update is one of {', '.join(METHODS)}, not {self.method!r}", DEFAULTS)
        for name, value in (("alpha", self.alpha), ("beta", self.beta), ("lambda", self.weight), ("labels", self.labels)):
            require(math.isfinite(value) and value >= 0, f"{name} must not be negative, it is {value}", DEFAULTS)
        require(math.isfinite(self.tau) and self.tau > 0, f"tau is a temperature above 0, not {self.tau}", DEFAULTS)
        require(self.muscle or self.alpha + (0 if self.plain else self.beta) > 0, "alpha and beta are 0: nothing would be kept", DEFAULTS)
        require(self.weight > 0, "lambda is 0: nothing would be kept", DEFAULTS)

    @property
    def muscle(self) -> bool:
        """Two teachers and a mask per token."""
        return self.method.startswith("muscle")

    @property
    def plain(self) -> bool:
        """Distillation that asks nobody who is right."""
        return self.method == "kd"


@dataclass(frozen=True, slots=True)
class AnchorFile:
    """One file of anchors and its share of all rows."""

    path: str
    share: float


def parse_anchors(text: str) -> AnchorFile:
    """`FILE` or `FILE:RATIO`; raises BadParameter for a ratio outside 0..1."""
    head, colon, tail = text.rpartition(":")
    try:
        share = float(tail) if colon and head else None
    except ValueError:  # a colon that belongs to the name
        share = None
    if share is None:
        return AnchorFile(text, SHARE)
    require(0 < share < 1, f"--compat-data {text!r}: the ratio is a share of the rows between 0 and 1", "for example anchors.jsonl:0.5")
    return AnchorFile(head, share)


def check_compat(op: Update) -> None:
    """Raise BadParameter when the compat options of an update contradict each other."""
    settings = settings_of(op)
    if op.compat_with is None:
        return
    require(bool(op.compat_data), "--compat-with needs --compat-data: records that the older version answers", "--compat-data FILE:0.5")
    require(op.compat_new is None or settings.muscle, f"{op.compat} has one teacher: --compat-new is MUSCLE's", "--compat muscle-student")
    parse_anchors(op.compat_data or "")


def check_idle(op: Update) -> None:
    """Raise BadParameter for a compat option that means nothing because no older version is named."""
    if op.compat_with is None:
        own = [field for field in fields(op) if field.name.startswith("compat")]
        flag = next((field.name.replace("_", "-") for field in own if getattr(op, field.name) != field.default), None)
        require(flag is None, f"--{flag} is given without --compat-with", "name the older version: --compat-with REV")


def settings_of(op: Update) -> Settings:
    """How an update is held to an older version."""
    return Settings(op.compat, op.compat_alpha, op.compat_beta, op.compat_tau, op.compat_lambda, op.compat_labels)
