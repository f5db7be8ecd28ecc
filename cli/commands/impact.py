"""`mlc impact`: every version that still carries a data set, and what was unlearned from it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..context import Session

EPILOG = """Examples:
  mlc impact --data forget.jsonl          a file: by its digest, and record by record
  mlc impact --data 3f2a91c04d7e          a digest, or at least 8 digits of it, as `mlc show` lists them
  mlc impact --data forget.jsonl --json | jq .carriers

Records are matched by their normal form (Unicode NFC, white space collapsed) under the keys of this registry. What a root
import was trained on is recorded nowhere: it is listed when somebody had to make a later version forget the data."""


def run(
    session: Session,
    data: Annotated[str, typer.Option(metavar="FILE|DIGEST", help="What to look for.", show_default=False)],
) -> None:
    """Find every version that still carries a data set."""
    from ...policies.impact import impact
    from ...policies.traces import sought

    found = impact(session.repo, sought(session.repo, data))
    document = found.to_json()
    session.show(document, lambda: _render(session, document))
    carrying = next((c["short"] for c in document["commits"] if c["records"]), None)
    if carrying is not None:
        unlearned = any(c["state"] == "unlearned" for c in document["commits"])
        session.hint(f"mlc show {carrying}" if unlearned else f"mlc unlearn --forget-set {data} --retain-set FILE --evidence DIR")


def _render(session: Session, document: dict[str, Any]) -> None:
    from ..render.impact import render_impact

    render_impact(session, document)
