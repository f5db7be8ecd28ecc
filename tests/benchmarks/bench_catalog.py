"""The catalog alone: the question behind `mlc log`, one commit's projection, a rebuild, and a comparison of 2 x 100,000 predictions.

In process, on a history in memory, so that nothing but the catalog is measured. Milliseconds are medians; the ratio compares the log
with the plainest query over as many rows of the same file.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlc.registry.catalog import queries
from mlc.registry.catalog.behaviour import compare
from mlc.registry.catalog.connection import reader
from mlc.registry.ids import blob_digest
from mlc.registry.records import TensorDelta
from mlc.tests.registry.history import History

COMMITS, TENSORS, EXAMPLES, RUNS = 10_000, 20, 100_000, 5


def long_history(place: Path, commits: int = COMMITS, tensors: int = TENSORS) -> tuple[History, str]:
    """A linear history in which each commit changes two of its tensors, every tenth one merging the commit seven before."""
    history = History(place)
    line: list[str] = []
    values = {f"model.layers.{i}.mlp.weight": "0" for i in range(tensors)}
    for number in range(commits):
        moved = [f"model.layers.{(number + i) % tensors}.mlp.weight" for i in range(2)]
        values |= dict.fromkeys(moved, str(number))
        deltas = [
            TensorDelta(name, None, blob_digest(f"{name}{number}".encode()), "dense", 32, 8, None, 4, 0.1, 0.2, 0.3) for name in moved
        ]
        parents = [*line[-1:], *line[-7:-6]] if number % 10 == 0 else line[-1:]
        line.append(history.commit(*parents, tensors=values, deltas=deltas, metrics={"text": {"perplexity": 5.0 + number % 7}}))
    return history, line[-1]


def answers(count: int, seed: int) -> dict[str, list[Any]]:
    """Columns of an evaluation: 70 % right, eight slices."""
    chance = random.Random(seed)
    names = [f"example-{i:06}-{blob_digest(str(i).encode())[:8]}" for i in range(count)]
    return {
        "example": names,
        "answer": [f"answer {chance.randrange(50)}" for _ in names],
        "correct": [chance.random() < 0.7 for _ in names],
        "slice": [f"slice {i % 8}" for i in range(count)],
    }


def median_ms(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median wall milliseconds after one warm-up."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times[1:]), 1)


def main() -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as place:
        history, tip = long_history(Path(place) / ".mlc")
        began = time.perf_counter()
        history.catalog.rebuild(history)
        rebuild = round(time.perf_counter() - began, 2)

        def plain() -> None:
            with reader(history.catalog.path) as connection:
                connection.execute("select commit, op, author, time, message from commits order by time desc").fetchall()

        log = median_ms(lambda: queries.log(history, [tip]))
        yardstick = median_ms(plain)

        def one_commit() -> None:
            history.commit(tip, tensors={"w": str(len(history.journal))})
            history.catalog.apply(history, [history.journal[-1]])

        projection = median_ms(one_commit, 11)
        sides = [history.evaluate(tip, answers(EXAMPLES, seed)) for seed in (1, 2)]
        history.catalog.apply(history)
        history.locks.taken.clear()
        began = time.perf_counter()
        history.catalog.load_predictions(history)
        slices = history.locks.taken.count("exclusive catalog")
        loading = round(1000 * (time.perf_counter() - began), 1)
        return {
            f"log of {COMMITS} commits, ms": log,
            "log / plain query, ratio": round(log / yardstick, 2),
            "log -n 20, ms": median_ms(lambda: queries.log(history, [tip], 20)),
            "projection of one commit, ms": projection,
            f"rebuild of {COMMITS} commits x {TENSORS} tensors, s": rebuild,
            f"loading 2 x {EXAMPLES} predictions, ms": loading,
            "one slice under the lock, ms": round(loading / slices, 1),
            f"comparing 2 x {EXAMPLES} predictions, ms": median_ms(lambda: compare(history, sides[0], sides[1], 20)),
            "the same with every flip listed, ms": median_ms(lambda: compare(history, sides[0], sides[1])),
            "catalog, MB": round(history.catalog.path.stat().st_size / 1e6, 1),
        }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
