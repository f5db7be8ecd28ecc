"""Whole processes: `mlc log` on 10,000 commits, `mlc status` and `mlc refs`, each beside the plainest program of its kind."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlc.registry.catalog import Catalog
from mlc.registry.ids import blob_digest, tensor_digest
from mlc.registry.records import Commit, FileEntry, OperationRecord, RefUpdate, Snapshot, TensorDelta, TensorEntry, Verdict
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.measure import run_once, side_by_side

HERE = Path(__file__).resolve().parent
COMMITS = 10_000


def long_history(directory: Path, commits: int = COMMITS) -> Repository:
    """A registry with a linear history of `commits` real commits, each with one small tensor changed.

    Written through the ordinary transactions; only the syncs to disk and the projection after each commit are left out,
    which nothing here measures (the catalog is rebuilt once, afterwards).
    """
    os.fsync, kept = (lambda fd: None), os.fsync
    Catalog.apply, kept_apply = (lambda self, repo, records=(): None), Catalog.apply
    try:
        repo = Repository.init(directory)
        header = b"{}"
        parent: Commit | None = None
        for number in range(commits):
            data = number.to_bytes(4, "little") * 16
            with repo.ingest() as tx:
                digest = tx.put_tensor("U8", (64,), data)
                tx.put_blob(header)
                snapshot = Snapshot(
                    (TensorEntry("weight", "U8", (64,), digest),),
                    (FileEntry("model.safetensors", 66, "0" * 64, "weights", blob_digest(header), ("weight",)),),
                )
                tx.put_snapshot(snapshot)
                commit = Commit(
                    (parent.id,) if parent else (), snapshot.id, OperationRecord("update", 1, {"steps": number}), "Example <e@example.org>",
                    f"2026-01-{1 + number // 3600 % 28:02}T{number // 150 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.{number:06}Z",
                    f"step {number} of a long lineage", metrics={"text": {"perplexity": 5.0 + number % 7}}, verdict=Verdict("accepted"),
                )  # fmt: skip
                delta = TensorDelta("weight", None, tensor_digest("U8", (64,), [data]), "raw", 64, 64, nnz=16)
                refs = [RefUpdate("heads/main", parent.id if parent else None, commit.id)]
                tx.commit(commit, refs=refs, reason="update", deltas=[delta])
            parent = commit
        return repo
    finally:
        os.fsync, Catalog.apply = kept, kept_apply


def plain_database(path: Path, rows: int = COMMITS) -> None:
    """As many rows for the yardstick program."""
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "create table commits as select printf('%064x', i) id, 'update' op, 'Example <e@example.org>' author, "
            f"'2026-01-01T00:00:00Z' as time, 'step ' || i || ' of a long lineage' as message from range({rows}) t(i)"
        )


def main() -> dict[str, Any]:
    """Ratios of whole-process wall and CPU seconds, medians of five alternating runs."""
    mlc = [sys.executable, "-P", "-m", "mlc"]
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "work"
        long_history(work)
        plain_database(Path(place) / "plain.duckdb")
        plain_log = [sys.executable, "-P", str(HERE / "plain_log.py"), str(Path(place) / "plain.duckdb")]
        imports = [sys.executable, "-P", "-c", "import typer, rich"]
        run_once([*mlc, "reindex"], work)
        return {
            "log of 10,000 commits / plain program": side_by_side([*mlc, "log"], plain_log, directory=work),
            "log -n 20 / import typer, rich, duckdb": side_by_side(
                [*mlc, "log", "-n", "20"], [sys.executable, "-P", "-c", "import typer, rich, duckdb"], directory=work
            ),
            "status / import typer, rich": side_by_side([*mlc, "status"], imports, directory=work),
            "refs / import typer, rich": side_by_side([*mlc, "refs"], imports, directory=work),
        }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
