"""Whole processes: `mlc diff` over 2 x 1,000,000 stored predictions, and what it costs beyond the program's start."""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlc.ops.evaluate.predictions import Prediction, to_arrow
from mlc.registry.ids import blob_digest
from mlc.registry.records import Commit, Evaluation, FileEntry, OperationRecord, RefUpdate, Snapshot
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.measure import run_once

EXAMPLES = 1_000_000


def two_versions(directory: Path, examples: int = EXAMPLES) -> None:
    """A registry with two commits, each with one evaluation of `examples` rows; about 3 % of the answers flip each way."""
    repo = Repository.init(directory)
    chance = random.Random(0)
    parent: Commit | None = None
    before = [chance.random() < 0.7 for _ in range(examples)]
    after = [right if chance.random() > 0.03 else not right for right in before]
    for number, rights in enumerate((before, after)):
        rows = [Prediction(f"example-{i:07}", f"answer {i % 50 + right}", right, 0.5, -1.0, None) for i, right in enumerate(rights)]
        with repo.ingest() as tx:
            snapshot = Snapshot((), ())
            if number:  # another content, so another snapshot
                tx.put_blob(b"x")
                snapshot = Snapshot((), (FileEntry("note", 1, "0" * 64, "blob", blob_digest(b"x")),))
            tx.put_snapshot(snapshot)
            predictions = tx.put_blob(to_arrow(rows))
            metrics = {"accuracy": sum(rights) / examples}
            tx.record_evaluation(Evaluation(snapshot.id, "large", "0" * 64, "cloze", metrics, examples, predictions))
            parents, when = (parent.id,) if parent else (), f"2026-01-0{number + 1}T00:00:00.000000Z"
            commit = Commit(parents, snapshot.id, OperationRecord("commit", 1, {}), "Example", when, "")
            tx.commit(commit, refs=[RefUpdate("heads/main", parent.id if parent else None, commit.id)])
        parent = commit


def main() -> dict[str, Any]:
    """Seconds of wall time beyond `mlc --version`, medians of five alternating runs after the first (which loads the rows)."""
    mlc = [sys.executable, "-P", "-m", "mlc"]
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "work"
        two_versions(work)
        diff = [*mlc, "diff", "main~1", "main", "--stat"]
        first, _ = run_once(diff, work)
        flips = [*mlc, "diff", "main~1", "main", "--stat", "--flips", "--limit", "20"]
        rounds = [(run_once(diff, work), run_once(flips, work), run_once([*mlc, "--version"], work)) for _ in range(5)]
        start = statistics.median(r[2][0] for r in rounds)
        return {
            "examples": EXAMPLES,
            "first_s": round(first, 2),
            "start_s": round(start, 3),
            "diff_beyond_start_s": round(statistics.median(r[0][0] for r in rounds) - start, 3),
            "flips_beyond_start_s": round(statistics.median(r[1][0] for r in rounds) - start, 3),
        }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
