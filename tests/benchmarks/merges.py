"""What merges keep: every method on real siblings, and running merges of forks in many orders.

`python -P tests/benchmarks/merges.py [table|chains] [forks] [steps] [orders]`. The siblings are a story model and two fine-tunes of it;
the forks are trained here, each on a text of its own. Numbers are nats per token and perplexities on held-out text; a flip is a next token
that a parent predicted on its own text and the merge does not.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlc.ops.merge.chain import Opcm, state_of
from mlc.ops.models import load_model, load_tokenizer
from mlc.tests.conftest import ROOT
from mlc.tests.ops.fakes import MemoryRun, MemoryView
from mlc.tests.ops.merging import merged

MATERIAL = Path(os.environ.get("MLC_MATERIAL", ROOT.parent / "shared" / "material"))
WINDOW, WINDOWS, BATCH, RATE = 128, 24, 8, 1e-3
SOURCES = ("oz/oz-train.txt", "tinyshakespeare/train.txt", "wikitext-2/valid.txt")
TABLE: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "slerp .5": {"method": "slerp", "t": 0.5},
    "nuslerp": {"method": "nuslerp", "weights": (0.5, 0.5)},
    "multislerp": {"method": "multislerp"},
    "karcher": {"method": "karcher"},
    **{
        f"{method} {lam:g}": {"method": method, "base": "base", "weights": (1.0, 1.0), "lam": lam}
        for method in ("task_arithmetic",)
        for lam in (0.3, 0.5, 1.0)
    },
    **{
        name: {"method": name, "base": "base", "density": (0.5,), "weights": (0.5, 0.5)}
        for name in ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
    },
    "sce": {"method": "sce", "base": "base"},
    "model_stock": {"method": "model_stock", "base": "base"},
}


class Judge:
    """Scores a version on texts with one model whose weights are exchanged."""

    def __init__(self, view: MemoryView) -> None:
        self.model, self.tokenizer = load_model(view), load_tokenizer(view)
        self.model.eval()

    def windows(self, text: str) -> Tensor:
        """Token rows `[windows, WINDOW]`, spread over the text."""
        ids = torch.tensor(self.tokenizer(text)["input_ids"])
        rows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        return rows[torch.linspace(0, len(rows) - 1, min(WINDOWS, len(rows))).long()]

    @torch.no_grad()
    def score(self, view: Any, rows: Tensor) -> tuple[float, Tensor]:
        """(nats per token, whether each next token was predicted)."""
        self.model.load_state_dict({name: view.tensor(name) for name in view.names()}, strict=False)
        self.model.tie_weights()
        logits = self.model(rows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        return float(loss), logits.argmax(-1) == rows[:, 1:]


# --- the table -------------------------------------------------------------------------------------------


def table() -> dict[str, Any]:
    """Perplexity on each text and negative flips against each sibling, for every method."""
    names = {"base": "stories260k", "oz": "stories260k-oz", "shakespeare": "stories260k-tinyshakespeare"}
    known = {name: MemoryView.of(MATERIAL / "models" / folder) for name, folder in names.items()}
    judge, data = Judge(known["base"]), MATERIAL / "data"
    texts = {"base": "tinystories/sample.txt", "oz": "oz/oz-heldout.txt", "shakespeare": "tinyshakespeare/heldout.txt"}
    rows = {name: judge.windows((data / path).read_text(encoding="utf-8")) for name, path in texts.items()}
    own = {name: judge.score(known[name], rows[name])[1] for name in names}
    found: dict[str, Any] = {}
    results = {name: lambda view=view: view for name, view in known.items()}
    results |= {name: lambda chosen=chosen: merged(known, "oz", "shakespeare", **chosen) for name, chosen in TABLE.items()}
    results["opcm"] = lambda: chain(known, ["oz", "shakespeare"])[0]
    for name, make in results.items():
        view, line = make(), {}
        for text, held in rows.items():
            loss, right = judge.score(view, held)
            line[text] = {"perplexity": round(math.exp(loss), 2), "nfr": round(float((own[text] & ~right).float().mean()), 4)}
        found[name] = line
    return found


# --- chains ----------------------------------------------------------------------------------------------


def chain(known: dict[str, Any], order: list[str]) -> tuple[MemoryView, tuple[float, ...]]:
    """OPCM, one operation per model."""
    running, state, views = order[0], (), dict(known)
    for step, model in enumerate(order[1:]):
        with tempfile.TemporaryDirectory() as place:
            run = MemoryRun(scratch=Path(place))
            run.versions = views
            op = Opcm((running, model), "base", 0.5, state, deltas=False)
            result = views[running].after(op.apply(views[running], run))
        state, running = state_of(run.records), f"step{step}"
        views[running] = result
    return views[running], state


def ties(known: dict[str, Any], order: list[str]) -> MemoryView:
    """Continual TIES: the running merge and the next model, density .2, factor .3."""
    views = dict(known)
    running = order[0]
    for step, model in enumerate(order[1:]):
        views["now"] = merged(views, running, model, method="ties", base="base", density=(0.2,), weights=(1.0, 1.0), lam=0.3)
        running = f"step{step}"
        views[running] = views.pop("now")
    return views[running]


def summed(known: dict[str, Any], names: list[str], factor: float | None) -> MemoryView:
    """base + factor x the sum of the task vectors; without a factor, at their mean norm."""
    base = known["base"]
    total = {n: sum((known[m].tensor(n).double() - base.tensor(n).double() for m in names), torch.zeros(())) for n in base.names()}
    if factor is None:
        norms = [norm({n: known[m].tensor(n).double() - base.tensor(n).double() for n in base.names()}) for m in names]
        factor = statistics.mean(norms) / norm(total)
    return MemoryView({n: (base.tensor(n).double() + factor * total[n]).to(base.tensor(n).dtype) for n in base.names()}, {})


def norm(tensors: dict[str, Tensor]) -> float:
    """L2 over all tensors."""
    return math.sqrt(sum(float(x.square().sum()) for x in tensors.values()))


def fork(judge: Judge, base: MemoryView, text: str, steps: int, seed: int) -> MemoryView:
    """The base trained further on one text."""
    torch.manual_seed(seed)
    model = load_model(base)
    model.train()
    ids = torch.tensor(judge.tokenizer(text)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 10) * (1 - step / steps)
        at = torch.randint(len(ids) - WINDOW, (BATCH,))
        rows = torch.stack([ids[i : i + WINDOW] for i in at])
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    held = model.state_dict()
    return MemoryView({n: held[n].detach().clone() for n in base.names()}, {})


def chains(count: int = 8, steps: int = 100, orders: int = 10) -> dict[str, Any]:
    """Mean improvement in nats over the forks' texts, by method and order."""
    base = MemoryView.of(MATERIAL / "models" / "stories260k")
    judge, known, held = Judge(base), {"base": base}, {}
    began = time.process_time()
    for i, text in enumerate(parts(count)):
        cut = len(text) * 9 // 10
        known[f"f{i}"], held[f"f{i}"] = fork(judge, base, text[:cut], steps, i), judge.windows(text[cut:])
    trained = time.process_time() - began
    names = list(held)
    before = {name: judge.score(base, rows)[0] for name, rows in held.items()}

    def gain(view: Any) -> float:
        return statistics.mean(before[name] - judge.score(view, rows)[0] for name, rows in held.items())

    turns = [random.Random(seed).sample(names, count) for seed in range(orders)]
    by_order = {"opcm": [gain(chain(known, order)[0]) for order in turns], "continual ties": [gain(ties(known, order)) for order in turns]}
    free = {"running mean": summed(known, names, 1 / count), "norm-matched sum": summed(known, names, None)}
    free |= {f"continual task arithmetic {factor:g}": summed(known, names, factor) for factor in (0.2, 0.3)}
    found: dict[str, Any] = {name: {"mean": round(gain(view), 4)} for name, view in free.items()}
    for name, gains in by_order.items():
        mean = statistics.mean(gains)
        found[name] = {"mean": round(mean, 4), "sd": round(statistics.pstdev(gains), 4), "gains": [round(g, 4) for g in gains]}
    found["each fork on its own text"] = {"mean": round(statistics.mean(before[n] - judge.score(known[n], held[n])[0] for n in names), 4)}
    found["scale"] = [round(chain(known, names[:n])[1][0], 3) for n in range(2, count + 1)]
    return {"forks": count, "steps": steps, "orders": orders, "training_cpu_s": round(trained, 1), "nats": found}


def parts(count: int) -> list[str]:
    """Disjoint texts: the sources in turn, each cut into as many pieces as it must give."""
    texts = [(MATERIAL / "data" / path).read_text(encoding="utf-8") for path in SOURCES]
    found = []
    for i, text in enumerate(texts):
        share = len(range(i, count, len(texts)))
        found += [text[k * len(text) // share :][: min(len(text) // share, 120_000)] for k in range(share)]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    what = words[0] if words else "all"
    numbers = [int(word) for word in words[1:]]
    document = ({"table": table()} if what in ("table", "all") else {}) | (
        {"chains": chains(*numbers)} if what in ("chains", "all") else {}
    )
    print(json.dumps(document, indent=1))
