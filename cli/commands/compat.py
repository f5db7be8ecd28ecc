"""`mlc compat`: may vectors of one version be searched against a gallery of another?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...registry.errors import BadParameter, OverLimit
from ..context import Session
from ..options import complete_rev

if TYPE_CHECKING:
    from ...registry.ids import CommitId

EPILOG = """Examples:
  mlc compat v1 v2                        what was measured when v2 was aligned
  mlc compat v1 v2 --suite search.toml    measure it now on a retrieval suite
  mlc compat v1 v2 --exit-code            exit 5 unless it is known that they are

The gallery is A's, the queries are B's. Compatible: A's gallery is searched better by B's queries than by A's own, the lower 95 % bound
of the paired gain in average precision above zero; where A's own search is all but perfect, not worse by 0.01.
`mlc align B --to A --data F` makes such a version."""


def run(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="The version that made the gallery.", autocompletion=complete_rev)],
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The version that asks.", show_default="HEAD", autocompletion=complete_rev)
    ] = None,
    suite: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Measure now, on this retrieval suite.")] = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 5 unless the two are known to be compatible.")] = False,
) -> None:
    """Say whether a version's vectors may be searched in an older version's gallery."""
    gallery, asking = session.repo.resolve(a), session.repo.resolve(b)
    verdict = _measured(session, gallery, asking, suite) if suite is not None else recorded(session, gallery, asking)
    document = {"a": gallery, "b": asking, "compatible": None if verdict is None else verdict["compatible"], "verdict": verdict}
    session.show(document, lambda: _render(session, document))
    if verdict is None:
        session.hint(f"mlc compat {gallery[:12]} {asking[:12]} --suite FILE")
    if exit_code and not document["compatible"]:
        raise OverLimit(
            f"{asking[:12]} is not known to be compatible with the gallery of {gallery[:12]}.", hint="mlc align NEW --to OLD --data F"
        )


def recorded(session: Session, gallery: CommitId, asking: CommitId) -> dict[str, Any] | None:
    """The verdict that `asking` was made with; by snapshot, since equal content gives equal vectors. None when there is none."""
    wanted = session.repo.commit(gallery).snapshot
    if wanted == session.repo.commit(asking).snapshot:
        return {"commit": gallery, "snapshot": wanted, "compatible": True, "slice": None, "same": True}
    found: Any = session.repo.commit(asking).check.get("compat")
    pairs = found.get("pairs", []) if isinstance(found, dict) else []
    return next((pair for pair in pairs if pair["snapshot"] == wanted), None)


def _measured(session: Session, gallery: CommitId, asking: CommitId, word: str) -> dict[str, Any]:
    from ...ops.embed.ranking import compatible, paired_gain
    from ...ops.embed.search import cross
    from ..measuring import find_suites

    [suite] = find_suites(session, [word])
    if suite.kind != "retrieval":
        raise BadParameter(f"{suite.name} is a suite of kind {suite.kind}", hint='a suite of kind = "retrieval" has queries and a gallery')
    import torch

    old, new = (session.repo.view(session.repo.commit(commit).snapshot) for commit in (gallery, asking))
    found = cross(old, new, suite.examples(), session.progress)
    scores = {name: torch.tensor([row.score for row in rows], dtype=torch.float64) for name, (rows, _) in found.items()}
    gain = paired_gain(scores["new_old"], scores["old_old"])
    metrics = {name: values for name, (_, values) in found.items()}
    return {
        "commit": gallery,
        "snapshot": session.repo.commit(gallery).snapshot,
        "suite": suite.name,
        "suite_digest": suite.digest,
        "metrics": metrics,
        "top1_old": metrics["old_old"]["accuracy"],
        "top1": metrics["new_old"]["accuracy"],
        "map_old": metrics["old_old"]["map"],
        "map": metrics["new_old"]["map"],
        "gain": gain.mean,
        "lower95": gain.lower95,
        "compatible": compatible(gain.lower95, metrics["old_old"]["map"] or 0.0),
        "metric": "cosine",
    }


def _render(session: Session, document: dict[str, Any]) -> None:
    from ..render import text

    paint, verdict = session.paint, document["verdict"]
    a, b = paint.yellow(document["a"][:12]), paint.yellow(document["b"][:12])
    if verdict is None:
        session.line(f"Nobody has measured whether vectors of {b} may be searched in a gallery of {a}.")
        return
    if verdict.get("same"):
        session.line(f"{a} and {b} hold the same weights: their vectors are equal.")
        return
    word = paint.green("may be searched") if verdict["compatible"] else paint.red("must not be searched")
    place = f", numbers {verdict['slice'][0]}:{verdict['slice'][1]}" if verdict.get("slice") else ""
    session.line(f"Vectors of {b} {word} in a gallery of {a} (cosine{place}).")
    session.line(
        f"top-1 {text.percent(verdict['top1_old'])} -> {text.percent(verdict['top1'])}   mAP {text.number(verdict['map_old'])} -> "
        f"{text.number(verdict['map'])}   gain {verdict['gain']:+.4f}, at least {verdict['lower95']:+.4f} (95 %)"
    )
