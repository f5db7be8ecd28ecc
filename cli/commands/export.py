"""`mlc export`: the way out, byte for byte; every file's SHA-256 is checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..context import Session
from ..options import NeededRev
from ..render.text import count, size


def run(
    session: Session,
    rev: NeededRev,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    layout: Annotated[
        Literal["hf", "single", "shards"],
        typer.Option(metavar="hf|single|shards", help="hf: as imported; the others rewrite the weight files."),
    ] = "hf",
    link: Annotated[
        Literal["auto", "copy", "hardlink", "reflink"] | None,
        typer.Option(metavar="auto|copy|hardlink|reflink", help="How bytes get there."),
    ] = None,
) -> None:
    """Write a version out again, byte for byte."""
    from ...registry.formats.export import export

    repo = session.repo
    snapshot_id = repo.commit(repo.resolve(rev)).snapshot
    files = export(repo, repo.snapshot(snapshot_id), directory, layout=layout, link=link or session.settings.link)
    document = {
        "dir": str(directory),
        "files": [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in files],
        "snapshot": snapshot_id,
    }
    session.show(document, lambda: _render(session, document))
    session.hint(f"sha256sum {directory}/*")


def _render(session: Session, document: dict[str, Any]) -> None:
    width = max((len(file["path"]) for file in document["files"]), default=0)
    for file in document["files"]:
        session.line(f"  {file['path'].ljust(width)}  {size(file['bytes']):>10}  {session.paint.dim(file['sha256'][:16])}")
    total = sum(file["bytes"] for file in document["files"])
    session.line(f"{count(len(document['files']), 'file')}, {size(total)}, each checked against its SHA-256.")
