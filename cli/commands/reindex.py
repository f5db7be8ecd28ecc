"""`mlc reindex`: the catalog is derived; here it is derived again."""

from __future__ import annotations

import time

from ..context import Session
from ..render.text import seconds


def run(session: Session) -> None:
    """Rebuild the catalog from objects and journal."""
    start = time.perf_counter()
    repo = session.repo
    repo.catalog.rebuild(repo)
    seq = repo.catalog.applied()[0]
    document = {"applied_seq": seq, "seconds": round(time.perf_counter() - start, 3)}
    session.show(
        document, lambda: session.line(f"The catalog stands at journal record {seq:,} again, after {seconds(document['seconds'])}.")
    )
    session.hint("mlc log")
