"""Side-by-side timing of whole processes: both commands alternate in one run, the figure is the ratio of medians."""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_once(command: Sequence[str], directory: Path | None = None) -> tuple[float, float]:
    """Wall and CPU seconds (user + system, children included) of one process; a failure ends the benchmark."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def side_by_side(ours: Sequence[str], theirs: Sequence[str], *, directory: Path | None = None, runs: int = 5) -> dict[str, Any]:
    """Medians of `runs` alternating runs after one warm-up each, and their ratio."""
    run_once(ours, directory), run_once(theirs, directory)
    pairs = [(run_once(ours, directory), run_once(theirs, directory)) for _ in range(runs)]

    def median(side: int, clock: int) -> float:
        return statistics.median(pair[side][clock] for pair in pairs)

    return {
        "wall_ratio": round(median(0, 0) / median(1, 0), 3),
        "cpu_ratio": round(median(0, 1) / median(1, 1), 3),
        "ours_ms": round(1000 * median(0, 0), 1),
        "theirs_ms": round(1000 * median(1, 0), 1),
        "runs": runs,
    }
