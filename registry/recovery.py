"""What a writer does before it writes: repair what one that died left behind. And what `init` asks of the file system.

Restartable, and never destroys evidence: torn bytes go to quarantine. Called under the `write` lock.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import fs
from .errors import UsageError
from .owners import Owner

if TYPE_CHECKING:
    from .repository import Repository

LEFTOVER_AGE = 24 * 3600  # seconds before the scratch files of a dead writer are removed
_PROBE = "import fcntl,sys\nf=open(sys.argv[1])\ntry: fcntl.flock(f, fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: sys.exit(7)\n"

_tried: set[int] = set()  # devices whose file system passed


class UnsupportedPlatform(UsageError):
    """This system or file system cannot keep what mlc promises."""


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


# --- the file system -------------------------------------------------------------------------------------


def check_platform(scratch: Path) -> None:
    """Refuse a system or file system without atomic rename, exclusive create and flock between processes. Raises UnsupportedPlatform.

    A file system is tried once in the life of a process.
    """
    if sys.platform not in ("linux", "darwin"):
        raise UnsupportedPlatform(f"mlc keeps registries on Linux and macOS, not on {sys.platform}", hint="use WSL 2 on Windows")
    device = scratch.stat().st_dev
    if device in _tried:
        return
    probe = scratch / "probe"
    fs.write_new(probe, b"1")
    try:
        _check_exclusive_create(probe)
        fs.rename(probe, probe.with_name("renamed"))
        fs.rename(probe.with_name("renamed"), probe)
        _check_flock(probe)
    finally:
        fs.remove(probe)
    _tried.add(device)


def _check_exclusive_create(probe: Path) -> None:
    try:
        os.close(fs.create(probe))
    except FileExistsError:
        return
    raise UnsupportedPlatform(f"the file system of {probe.parent} has no exclusive create", hint="use a local disk")


def _check_flock(probe: Path) -> None:
    with probe.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise UnsupportedPlatform(
                f"the file system of {probe.parent} has no flock: {fault.strerror}", hint="use a local disk"
            ) from fault
        other = subprocess.run([sys.executable, "-I", "-S", "-c", _PROBE, str(probe)], capture_output=True, check=False)
    if other.returncode != 7:
        raise UnsupportedPlatform(f"flock does not keep two processes apart on the file system of {probe.parent}", hint="use a local disk")
