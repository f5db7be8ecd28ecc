"""The one question the program may ask, and what happens where nobody can answer."""

from __future__ import annotations

import sys

from ...registry.errors import Interrupted, UsageError


def confirm(question: str, *, yes: bool, terminal: bool) -> None:
    """Return when the answer is yes. Raises UsageError without a terminal and --yes, Interrupted on no."""
    if yes:
        return
    if not terminal:
        raise UsageError(f"{question} needs a confirmation, and there is no terminal to ask at.", hint="add --yes")
    sys.stderr.write(f"{question}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Interrupted("Nothing was done.")
