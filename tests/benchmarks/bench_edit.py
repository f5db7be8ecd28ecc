"""Targets of many facts at once against the same code one fact at a time: time, and how far the losses are apart.

    python -m mlc.tests.benchmarks.bench_edit --model facts-small --facts 20,100 --threads 2

Wall time on a quiet machine; CPU time is printed beside it. Needs the optional material.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from mlc.tests.benchmarks.edits import MATERIAL, draw, write


def measure(model: str, count: int, threads: int, steps: int, batch: int, precision: str) -> dict[str, Any]:
    """One line: both ways on the same groups."""
    import torch

    from mlc.ops.data.facts import read_facts
    from mlc.ops.edit.prompts import Prompter, groups_of, prefixes_of
    from mlc.ops.edit.site import Editable
    from mlc.ops.edit.targets import Settings, default_rate, find_targets, hidden_at
    from mlc.ops.engine.local import threads as with_threads
    from mlc.ops.evaluate.coder import Coder
    from mlc.ops.models import load_tokenizer
    from mlc.tests.ops.fakes import MemoryRun, MemoryView

    view = MemoryView.of(MATERIAL / "models" / model)
    with tempfile.TemporaryDirectory() as place, with_threads(threads):
        facts = read_facts(write(Path(place) / "facts.jsonl", draw(model, count, 0, False))).facts
        editable, coder = Editable(view), Coder(load_tokenizer(view))
        groups = groups_of(facts, Prompter(coder, None), prefixes_of(view, MemoryRun(), editable.module, coder, 3))
        hidden = hidden_at(editable, 0, groups)
        settings = Settings(
            steps=steps, lr=default_rate(hidden.norm(dim=1).mean().item(), hidden.shape[1]), batch=batch, precision=precision
        )
        find_targets(editable, 0, groups[:1], settings)  # warm
        began, cpu = time.perf_counter(), time.process_time()
        together = find_targets(editable, 0, groups, settings)
        middle, cpu_middle = time.perf_counter(), time.process_time()
        alone = [find_targets(editable, 0, [group], settings).losses[0] for group in groups]
        end, cpu_end = time.perf_counter(), time.process_time()
    apart = [abs(a - b) for a, b in zip(alone, together.losses, strict=True)]
    return {
        "model": model,
        "facts": count,
        "steps": steps,
        "precision": precision,
        "threads": threads,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "together_s": round(middle - began, 3),
        "alone_s": round(end - middle, 3),
        "faster": round((end - middle) / (middle - began), 2),
        "faster_cpu": round((cpu_end - cpu_middle) / (cpu_middle - cpu), 2),
        "largest_loss_difference": max(apart),
        "further_apart_than_1e-4": sum(one > 1e-4 for one in apart),
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="facts-small")
    ask.add_argument("--facts", default="20,100")
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--steps", type=int, default=40)
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--precisions", default="fp32,fp64")
    given = ask.parse_args()
    for count in map(int, given.facts.split(",")):
        for precision in given.precisions.split(","):
            print(json.dumps(measure(given.model, count, given.threads, given.steps, given.batch, precision)), flush=True)


if __name__ == "__main__":
    main()
