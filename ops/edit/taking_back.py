"""The work behind `edit.revert`: read what the edit keeps, write the others again, and see that the facts went and the others stayed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...registry.errors import CheckFailed
from ...registry.ids import short
from ..base import Change, Check, Run
from ..engine.local import placed, threads
from ..evaluate.coder import Coder
from ..models import load_model, load_tokenizer
from . import keep
from .conflicts import fact_of
from .measure import bench_of, preferences, rivals
from .mend import restored
from .unedit import Kept, unwrite

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .revert import RevertFacts

MEANS = "stored artifact"
SLACK = 0.005  # share of the other facts that may be lost: none of fewer than 200
NAMED = 5  # of them, in a refusal


def apply(op: RevertFacts, view: ModelView, run: Run) -> Iterator[Change]:
    """The matrices without the facts. Raises CheckFailed when the edit's artifacts are gone."""
    with threads(run.threads):
        changes = list(unwrite(view, _kept(op, run), op.facts, run, op.lost))
    run.record("means", MEANS)
    yield from changes


def check(op: RevertFacts, before: ModelView, after: ModelView, run: Run) -> Check:
    """Passed when no fact still prefers the edit's answer (unless it did so before the edit), and the others hold."""
    _, about = keep.unpack(_artifact(op, run, keep.KEYS))
    facts = [fact_of(row) for row in about["facts"]]
    gone = [f for f in facts if f.id in op.facts]
    rest = [f for f in facts if f.id not in {*op.facts, *op.lost}]
    with threads(run.threads):
        parent, coder = run.version(f"{op.rev}~1"), Coder(load_tokenizer(before))
        bench = bench_of(placed(load_model(parent, dtype=torch.float32)), coder, "measure the edit's parent", run.progress)
        other = dict(zip([f.id for f in facts], rivals(facts, bench), strict=True))
        asked = [(f, other[f.id]) for f in gone]
        first = preferences(asked, bench)
        held = preferences([(f, other[f.id]) for f in rest], _bench(before, coder, "measure before", run))
        bench = _bench(after, coder, "measure after", run)
        now, holds = preferences(asked, bench), preferences([(f, other[f.id]) for f in rest], bench)
    back = [restored(a, b) for a, b in zip(first, now, strict=True)]
    turned = [f.id for f, a, b in zip(rest, held, holds, strict=True) if a > 0.5 >= b]
    values: dict[str, Any] = {
        "requested": len(op.facts),
        "facts": list(op.facts),
        "restored": _r(min(back)),
        "restored_mean": _r(sum(back) / len(back)),
        "others": len(rest),
        "efficacy_before": _share(held),
        "efficacy": _share(holds),
        "turned": turned,
    }
    stuck = [f.id for f, a, b in zip(gone, first, now, strict=True) if b > 0.5 >= a]
    values["landed"] = not stuck
    hint = f"mlc revert {short(op.rev)} takes the whole edit back"  # type: ignore[arg-type]
    if stuck:
        return Check(False, values, f"the model still prefers the edit's answer to fact {stuck[0]}", hint)
    if len(turned) > may_turn(len(rest)):
        verb = "does" if len(turned) == 1 else "do"
        reason = f"{len(turned)} of the other {len(rest)} facts of the edit {verb} not hold without it: {_named(turned)}"
        return Check(False, values, reason, f"take {'it' if len(turned) == 1 else 'them'} back, too, with --fact; or {hint}")
    return Check(True, values)


def may_turn(others: int) -> int:
    """How many of so many other facts of an edit may be lost with what is taken back."""
    return int(SLACK * others + 1e-9)


def _kept(op: RevertFacts, run: Run) -> Kept:
    factors, keys = (_artifact(op, run, kind) for kind in (keep.FACTORS, keep.KEYS))
    rest = run.kept(op.after, keep.REST) if op.after else None
    return Kept(factors, keys, run.version(f"{op.rev}~1"), run.version(op.rev), rest, op.rev)


def _artifact(op: RevertFacts, run: Run, kind: str) -> bytes:
    data = run.kept(op.rev, kind)
    if data is None:
        hint = f"mlc revert {short(op.rev)} takes the whole edit back"  # type: ignore[arg-type]
        raise CheckFailed(f"{short(op.rev)} no longer keeps its {kind}", hint=hint)  # type: ignore[arg-type]
    return data


def _bench(view: ModelView, coder: Coder, phase: str, run: Run) -> Any:
    return bench_of(placed(load_model(view, dtype=torch.float32)), coder, phase, run.progress)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def _share(values: Sequence[float]) -> float | None:
    return _r(sum(p > 0.5 for p in values) / len(values)) if values else None


def _r(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
