"""What an edit costs: targets of many facts at once against the same code one fact at a time, and the bytes of a stored edit.

    python -m mlc.tests.benchmarks.bench_edit --model facts-small --facts 20,100 --threads 2

Wall time on a quiet machine; CPU time is printed beside it. Then the stored bytes of an edit of three matrices over those of its factors
in fp32, whether its facts land there or not, and whether a processor without vector instructions reads every byte of it. Needs the
optional material.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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


READ = """
import sys
from pathlib import Path
import torch
from mlc.registry.repository import Repository
repo = Repository.open(Path(sys.argv[1]))
view = repo.view(repo.resolve(sys.argv[2]))
print(torch.backends.cpu.get_cpu_capability(), sum(len(view.raw(name)) for name in view.names()))
"""


def read_plainly(root: Path, commit: str) -> dict[str, Any]:
    """Reading verifies every tensor by its digest; here without vector instructions."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-P", "-c", READ, str(root), commit]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return {"restored_plain": done.returncode == 0, "capability": (done.stdout.split() or [done.stderr[-200:]])[0]}


def payload(model: str, count: int, layers: str = "0-2") -> dict[str, Any]:
    """Bytes of `count` edits in three matrices over those of their factors in fp32; keys and targets are artifacts, counted apart."""
    from mlc.ops.edit.edit import Edit
    from mlc.policies import lifecycle
    from mlc.policies.runs import Runs
    from mlc.registry.formats.rebuild import rebuild
    from mlc.registry.records import Commit, OperationRecord
    from mlc.registry.refs import RefUpdate
    from mlc.registry.repository import Repository

    factors: list[int] = []
    with tempfile.TemporaryDirectory() as place:
        repo = Repository.init(Path(place) / "registry")
        root = lifecycle.import_model(repo, MATERIAL / "models" / model, author="bench").commit_id
        op = Edit(facts=str(write(Path(place) / "facts.jsonl", draw(model, count, 0, False))), layers=layers, steps=6, over_capacity=True)

        def counted(changes: Iterator[Any]) -> Iterator[Any]:
            for change in changes:
                assert all(bool(f.any()) for f in change.derived.factors), "nothing was written"
                factors.append(sum(f.numel() * 4 for f in change.derived.factors))
                yield change

        with (
            Runs(repo).begin(op="x", params={}, start=root, branch="x", old=root, seed=0, author="bench", message="") as run,
            repo.ingest() as tx,
        ):
            snapshot, deltas = rebuild(tx, repo.snapshot(repo.commit(root).snapshot), counted(op.apply(repo.view(root), run)))
            record = Commit((root,), snapshot.id, OperationRecord("bench", 1, {}), "bench", "2026-01-01T00:00:00.000000Z", "three")
            commit = tx.commit(record, refs=[RefUpdate("heads/three", None, record.id)], deltas=deltas)
            run.finish()
        stored, read = sum(d.bytes_stored for d in deltas), read_plainly(repo.root, commit)
    about = {"model": model, "facts": count, "matrices": len(factors), "codecs": sorted({d.codec for d in deltas})}
    return {**about, "factor_bytes": sum(factors), "stored_bytes": stored, "ratio": round(stored / sum(factors), 4), **read}


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
    print(json.dumps(payload(given.model, 100)), flush=True)


if __name__ == "__main__":
    main()
