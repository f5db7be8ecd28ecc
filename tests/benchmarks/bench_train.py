"""Steps per second of the engine against a bare PyTorch loop on the same model and rows, and what a state every 50 steps costs.

The three are run in turn, in short stretches side by side, so that what else the machine does meets all of them alike; a round counts as
its ratios, and the median over rounds is reported. Times are those of this process on the CPU (`process_time`, all threads, the one that
writes states included) and of the clock.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlc.ops.data.mixing import Mixture, Source
from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.engine.local import language_loss
from mlc.policies.runs import Runs
from mlc.registry.ids import CommitId
from mlc.registry.repository import Repository

EVERY = 50  # steps between states
BATCH, LENGTH = 8, 128


def small_llama(seed: int = 0) -> nn.Module:
    """About 1.1 M parameters, fp32, random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, max_position_embeddings=256, tie_word_embeddings=True, **sizes))


def bare(module: nn.Module, rows: torch.Tensor, steps: int) -> None:
    """What one would write by hand: batches, loss, backward, clipping, AdamW, a rate that falls."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for step in range(steps):
        first = step * BATCH % (len(rows) - BATCH)
        ids = rows[first : first + BATCH]
        logits = module(input_ids=ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        falling.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()


def engine(module: nn.Module, rows: torch.Tensor, steps: int, every: int, runs: Runs) -> None:
    """The same by the engine, states written into a run's directory where `every` is not 0."""
    feed = Mixture([Source("data", rows, 1.0)], batch=BATCH, seed=0)
    settings = TrainSettings(steps=steps, lr=1e-3, warmup=0, save_every=every)
    asked: dict[str, Any] = {"op": "update", "params": {}, "start": CommitId("0" * 64), "branch": "main", "old": None}
    with runs.begin(**asked, seed=0, author="a", message="") as run:
        LocalEngine().train(module, feed, settings, run, objective=language_loss)
        run.finish()


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(CPU seconds, clock seconds)."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def main(rounds: int | None = None, steps: int = 100) -> dict[str, Any]:
    """Medians over rounds of the ratios to the bare loop (1 is as fast), and of a run with states to one without."""
    rounds = rounds or 2 * int(os.environ.get("MLC_BENCH_RUNS", "3"))  # even: both orders as often
    torch.set_num_threads(1)
    rows = torch.randint(0, 512, (256, LENGTH), generator=torch.Generator().manual_seed(0))
    found: list[dict[str, tuple[float, float]]] = []
    with tempfile.TemporaryDirectory() as place:
        runs = Runs(Repository.init(Path(place) / "work"))
        module = small_llama()
        bare(module, rows, 5)  # warm
        for number in range(rounds):
            works: dict[str, Callable[[], None]] = {
                "bare": lambda: bare(module, rows, steps),
                "engine": lambda: engine(module, rows, steps, 0, runs),
                "states": lambda: engine(module, rows, steps + 1, EVERY, runs),  # the last step saves nothing: one more, two states
            }
            order = list(works) if number % 2 == 0 else list(works)[::-1]
            found.append({name: timed(works[name]) for name in order})
    size = sum(p.numel() for p in module.parameters())

    def ratio(a: str, b: str, which: int, scale: float = 1.0) -> float:
        return round(statistics.median(r[a][which] / r[b][which] * scale for r in found), 4)

    more = steps / (steps + 1)
    return {
        "parameters": size,
        "rounds": rounds,
        "steps": steps,
        "bare_steps_per_cpu_second": round(statistics.median(steps / r["bare"][0] for r in found), 2),
        "engine_to_bare_cpu": ratio("engine", "bare", 0),
        "engine_to_bare_clock": ratio("engine", "bare", 1),
        "states_to_none_cpu": ratio("states", "engine", 0, more),
        "states_to_none_clock": ratio("states", "engine", 1, more),
        "limit": 1.05,
    }


if __name__ == "__main__":
    print(json.dumps(main(*(int(word) for word in sys.argv[1:])), indent=1))
