"""The door of the program: find the verb, run it, turn what went wrong into one sentence and an exit code.

`status` and `refs`, which shell prompts call, are answered without the option parser when only global flags stand
beside them; every other line of arguments goes through it (parser.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ..registry.errors import Interrupted, MlcError
from .context import Globals, Session, completing, prepare_threads, quiet_pipe, tolerate_any_locale, wants_traceback

PROMPT_VERBS = ("status", "refs")
FLAGS = {"--json": "json", "--quiet": "quiet", "-q": "quiet", "--no-color": "no_color"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code. Never raises for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    plain = arguments[: arguments.index("--")] if "--" in arguments else arguments
    how = {"as_json": "--json" in plain, "no_color": "--no-color" in plain}  # now: the parser takes the list apart
    tolerate_any_locale()
    try:
        with quiet_pipe():
            return _run(arguments)
    except BrokenPipeError:
        return 0
    except Exception as fault:
        return _report(fault, **how)
    except KeyboardInterrupt:
        return _report(Interrupted("Interrupted."), **how)


def _run(arguments: list[str]) -> int:
    prompt = _prompt(arguments)
    if prompt is None or completing():
        from .parser import invoke

        prepare_threads()
        return invoke(arguments)
    verb, given = prompt
    with Session(given) as session:
        import_module(f".commands.{verb}", __package__).run(session)
    return 0


def _prompt(arguments: list[str]) -> tuple[str, Globals] | None:
    """The prompt verb and its global options, or None when the parser has to look."""
    given, words = Globals(), []
    rest = iter(arguments)
    for word in rest:
        if word in FLAGS:
            setattr(given, FLAGS[word], True)
        elif word in ("-R", "--registry"):
            given.registry = Path(next(rest, ""))
        else:
            words.append(word)
    return (words[0], given) if len(words) == 1 and words[0] in PROMPT_VERBS else None


def _report(fault: Exception, *, as_json: bool, no_color: bool) -> int:
    """Any exception as an exit code. Only here does a bug become a sentence; MLC_TRACEBACK=1 shows its stack."""
    from .render.errors import report

    if isinstance(fault, MlcError):
        error = fault
    elif isinstance(fault, OSError):  # the machine said no: disk full, permission, too many files
        place = f": {fault.filename}" if fault.filename else ""
        error = MlcError(f"{fault.strerror or fault}{place}.", hint="mlc doctor")
    elif wants_traceback():
        raise fault
    else:
        error = MlcError(f"Internal fault: {type(fault).__name__}: {fault}.", hint="run it again with MLC_TRACEBACK=1")
    return report(error, as_json=as_json, no_color=no_color)
