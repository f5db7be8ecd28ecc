"""The whole job in two minutes, on the embedded model: every command is printed as it is typed, with its real output.

Commands run inside this process through the same door as from a shell. What a step must lead to is checked, and a
step that leads elsewhere ends the tour with a sentence and exit code 10.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...registry.errors import CheckFailed
from ...registry.ids import CommitId
from ...registry.repository import Repository
from ..context import Session, without_hints

TRAINING = ("--steps", "150", "--lr", "1e-3", "--seed", "0")


class Tour:
    """Runs the steps in `directory` and remembers what they were."""

    def __init__(self, session: Session, main: Callable[[list[str]], int], directory: Path) -> None:
        self.session, self.main, self.directory = session, main, directory
        self.steps: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        """A sentence between two commands."""
        paint = self.session.paint
        self._write("\n" + paint.bold(f"# {text}") + "\n")

    def mlc(self, *words: str, expect: int = 0) -> None:
        """Type one command, let it answer, and insist on its exit code."""
        typed = f"mlc {' '.join(map(_quoted, words))}"
        self._write(self.session.paint.cyan(f"$ {typed}") + "\n")
        start = time.perf_counter()
        with _stdout_elsewhere(self.session.json), without_hints():
            code = self.main([*words, *(("--no-color",) if self.session.given.no_color else ())])
        self.steps.append({"command": typed, "exit_code": code, "seconds": round(time.perf_counter() - start, 2)})
        if expect:
            self._write(self.session.paint.dim(f"(exit code {code})") + "\n")
        self.insist(code == expect, f"`mlc {words[0]}` ended with exit code {code}; {expect} was expected")

    def insist(self, holds: bool, otherwise: str) -> None:
        """Go on when it holds; end the tour when it does not."""
        if not holds:
            raise CheckFailed(f"The demo did not go as it should: {otherwise}.", hint="mlc doctor", check={"steps": self.steps})

    def proof(self, text: str) -> None:
        """A fact that was just verified."""
        self._write(self.session.paint.green("✓ ") + text + "\n")

    @property
    def repo(self) -> Repository:
        """The registry as it is now."""
        return Repository.open(self.directory)

    def _write(self, text: str) -> None:
        stream = sys.stderr if self.session.json else sys.stdout
        stream.write(text)
        stream.flush()


def walk(tour: Tour) -> None:
    """All steps. The current directory is the tour's."""
    tour.say("A registry, with a small model that knows 400 invented facts.")
    tour.mlc("init", "--template", "demo")
    tour.mlc("import", "model", "-m", "the model as it was trained")
    first = _tip(tour)

    tour.say("New facts arrive. Training on them alone forgets old ones: the gate refuses, and main does not move.")
    tour.mlc("update", "--data", "new-facts.jsonl", *TRAINING, "-m", "the new facts", expect=4)
    tour.insist(_tip(tour) == first, "a refused candidate moved the branch")

    tour.say("The same with replay: half of the rows come from old text. Nothing old is lost, and the gate accepts.")
    tour.mlc("update", "--data", "new-facts.jsonl", "--replay", "replay.jsonl:0.5", *TRAINING, "-m", "the new facts, with replay")
    second = _tip(tour)
    tour.insist(second != first, "an accepted update did not move the branch")

    tour.say("What changed, example by example.")
    tour.mlc("diff", "HEAD~1", "HEAD", "--flips", "--limit", "6")
    tour.mlc("log", "--graph", "--all")

    tour.say("Back to where it was: a new commit with the old content, the same snapshot id to the last digit.")
    tour.mlc("rollback", "HEAD~1", "-m", "back to the first version")
    before, after = (tour.repo.commit(c).snapshot for c in (first, _tip(tour)))
    tour.insist(before == after, f"snapshot {after[:12]} is not {before[:12]}")
    tour.proof(f"snapshot {after} before and after")

    tour.say("And out again, byte for byte.")
    tour.mlc("export", "HEAD", "out")
    source, target = (_sha256(tour.directory / name) for name in ("model", "out"))
    tour.insist(source == target, "an exported file is not the file that was imported")
    for path, digest in target.items():
        tour.proof(f"sha256 {digest[:16]}…  {path}")
    tour.mlc("fsck", "--level", "3")


def _quoted(word: str) -> str:
    """As a person types it: HEAD~1 needs no quotes in the middle of a word."""
    return word if re.fullmatch(r"[\w@%+=:,./-][\w@%+=:,./~-]*", word) else shlex.quote(word)


def _tip(tour: Tour) -> CommitId:
    return tour.repo.resolve("main")


def _sha256(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.rglob("*")) if p.is_file()}


@contextlib.contextmanager
def _stdout_elsewhere(aside: bool) -> Iterator[None]:
    """Under --json stdout belongs to the one document: what the steps say goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if aside else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in `directory`, and come back."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
