"""How a registry comes to be: furnished where nobody sees it, on a file system that can keep what mlc promises, and renamed into place."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from . import fs
from .errors import UsageError
from .journal import utc_now
from .refs import check_name
from .repository import FORMAT, Repository

FOLDERS = (
    *(".", "objects", "objects/commits", "refs", "refs/heads", "refs/tags", "refs/aliases"),
    *("locks", "pins", "runs", "tmp", "quarantine"),
)
_PROBE = "import fcntl,sys\nf=open(sys.argv[1])\ntry: fcntl.flock(f, fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: sys.exit(7)\n"

_tried: set[int] = set()  # devices whose file system passed


class AlreadyARegistry(UsageError):
    """`init` was asked for where a registry is."""


class UnsupportedPlatform(UsageError):
    """This system or file system cannot keep what mlc promises."""


def found(directory: Path, default_branch: str) -> Path:
    """Make an empty registry in `directory`; returns its `.mlc`. Raises AlreadyARegistry, BadRefName, ReadOnlyRegistry or DiskFull."""
    check_name(f"heads/{default_branch}")
    place = directory / ".mlc"
    if os.path.lexists(place):
        raise AlreadyARegistry(f"{directory} already holds a registry", hint=f"mlc -R {directory} status")
    with fs.faults_in_words(directory):
        _make_room(directory)
        fresh = directory / f".mlc.{os.urandom(4).hex()}.tmp"
        try:
            _furnish(fresh, default_branch)
            os.rename(fresh, place)
        except BaseException:
            fs.remove_tree(fresh)
            raise
        fs.fsync_dir(directory)
    return place


def _make_room(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{directory} is not a directory", hint="name a directory for the registry") from None


def _furnish(place: Path, default_branch: str) -> None:
    """Write an empty registry at `place`, which nobody sees yet."""
    for folder in FOLDERS:
        (place / folder).mkdir(mode=0o700)
    check_platform(place / "tmp")
    fs.write_new(place / "format", FORMAT.encode())
    fs.write_new(place / "HEAD", f"{default_branch}\n".encode())
    repo = Repository(place)
    repo.journal.create()
    repo.journal.append({"kind": "init"}, txid=os.urandom(16).hex(), author="mlc", time=utc_now())
    repo.journal.seal()
    repo.refs.mirror()
    for folder in ("objects", "refs", "."):
        fs.fsync_dir(place / folder)


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
