"""What else a check finds out when it is given the means: membership inference, a retrained reference, attacks on what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..evaluate.ks import ks_test
from ..evaluate.leakage import extraction_strength, membership, privleak
from .attacks import quantisation_attack, relearn, resistance
from .session import working

if TYPE_CHECKING:
    from ...registry.records import Json
    from .context import Context

SHUNNED = 0.25  # a membership AUC below this tells members apart as surely as one above 0.75
RELEARNED = ("after", "rest_after", "area", "recovered")  # of what `relearn` says, kept as flat values


def findings(ctx: Context, was: nn.Module, now: nn.Module, recall: float | None) -> dict[str, Json]:
    """Flat values: `mia_auc_*` with a holdout set, `*_reference` and `ks_*` with a reference, attacks with `--measure full`.

    was, now: the modules of both versions. recall: forget accuracy before.
    """
    reference = working(ctx.run.version(ctx.op.reference)) if ctx.op.reference else None
    stands = {"before": was, "after": now} | ({"reference": reference} if reference is not None else {})
    found: dict[str, Json] = {}
    for when, module in stands.items():
        found |= _leaks(ctx, module, when)
    if found.get("mia_auc_after") is not None:
        aim = found.get("mia_auc_reference")
        found["privleak_after"] = _rounded(privleak(found["mia_auc_after"], 0.5 if aim is None else aim))
        if found["mia_auc_after"] < SHUNNED:
            ctx.run.note(
                f"the forgotten records stand out by what they cost now (membership AUC {found['mia_auc_after']:.2f}, 0.5 is ideal): "
                "one who holds such a record can tell that it was removed; a smaller --strength leaves less of a mark"
            )
    if reference is not None:
        found |= _against(ctx, now, reference)
    if ctx.op.measure == "full":
        found |= _attacks(ctx, now, reference, recall)
    return found


def _leaks(ctx: Context, module: nn.Module, when: str) -> dict[str, Json]:
    """Membership inference with a holdout set; extraction strength when everything is asked for."""
    found: dict[str, Json] = {}
    if ctx.holdout is not None:
        aucs = membership(ctx.task, module, ctx.forget.rows, ctx.holdout.rows)
        # By loss it is plain `mia_auc`, the attack that every kind of model has.
        found |= {f"mia_{name.replace('auc_loss', 'auc')}_{when}": _rounded(value) for name, value in aucs.items()}
    if ctx.op.measure == "full":
        found[f"extraction_{when}"] = _rounded(extraction_strength(ctx.task, module, ctx.forget.rows))
    return found


def _against(ctx: Context, now: nn.Module, reference: nn.Module) -> dict[str, Json]:
    """Recall and loss of the reference, and whether the losses of both could come from one distribution."""
    theirs, ours = ctx.measure(ctx.forget, reference), ctx.measure(ctx.forget, now)
    found: dict[str, Json] = {"forget_reference": _rounded(theirs.accuracy), "forget_loss_reference": _rounded(theirs.loss)}
    if ours.loss is not None and theirs.loss is not None:
        test = ks_test(ours.losses, theirs.losses)
        found |= {"ks_statistic": _rounded(test.statistic), "ks_p": test.p}
    return found


def _attacks(ctx: Context, now: nn.Module, reference: nn.Module | None, recall: float | None) -> dict[str, Json]:
    """Relearning on a tenth of the records (against the reference, when there is one), and rounding to few bits."""
    settings = {"seed": ctx.run.seed, "threads": ctx.run.threads, "before": recall}
    told = relearn(now, ctx.task, ctx.forget.rows, **settings)  # type: ignore[arg-type]
    found: dict[str, Json] = {f"relearn_{key}": _rounded(told[key]) for key in RELEARNED}
    if reference is not None:
        theirs = relearn(reference, ctx.task, ctx.forget.rows, **settings)  # type: ignore[arg-type]
        found |= {"relearn_reference_area": _rounded(theirs["area"]), "relearn_resistance": _rounded(resistance(told, theirs))}
    rounded = quantisation_attack(now, ctx.task, ctx.forget.rows)
    return found | {f"forget_{bits}": _rounded(value) for bits, value in rounded.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
