"""Did the facts land, and what did they cost? The test between the writing and the commit.

Fewer than LANDED of the facts: exit 10, nothing is committed. Editing a block that cannot carry the fact is the classic case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...registry.errors import CheckFailed
from ..base import Check, Run
from ..engine.local import mean_loss, placed, threads
from ..evaluate.coder import Coder
from ..models import load_model, load_tokenizer
from . import keep
from .covariance import ordinary_rows
from .measure import Figures, asked_of, bench_of, figures, preferences, retained, unchanged
from .session import facts_of, result_key
from .site import editable, inner_width

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..data.facts import Fact
    from .edit import Edit

LANDED = 0.8  # share of the facts whose new answer must be likelier than the old one
TEXT_ROWS = 32
NAMED = 5  # facts named in a refusal


def check(op: Edit, before: ModelView, after: ModelView, run: Run) -> Check:
    """Passed when at least LANDED of the facts landed."""
    with threads(run.threads):
        values, now, facts = _values(op, before, after, run)
    if values["landed"]:
        return Check(True, values)
    failed = [fact.id for fact, ok in zip(facts, now.landed, strict=True) if not ok]
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    layers = "-".join(map(str, dict.fromkeys((values["layers"][0], values["layers"][-1]))))
    reason = f"{len(failed)} of {len(facts)} facts did not land in layers {layers}: {', '.join(failed[:NAMED])}{more}"
    hint = "--layers auto finds where this model keeps its facts" if op.span is not None else "write fewer facts at a time, or more --steps"
    return Check(False, values, reason, hint)


def _values(op: Edit, before: ModelView, after: ModelView, run: Run) -> tuple[dict[str, Any], Figures, tuple[Fact, ...]]:
    given = facts_of(op)
    coder = Coder(load_tokenizer(before))
    rows = _spread(ordinary_rows(op.covariance, before, run, inner_width(editable(before)[0], before)))
    module = placed(load_model(before, dtype=torch.float32))
    bench = bench_of(module, coder, "measure before", run.progress)
    asked = asked_of(given.facts, bench)
    was, loss_before = figures(asked, bench), mean_loss(module, rows)
    earlier = keep.written(run.inherited(keep.MEMORY), given.facts)
    held = preferences(earlier, bench)
    module = placed(load_model(after, dtype=torch.float32))
    bench = bench_of(module, coder, "measure after", run.progress)
    now, loss_after, holds = figures(asked, bench), mean_loss(module, rows), preferences(earlier, bench)
    _, about = keep.unpack(run.artifact(keep.FACTORS, result_key(op, before, given.digest, run.seed), _absent))
    numbers = list(about["numbers"].values())
    values: dict[str, Any] = {
        "requested": len(given.facts),
        "landed": now.efficacy >= LANDED,
        "layers": about["layers"],
        "efficacy": _r(now.efficacy),
        "efficacy_before": _r(was.efficacy),
        "exact_match": _r(now.exact_match),
        "paraphrase": _r(now.paraphrase),
        "paraphrase_exact": _r(now.paraphrase_exact),
        "neighbourhood": _r(now.neighbourhood),
        "score": _r(now.score),
        "other_subjects": _r(retained(was.right_neighbours, now.right_neighbours)),
        "same_subject": _r(unchanged(was.kept_answers, now.kept_answers)),
        "text_loss_before": _r(loss_before),
        "text_loss_after": _r(loss_after),
        "drift": _r(max(n["drift"] for n in numbers)),
        "write_fraction": _r(min(n["fraction"] for n in numbers)),
        "capacity_used": _r(max(n["used"] for n in numbers)),
        "earlier_facts": len(earlier),
        "earlier_efficacy_before": _share(held),
        "earlier_efficacy": _share(holds),
    }
    return values, now, given.facts


def _absent() -> bytes:
    raise CheckFailed("the factors of this edit are gone", hint="run the edit again")


def _spread(rows: torch.Tensor) -> torch.Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), TEXT_ROWS)).round().long()]


def _share(preferred: list[float]) -> float | None:
    return _r(sum(p > 0.5 for p in preferred) / len(preferred)) if preferred else None


def _r(value: float | None) -> float | None:
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else round(value, 6)
