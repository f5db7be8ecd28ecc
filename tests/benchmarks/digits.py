"""Forgetting one class of scikit-learn's digits: every training-free method on a small ViT and a CNN, five seeds, `--strength auto`.

Usage: python tests/benchmarks/digits.py [SEEDS] [MODELS] [METHODS], comma-separated; prints one JSON document. Scores are accuracies; the
gate is at most chance plus two points on the class (train and test images) and at most one point lost on the others' test images.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mlc.ops.models import load_model
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.registry.errors import CheckFailed
from mlc.tests.digits import MODELS, Digits, passes, scores, trained
from mlc.tests.ops.fakes import MemoryRun, MemoryView

MATERIAL = Path(os.environ.get("MLC_MATERIAL", Path(__file__).resolve().parents[3] / "shared" / "material"))
METHODS = ("ssd", "lfssd", "assd", "slug")


def attempt(view: MemoryView, digits: Digits, label: int, method: str, files: dict[str, str], seed: int) -> dict[str, Any]:
    """One request: what was chosen, the scores afterwards, CPU seconds; the sentence where the method refused."""
    start, run = time.process_time(), MemoryRun(seed=seed)
    try:
        after = view.after(Unlearn(method=method, **files).apply(view, run))
    except CheckFailed as fault:
        return {"refused": fault.message, "seconds": round(time.process_time() - start, 2)}
    told = {key: run.records[key] for key in ("strength", "damping", "selected_fraction", "tensor") if key in run.records}
    return {**told, "seconds": round(time.process_time() - start, 2), "after": scores(load_model(after), digits, label)}


def table(seeds: list[int], models: list[str], methods: list[str]) -> dict[str, Any]:
    """model -> seed -> scores before and per method; and how many seeds each method passes."""
    report: dict[str, Any] = {"runs": [], "passed": {}}
    for model in models:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as place:
                report["runs"].append(one(model, seed, methods, Path(place)))
        for method in methods:
            rows = [run["methods"][method] for run in report["runs"] if run["model"] == model]
            report["passed"][f"{model}/{method}"] = f"{sum(row.get('passed', False) for row in rows)} of {len(rows)}"
    return report


def one(model: str, seed: int, methods: list[str], place: Path) -> dict[str, Any]:
    """One trained model, with every method from the same start."""
    digits, label = Digits.read(MATERIAL, seed), seed % 10
    start = time.process_time()
    view = MemoryView.of(trained(model, digits, place / "model", seed))
    found: dict[str, Any] = {"model": model, "seed": seed, "label": label, "training_seconds": round(time.process_time() - start, 1)}
    found |= {"before": scores(load_model(view), digits, label), "methods": {}}
    sets = {"forget_set": digits.of_class(digits.train, label), "retain_set": digits.other_than(digits.train, label)}
    files = {name: str(digits.write(place / f"{name}.jsonl", rows)) for name, rows in sets.items()}
    for method in methods:
        row = attempt(view, digits, label, method, files, seed)
        row["passed"] = "after" in row and passes(found["before"], row["after"])
        found["methods"][method] = row
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = [a.split(",") for a in sys.argv[1:]]
    chosen = given + [None, None, None][len(given) :]
    print(json.dumps(table([int(s) for s in chosen[0] or range(5)], chosen[1] or list(MODELS), chosen[2] or list(METHODS)), indent=1))
