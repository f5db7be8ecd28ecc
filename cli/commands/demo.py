"""`mlc demo`: the tour; see cli/demo/tour.py for its steps."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from ...registry.errors import BadParameter
from ..context import Session, without_registry
from ..render.text import seconds


def run(
    session: Session,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Work there, and leave it; else in a temporary directory.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary directory for a look around.")] = False,
) -> None:
    """Walk through the whole job on the embedded model."""
    from ..app import main
    from ..demo.tour import Tour, inside, walk

    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise BadParameter(f"{directory} is not empty.", hint="name a new directory")
    place = (directory or Path(tempfile.mkdtemp(prefix="mlc-demo-"))).absolute()
    place.mkdir(parents=True, exist_ok=True)
    stays = keep or directory is not None
    start = time.perf_counter()
    tour = Tour(session, main, place)
    try:
        with inside(place), without_registry():
            walk(tour)
    finally:
        if not stays:
            shutil.rmtree(place, ignore_errors=True)
    spent = time.perf_counter() - start
    document = {"ok": True, "directory": str(place) if stays else None, "seconds": round(spent, 1), "steps": tour.steps}
    session.show(document, lambda: session.line(f"\nDone in {seconds(spent)}." + (f" The registry is in {place}." if stays else "")))
    session.hint(f"cd {place} && mlc log --graph" if stays else "mlc demo --keep", "" if stays else "leaves the registry for a look around")
