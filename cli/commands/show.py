"""`mlc show`: everything one commit knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..context import Session
from ..options import Rev


def run(
    session: Session,
    rev: Rev = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with type, shape and digest.")] = False,
    evidence: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the evidence folder of an unlearning.", show_default=False)
    ] = None,
) -> None:
    """Show one commit: what was done, measured and decided."""
    from ...registry.catalog import queries
    from ..views import detail_json, tensors_json

    repo = session.repo
    commit_id = repo.resolve(rev)
    document: dict[str, Any] = {"commit": detail_json(commit_id, queries.commit_detail(repo, commit_id))}
    if tensors or session.json:
        document["tensors"] = tensors_json(repo.snapshot(document["commit"]["snapshot"]))
    if evidence is not None:
        from ...policies.evidence import write_evidence

        document["evidence"] = str(write_evidence(repo, commit_id, evidence))
    session.show(document, lambda: _render(session, document))
    parents = document["commit"]["parents"]
    session.hint(f"mlc diff {parents[0][:12]} {commit_id[:12]}" if parents else "mlc show --tensors")


def _render(session: Session, document: dict[str, Any]) -> None:
    from ..render.commit import show_lines
    from ..render.log import names_of

    repo = session.repo
    names = names_of(repo.head(), repo.branches(), repo.tags(), repo.aliases())
    session.lines(show_lines(document["commit"], names.get(document["commit"]["id"], []), session.paint))
    if "evidence" in document:
        session.line(f"evidence {document['evidence']}")
    if "tensors" in document:
        from ..render.console import print_table
        from ..render.text import printable

        rows = [
            (printable(t["name"]), t["dtype"], "x".join(map(str, t["shape"])) or "scalar", t["digest"][:12]) for t in document["tensors"]
        ]
        session.line()
        print_table(session.console(), ("tensor", "dtype", "shape", "digest"), rows, right=("shape",), styles={"digest": "dim"})
