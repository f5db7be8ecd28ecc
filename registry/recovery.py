"""What a writer does before it writes: repair what one that died left behind.

Restartable, and never destroys evidence: torn bytes go to quarantine. Called under the `write` lock.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import fs
from .owners import Owner

if TYPE_CHECKING:
    from .repository import Repository

LEFTOVER_AGE = 24 * 3600  # seconds before the scratch files of a dead writer are removed


def recover(repo: Repository) -> list[str]:
    """The short recovery: journal tail, mirror, leftovers. The catalog repairs itself when it is opened."""
    with fs.faults_in_words(repo.path):
        said = repo.journal.recover()
        repo.refs.mirror()
        sweep(repo)
    repo.warnings += said
    return said


def sweep(repo: Repository, age: float = LEFTOVER_AGE) -> list[Path]:
    """Remove scratch folders and pins of writers that are dead and older than `age` seconds; returns what was removed."""
    removed = []
    for pin in (repo.path / "pins").iterdir():
        if _older(pin, age) and _dead(pin):
            fs.remove_tree(repo.path / "tmp" / pin.name)
            fs.remove(pin)
            removed.append(pin)
    for scratch in (repo.path / "tmp").iterdir():
        if not (repo.path / "pins" / scratch.name).exists() and _older(scratch, age):
            fs.remove_tree(scratch)
            removed.append(scratch)
    return removed


def _dead(pin: Path) -> bool:
    try:
        owner = Owner.decode(pin.read_text(encoding="utf-8").partition("\n")[0])
    except OSError:
        return False
    return owner is None or not owner.alive


def _older(path: Path, age: float) -> bool:
    try:
        return time.time() - path.lstat().st_mtime >= age
    except OSError:
        return False
