"""`mlc reindex`: the catalog is derived; here it is derived again."""

from __future__ import annotations

import time
from typing import Any

from ..context import Session
from ..render.text import count, seconds


def run(session: Session) -> None:
    """Rebuild the catalog from objects and journal."""
    from ...registry.maintenance.reindex import reindex

    start = time.perf_counter()
    report = reindex(session.repo)
    document = {**report.to_json(), "seconds": round(time.perf_counter() - start, 3)}
    session.show(document, lambda: _render(session, document))
    session.hint("mlc log")


def _render(session: Session, document: dict[str, Any]) -> None:
    held = (
        count(document["commits"], "commit"),
        count(document["evaluations"], "evaluation"),
        count(document["predictions"], "prediction"),
    )
    session.line(f"The catalog stands at journal record {document['applied_seq']:,}: {', '.join(held)}, in {seconds(document['seconds'])}.")
    if document["unreadable"]:
        session.warn(f"{count(document['unreadable'], 'object')} could not be read for it: mlc fsck --level 2")
