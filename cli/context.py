"""One run of the program: which registry, how to print, who the author is. Nothing else here reads the environment.

A `Session` is made for every verb and handed to its function. Everything in it is lazy, so that `mlc status` pays
for what `mlc status` shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from .render.style import Paint

if TYPE_CHECKING:
    from ..policies.settings import Settings
    from ..registry.glance import Glance
    from ..registry.repository import Repository
    from .render.progress import Progress

GLOBALS = "mlc.globals"  # key in the parser's shared `meta`


class Globals:
    """The global options after those before and after the verb were put together. (No dataclass: their machinery costs 6 ms.)"""

    def __init__(self, registry: Path | None = None, *, no_color: bool = False) -> None:
        self.registry, self.no_color = registry, no_color
        self.json = self.quiet = False


def merge_globals(meta: dict[str, Any], found: Any) -> Globals:
    """Add one level's global options to what was given further left; the later registry wins."""
    seen: Globals = meta.setdefault(GLOBALS, Globals())
    seen.registry = found.registry or seen.registry
    seen.json, seen.quiet, seen.no_color = seen.json or found.json, seen.quiet or found.quiet, seen.no_color or found.no_color
    return seen


class Session:
    """What a verb's function works with: the registry, and the ways to answer."""

    hints = True  # whether the next likely command is named at all: the tour knows what comes next

    def __init__(self, given: Globals) -> None:
        self.given = given
        self.json, self.quiet = given.json, given.quiet
        self._live: Progress | None = None

    # --- the registry ------------------------------------------------------------------------------------

    @cached_property
    def repo(self) -> Repository:
        """The registry of `-R`, else MLC_REGISTRY, else the nearest `.mlc` upwards."""
        from ..registry.repository import Repository

        place = self.given.registry or os.environ.get("MLC_REGISTRY")
        return Repository.open(Path(place)) if place else Repository.discover(Path.cwd())

    @cached_property
    def names(self) -> Glance:
        """Current branch and refs, from the text mirror where it is complete, else from the repository."""
        from ..registry.glance import Glance, find, look

        named = self.given.registry or os.environ.get("MLC_REGISTRY")
        place = Path(named) if named else find(Path.cwd())
        found = look(place) if place else None
        if found is not None:
            return found
        return Glance(self.repo.path, self.repo.head(), self.repo.branches(), self.repo.tags(), self.repo.aliases())  # type: ignore[arg-type]

    @cached_property
    def settings(self) -> Settings:
        """`mlc.toml` beside the registry, validated."""
        from ..policies.settings import Settings

        return Settings.read(self.repo.root)

    def author(self, given: str | None = None) -> str:
        """`--author`, else MLC_AUTHOR, else git's user, else the login name."""
        from .author import author

        return given or os.environ.get("MLC_AUTHOR") or author(Path.home())

    # --- answering ---------------------------------------------------------------------------------------

    @cached_property
    def paint(self) -> Paint:
        """Colours for stdout: none when it is no terminal, or under --no-color or NO_COLOR."""
        return Paint(_colourful(sys.stdout, self.given))

    @cached_property
    def width(self) -> int:
        """Columns to print into; wide enough for one line per item when stdout is no terminal."""
        import shutil

        return shutil.get_terminal_size((120, 24)).columns

    def show(self, document: dict[str, Any], render: Callable[[], None]) -> None:
        """Answer: the document under --json, else whatever `render` prints."""
        self.close()
        if not self.json:
            render()
            return
        sys.stdout.write(json_text(document, sys.stdout) + "\n")

    def line(self, text: str = "") -> None:
        """One plain line on stdout (nothing under --json)."""
        if not self.json:
            sys.stdout.write(text + "\n")

    def lines(self, texts: Iterable[str]) -> None:
        """Several plain lines on stdout."""
        for text in texts:
            self.line(text)

    def warn(self, text: str) -> None:
        """A sentence on stderr that is shown unless --json asked for silence there: the document carries it."""
        if not self.json:
            from .render.text import sentence

            paint = Paint(_colourful(sys.stderr, self.given))
            sys.stderr.write(f"{paint.yellow('warning:')} {sentence(text)}\n")

    def hint(self, command: str, why: str = "") -> None:
        """The next likely command, on stderr."""
        if self.hints and not (self.json or self.quiet):
            sys.stdout.flush()
            paint = Paint(_colourful(sys.stderr, self.given))
            sys.stderr.write(paint.dim("next: ") + paint.cyan(command) + paint.dim(f"  {why}" if why else "") + "\n")

    def console(self, stderr: bool = False) -> Any:
        """A rich console on stdout or stderr; imported only by what prints tables."""
        from .render.console import make_console

        stream = sys.stderr if stderr else sys.stdout
        return make_console(stream, colour=_colourful(stream, self.given), width=self.width)

    @property
    def progress(self) -> Progress:
        """Callable `progress(phase, done, total, **values)`: bars on a terminal, sparse lines elsewhere."""
        if self._live is None:
            from .render.progress import make_progress

            # under --json what a program reads from stderr is an error object or nothing
            quiet = self.quiet or (self.json and not sys.stderr.isatty())
            self._live = make_progress(sys.stderr, quiet=quiet, colour=_colourful(sys.stderr, self.given))
        return self._live

    def ask(self, question: str, yes: bool) -> None:
        """Confirm something that `mlc undo` cannot take back; without a terminal and --yes it is a usage error."""
        from .render.ask import confirm

        confirm(question, yes=yes, terminal=sys.stdin.isatty() and sys.stderr.isatty())

    # --- life --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End live progress, so that the answer starts on a clean line."""
        if self._live is not None:
            self._live.close()
            self._live = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if kind is None and "repo" in self.__dict__:
            for text in self.repo.warnings:
                self.warn(text)


def json_text(document: Any, stream: TextIO) -> str:
    """One JSON text, indented for a terminal; numbers that are not finite are null, and an ASCII stream gets escapes."""
    layout: dict[str, Any] = {"indent": 2 if stream.isatty() else None, "ensure_ascii": "utf" not in (stream.encoding or "utf-8").lower()}
    try:
        return json.dumps(document, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_finite(document), allow_nan=False, **layout)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def tolerate_any_locale() -> None:
    """A terminal that cannot show a character gets a question mark, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _colourful(stream: TextIO, given: Globals) -> bool:
    return not given.no_color and not os.environ.get("NO_COLOR") and stream.isatty() and os.environ.get("TERM") != "dumb"


def wants_traceback() -> bool:
    """MLC_TRACEBACK=1 asks for the traceback of an internal fault."""
    return bool(os.environ.get("MLC_TRACEBACK"))


def prepare_threads() -> None:
    """Before anything that calculates is imported."""
    from .threads import say

    say(os.environ)


def completing() -> bool:
    """Whether a shell asks for completions rather than a person for an answer."""
    return "_MLC_COMPLETE" in os.environ


def stderr_paint(no_color: bool) -> Paint:
    """Colours for an error message, when no session exists."""
    return Paint(_colourful(sys.stderr, Globals(no_color=no_color)))


def complete_refs(registry: Path | None, start: str) -> list[str]:
    """Ref names that begin with `start`, from the text mirror; an unreadable registry completes to nothing."""
    from ..registry.errors import MlcError

    session = Session(Globals(registry=registry))
    with contextlib.suppress(MlcError, OSError):
        names = [*session.names.branches, *session.names.tags, *(f"@{a}" for a in session.names.aliases), "HEAD"]
        return [name for name in names if name.startswith(start)]
    return []


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """A reader that stops early (`mlc log | head`) ends the program without a word."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it a place where that cannot fail.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def without_registry() -> Iterator[None]:
    """For the tour: a registry named by the environment must not be the one it works on."""
    named = os.environ.pop("MLC_REGISTRY", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MLC_REGISTRY"] = named


@contextlib.contextmanager
def without_hints() -> Iterator[None]:
    """For the tour: the command that it types next is not the one that an answer would propose."""
    Session.hints = False
    try:
        yield
    finally:
        Session.hints = True
