"""One error, one sentence, one next step on stderr; the same facts as an object under --json."""

from __future__ import annotations

import sys
from typing import Any

from ...registry.errors import MlcError
from ..context import json_text, stderr_paint
from .text import sentence


def error_document(fault: MlcError) -> dict[str, Any]:
    """The error object of CLI.md."""
    return {"error": {"kind": fault.kind, "message": sentence(fault.message), "hint": fault.hint, "exit_code": fault.exit_code}}


def report(fault: MlcError, *, as_json: bool, no_color: bool) -> int:
    """Print the error and return its exit code."""
    sys.stdout.flush()
    if as_json:
        sys.stderr.write(json_text(error_document(fault), sys.stderr) + "\n")
        return fault.exit_code
    paint = stderr_paint(no_color)
    sys.stderr.write(f"{paint.red(paint.bold('error:'))} {sentence(fault.message)}\n")
    if fault.hint:
        sys.stderr.write(f"{paint.cyan(' hint:')} {fault.hint}\n")
    return fault.exit_code
