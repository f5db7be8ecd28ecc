"""Who still carries a data set, as a table with the newest version first."""

from __future__ import annotations

from typing import Any

from ..context import Session
from . import text


def render_impact(session: Session, document: dict[str, Any]) -> None:
    """A sentence, then one row per version, then the names that stand on one that carries the data."""
    from .console import print_table

    paint, data, commits = session.paint, document["data"], document["commits"]
    what = f"{text.printable(data['name'])} ({text.count(data['records'], 'record')})"
    if not commits:
        session.line(f"Nothing recorded here read {what}.")
        session.line(paint.dim("What a root import was trained on is not recorded anywhere."))
        return
    n = document["carriers"]
    session.line(f"{text.count(n, 'version')} still {'carries' if n == 1 else 'carry'} {what}.")
    colours = {"carries": paint.red, "unknown origin": paint.yellow, "unlearned": paint.green}
    rows = [
        (
            paint.yellow(c["short"]), c["op"] + (" (refused)" if c["outcome"] == "refused" else ""), colours[c["state"]](c["state"]),
            f"{c['records']:,}", text.printable(c["why"]), " ".join(text.printable(_short(name)) for name in c["refs"]),
        )
        for c in reversed(commits)
    ]  # fmt: skip
    print_table(session.console(), ("commit", "op", "state", "records", "why", "names"), rows, right=("records",))
    held = [_short(name) for c in commits if c["records"] for name in c["refs"]]
    if held:
        session.line(f"Names that stand on a version with the data: {', '.join(text.printable(name) for name in held)}.")
    if any(c["state"] == "unlearned" for c in commits):
        session.line(paint.dim("unlearned: as measured and claimed by a commit, not proven; its parents keep the data until a purge."))


def _short(name: str) -> str:
    kind, _, own = name.partition("/")
    return f"@{own}" if kind == "aliases" else own
