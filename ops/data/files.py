"""Reading a file that somebody named: what is wrong with it is said in one sentence, whatever it was to hold."""

from __future__ import annotations

from pathlib import Path

from ...registry.errors import BadInputFile, InputNotFound


def read_bytes(path: str | Path, *, kind: str, give: str) -> bytes:
    """A file's bytes. `kind`: what it should be, with its article; `give`: of what to give the path. Raises InputNotFound, BadInputFile."""
    place = Path(path)
    if place.is_dir():
        raise BadInputFile(f"{path} is a directory, not {kind}", path=str(path))
    try:
        return place.read_bytes()
    except FileNotFoundError as fault:
        raise InputNotFound(f"{path} does not exist", hint=f"give the path of {give}") from fault
    except OSError as fault:
        raise BadInputFile(f"{path} cannot be read: {fault.strerror}", path=str(path)) from fault
