"""Live progress on stderr: bars with rate and time left on a terminal, a line every few seconds elsewhere.

Callable as `progress(phase, done, total, **values)`. Nothing is shown, and rich is not imported, before the work has
lasted half a second: what is over by then needs no bar.
"""

from __future__ import annotations

import time
from typing import Any, TextIO

from . import text

DELAY = 0.5  # seconds before anything appears
EVERY = 10.0  # seconds between plain lines


class Progress:
    """Shows nothing: the base, and what --quiet gets."""

    def __call__(self, phase: str, done: int, total: int, **values: float) -> None:
        """Report `done` of `total` in a phase; `values` (loss, lr, tokens_per_second) stand beside the bar."""

    def close(self) -> None:
        """End the display."""


def make_progress(stream: TextIO, *, quiet: bool, colour: bool) -> Progress:
    """The display that fits the stream."""
    if quiet:
        return Progress()
    return Bars(stream, colour=colour) if stream.isatty() else Lines(stream)


def describe(values: dict[str, float]) -> str:
    """`loss 2.31  lr 0.0003`: what an operation reports beside its count."""
    return "  ".join(f"{name.replace('_', ' ')} {text.number(value)}" for name, value in values.items())


class Lines(Progress):
    """One plain line per phase every few seconds: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.phase = ""
        self.started = self.last = 0.0

    def __call__(self, phase: str, done: int, total: int, **values: float) -> None:
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.started, self.last = phase, now, now
        if now - self.last < EVERY:
            return
        self.last = now
        spent = now - self.started
        left = f", {text.seconds(spent * (total - done) / done)} left" if 0 < done <= total else ""
        share = f"{done:,} of {total:,}" if total else f"{done:,}"
        extra = describe(values)
        self.stream.write(f"{phase}: {share}, {text.rate(done / spent)}{left}{'  ' + extra if extra else ''}\n")
        self.stream.flush()


class Bars(Progress):
    """One bar per phase; finished phases stay on the screen with their last values."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self.stream, self.colour = stream, colour
        self.begun = time.monotonic()
        self.live: Any = None
        self.tasks: dict[str, Any] = {}

    def __call__(self, phase: str, done: int, total: int, **values: float) -> None:
        if self.live is None:
            if time.monotonic() - self.begun < DELAY:
                return
            self.live = self._start()
        if phase not in self.tasks:
            self.tasks[phase] = self.live.add_task(phase, total=total or None, extra="")
        task = self.tasks[phase]
        speed = self.live.tasks[task].finished_speed or self.live.tasks[task].speed
        rate = "" if speed is None or "tokens_per_second" in values else text.rate(speed)
        self.live.update(task, completed=done, total=total or None, extra="  ".join(filter(None, (describe(values), rate))))

    def _start(self) -> Any:
        from rich import progress as rich

        from .console import make_console

        console = make_console(self.stream, colour=self.colour, width=_columns())
        columns = (
            rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=24), rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[extra]}", style="dim"), rich.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )  # fmt: skip
        live = rich.Progress(*columns, console=console, transient=False, refresh_per_second=8)
        live.start()
        return live

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns
