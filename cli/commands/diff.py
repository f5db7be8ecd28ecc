"""`mlc diff`: what users would notice, then what moved to cause it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...registry.errors import OverLimit
from ..context import Session
from ..options import complete_rev

EPILOG = """Examples:
  mlc diff main~1 main --flips            which examples were lost and won
  mlc diff v1 v2 --weights                distances by layer and role
  mlc diff v1 v2 --stat                   stored numbers only, at once
  mlc diff v1 v2 --exit-code --max-nfr 0.01

Suites measured on both sides are compared from stored rows; a configured suite that is missing on a side is
measured first (not under --stat)."""


def run(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="The older version: any rev.", autocompletion=complete_rev)],
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The newer version: any rev.", show_default="HEAD", autocompletion=complete_rev)
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="List every flipped example.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Distances by layer and role.")] = False,
    stat: Annotated[bool, typer.Option("--stat", help="Stored numbers only: measure and compute nothing.")] = False,
    suite: Annotated[list[str] | None, typer.Option(metavar="NAME|FILE", help="Only this suite.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="List at most N flips of a suite; counts stay whole.", min=0)] = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 5 when a suite is over the limit.")] = False,
    max_nfr: Annotated[
        float | None,
        typer.Option(metavar="X", help="The limit, a negative flip rate; implies --exit-code.", show_default="0", min=0.0, max=1.0),
    ] = None,
) -> None:
    """Compare two versions: behaviour, weights and config."""
    from .. import differences
    from ..measuring import pairs, texts

    repo = session.repo
    first, second = repo.resolve(a), repo.resolve(b)
    listed = limit if flips or session.json else 0
    suites = {
        name: differences.behaviour(repo, before, after, listed)
        for name, before, after in pairs(session, first, second, only=suite, measure=not stat)
    }
    document: dict[str, Any] = {
        "a": first,
        "b": second,
        "suites": suites,
        "weights": differences.weights(repo, first, second, compute=not stat and (weights or not flips), progress=session.progress),
        "config": differences.config(repo, first, second),
        "files": differences.files(repo, first, second),
    }
    asked = texts(session, suite) if flips and not session.json else {}
    session.show(document, lambda: _render(session, document, asked if flips else None, full=weights))
    if exit_code or max_nfr is not None:
        _judge(suites, max_nfr or 0.0)
    session.hint(f"mlc gate {second[:12]} --against {first[:12]}" if flips else f"mlc diff {first[:12]} {second[:12]} --flips")


def _judge(suites: dict[str, Any], limit: float) -> None:
    over = {name: s["nfr"] for name, s in suites.items() if s["nfr"] is not None and s["nfr"] > limit}
    if over:
        name, rate = max(over.items(), key=lambda item: item[1])
        raise OverLimit(
            f"{100 * rate:.2f} % of {name} was right before and is wrong now; the limit is {100 * limit:.2f} %.",
            hint="mlc diff A B --flips",
        )


def _render(session: Session, document: dict[str, Any], asked: dict[str, dict[str, str]] | None, *, full: bool) -> None:
    """`asked` has the examples' texts by suite digest; None lists no flips."""
    from ..render import diff

    if document["suites"]:
        diff.render_behaviour(session, document["suites"], asked)
    else:
        session.line(session.paint.dim("No suite was measured on both sides: mlc eval REV --suite FILE."))
    diff.render_weights(session, document["weights"], full=full)
    diff.render_config(session, document["config"], document["files"])
