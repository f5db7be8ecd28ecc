"""Every method of `mlc unlearn` on the fact model, beside retraining and plain fine-tuning: the table of docs/evidence.md.

Operations run on views in memory, as the conductor runs them, so that a result that fails its own check (exit 10, nothing
committed) can still be asked. Nothing here knows an expected outcome. `python unlearning.py OUT.json SEED [METHOD ...]`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlc.ops.data.items import read_items
from mlc.ops.evaluate.leakage import membership
from mlc.ops.evaluate.runner import evaluate
from mlc.ops.evaluate.suite import load_suite
from mlc.ops.models import load_model
from mlc.ops.unlearn.attacks import relearn
from mlc.ops.unlearn.task import task_of
from mlc.ops.unlearn.unlearn import OBJECTIVES, Unlearn
from mlc.ops.update.train import Update
from mlc.registry.errors import CheckFailed
from mlc.tests.benchmarks.people import MATERIAL, people, write
from mlc.tests.ops.fakes import MemoryRun, MemoryView

SUITES = ("forget-trained", "forget-heldout", "retain-trained", "retain-heldout", "text")
RELEARN = {"steps": 20, "share": 0.1, "lr": 1e-4}  # a tenth of the forget records, twenty steps


@dataclass(frozen=True)
class Bench:
    """One seed's files and the model to start from."""

    view: MemoryView
    files: dict[str, Path]
    seed: int
    reference: Path | None  # a retrained model, when there is one

    def asked(self, after: MemoryView) -> dict[str, Any]:
        """How a model does: recall by wording, text, membership, and how fast it learns again what it forgot."""
        found: dict[str, Any] = {}
        for name in SUITES:
            metrics = evaluate(after, load_suite(self.files[name])).metrics
            value = metrics["perplexity" if name == "text" else "accuracy"]
            found[name] = math.nan if value is None else round(value, 4)
        task = task_of(after)
        forget, holdout = (task.rows(read_items(self.files[role], role)) for role in ("forget", "holdout"))
        module = load_model(after, dtype=torch.float32)
        found["mia"] = {key: value and round(value, 4) for key, value in membership(task, module, forget, holdout).items()}
        again = relearn(module, task, forget, seed=self.seed, threads=1, before=1.0, **RELEARN)
        found["relearn"] = {key: again[key] for key in ("area", "rest_after", "recovered")}
        return found


def methods(bench: Bench) -> Iterator[tuple[str, Callable[[], tuple[MemoryView, dict[str, Any]]]]]:
    """Name and maker of every row of the table."""
    files = {"forget_set": str(bench.files["forget"]), "retain_set": str(bench.files["retain"])}

    def unlearned(**options: Any) -> Callable[[], tuple[MemoryView, dict[str, Any]]]:
        return lambda: _unlearned(bench, Unlearn(**files, **options))

    yield "before", lambda: (bench.view, {})
    if bench.reference is not None:
        yield "retrained", lambda: (MemoryView.of(bench.reference), {})
    yield "fine-tuned on retain", lambda: _tuned(bench)
    for method in ("dense", "wagle"):
        for objective in OBJECTIVES:
            # The two that can reach the goal here search for their strength; the others are shown at the usual rate.
            strength = "auto" if objective in ("npo", "simnpo") else "1"
            yield f"{method} {objective}", unlearned(method=method, objective=objective, strength=strength)
    for mask in ("attribution", "random"):
        # The same rate and steps for both masks: a search would compensate for a poor one.
        yield f"wagle 0.1 npo {mask}", unlearned(method="wagle", keep_ratio=0.1, mask=mask, strength="1")
        few = {"strength": "1", "lr": 5e-4, "steps": 120}
        yield f"wagle 0.1 npo {mask}, 120 steps at 5e-4", unlearned(method="wagle", keep_ratio=0.1, mask=mask, **few)
    for method in ("ssd", "lfssd", "assd", "slug"):
        yield method, unlearned(method=method)


def _unlearned(bench: Bench, op: Unlearn) -> tuple[MemoryView, dict[str, Any]]:
    run = MemoryRun(seed=bench.seed, threads=1)
    began = time.process_time()
    try:
        after = bench.view.after(op.apply(bench.view, run))
    except CheckFailed as fault:
        return bench.view, {"refused": fault.message, "cpu_seconds": round(time.process_time() - began, 1), **run.records}
    seconds = round(time.process_time() - began, 1)
    check = op.check(bench.view, after, run)
    keep = ("forget_before", "forget_after", "retain_before", "retain_after", "selected_fraction", "strength")
    said = {**run.records, **check.values}
    return after, {"passed": check.passed, "reason": check.reason, "cpu_seconds": seconds, **{k: said[k] for k in keep if k in said}}


def _tuned(bench: Bench) -> tuple[MemoryView, dict[str, Any]]:
    op = Update(data=str(bench.files["retain"]), steps=200, batch=16, seq_len=64, lr=3e-4, holdout=0.0, save_every=0)
    run = MemoryRun(seed=bench.seed, threads=1)
    began = time.process_time()
    return bench.view.after(op.apply(bench.view, run)), {"cpu_seconds": round(time.process_time() - began, 1)}


def table(seed: int, only: list[str], reference: Path | None = None) -> dict[str, Any]:
    """All rows for one seed; `only` keeps those whose name contains one of the words."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), people(), seed)
        bench = Bench(MemoryView.of(MATERIAL / "models" / "facts-small"), files, seed, reference)
        for name, make in methods(bench):
            if only and not any(word in name for word in only):
                continue
            after, said = make()
            rows[name] = {**said, **bench.asked(after)}
            sys.stderr.write(f"{name}: {json.dumps(rows[name])}\n")
    return {"seed": seed, "rows": rows}


if __name__ == "__main__":
    place, number, *words = sys.argv[1:]
    retrained = Path(place).parent / f"seed{number}"
    result = table(int(number), words, retrained if retrained.is_dir() else None)
    Path(place).write_text(json.dumps(result, indent=1) + "\n")
