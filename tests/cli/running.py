"""Run the program inside the test process, as a shell would call it."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Exit code, stdout and stderr of one call."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout; fails when there is not exactly one."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error object on the last line of stderr."""
        return json.loads(self.err.strip().splitlines()[-1])["error"]


def run_cli(*words: str | Path) -> Answer:
    """Call the program's `main` with these arguments."""
    from mlc.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


def ok(*words: str | Path) -> Any:
    """Call with --json and return the document; a failure shows what was said."""
    answer = run_cli(*words, "--json")
    assert answer.code == 0, (words, answer)
    return answer.json
