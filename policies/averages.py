"""Averages over the checkpoints of one run: an exponential mean, and coefficients found by a search over a suite (LCSC).

Both end in an ordinary linear merge whose weights sum to one, stored as its recipe; the versions are named oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..ops.merge.averages import Coefficients, ema_coefficients, search_coefficients
from ..ops.merge.merge import Merge
from ..ops.merge.settings import read_words
from ..registry.errors import BadParameter
from ..registry.ids import CommitId
from ..registry.records import Json
from .asking import find_suite
from .measure import Bench
from .outcome import Request
from .soup import deciding, graded, tried

if TYPE_CHECKING:
    from ..registry.repository import Repository

EMA, LCSC = "ema", "lcsc"
AVERAGES = (EMA, LCSC)
BUDGET, PATIENCE = 100, 40  # merges that are measured, and how many of them without gain
WORDS: dict[str, dict[str, Any]] = {EMA: {"rate": float, "interval": int}, LCSC: {"suite": str, "budget": int, "penalty": float}}


def averaged(repo: Repository, ids: tuple[CommitId, ...], values: Mapping[str, Any], request: Request) -> tuple[Merge, dict[str, Json]]:
    """(the merge, what is told in its check). Raises BadParameter, InputNotFound, Incompatible."""
    method = values["method"]
    if values.get("weights"):
        raise BadParameter(f"{method} finds its weights itself", hint="leave --weights out, or merge by --method linear")
    said = read_words(method, values.get("settings") or (), WORDS[method])
    plain = {key: value for key, value in values.items() if key not in ("method", "settings", "weights", "normalize", "ingredients")}
    told: dict[str, Json] = {"method": method, **said}

    def merge(coefficients: Coefficients) -> Merge:
        return Merge(ids, "linear", weights=coefficients, normalize=False, **plain)

    if method == EMA:
        try:
            found = ema_coefficients(len(ids), said.get("rate", 0.5), said.get("interval", 1))
        except ValueError as fault:
            raise BadParameter(str(fault), hint="for example: --set rate=0.5") from None
        return merge(found), {"average": {**told, "coefficients": list(found)}}
    suite = find_suite(request, deciding(request, {name: said[name] for name in said if name == "suite"}, method))
    if request.dry_run:
        return merge((1.0 / len(ids),) * len(ids)), {}
    bench, budget = Bench(repo, request), said.get("budget", BUDGET)
    if budget < 1:
        raise BadParameter(f"a budget of {budget} measures nothing", hint="for example: --set budget=100")
    best = search_coefficients(
        len(ids),
        lambda coefficients: graded(suite, tried(bench, suite, merge(coefficients)))[1],
        seed=request.seed,
        budget=budget,
        patience=PATIENCE,
        penalty=said.get("penalty", 1e-3),
    )
    told |= {"suite": suite.name, "tried": len(best.history), "score": best.score, "coefficients": list(best.coefficients)}
    return merge(best.coefficients), {"average": told}
