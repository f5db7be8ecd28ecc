"""Forks of one base, trained here: a story model on texts of its own, and a model of facts on people it never met.

`python -P tests/benchmarks/forks.py FOLDER` trains all of them, so that `merges.py` finds them there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlc.ops.models import load_model, load_tokenizer
from mlc.tests.benchmarks.people import MATERIAL, documents_without, people
from mlc.tests.benchmarks.retrain import learn
from mlc.tests.ops.fakes import MemoryView

WINDOW, WINDOWS, BATCH, RATE = 128, 24, 8, 1e-3
SOURCES = ("oz/oz-train.txt", "tinyshakespeare/train.txt", "wikitext-2/valid.txt")
FACT_STEPS, FACT_RATE, TEAM = 300, 1e-3, 40  # people per fork
ASKED = 2  # training wordings of every fact that are asked


def base_of(name: str) -> MemoryView:
    """A model of the material."""
    return MemoryView.of(MATERIAL / "models" / name)


class Shelf:
    """Trained tensors by name in a folder; without one all are trained anew. `seconds`: CPU time of training, also of those kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.seconds = folder, 0.0

    def get(self, name: str, base: MemoryView, train: Callable[[], dict[str, Tensor]]) -> MemoryView:
        """The version of this name, trained when there is none."""
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{name}.safetensors" if self.folder else None
        files = {f.path: base.file(f.path) or b"" for f in base.files()}
        if path is not None and path.exists():
            self.seconds += json.loads(path.with_suffix(".json").read_text())["cpu_s"]
            return MemoryView(load_file(path), files)
        began = time.process_time()
        tensors = train()
        spent = time.process_time() - began
        self.seconds += spent
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            path.with_suffix(".json").write_text(json.dumps({"cpu_s": round(spent, 1)}))
        return MemoryView(tensors, files)


# --- texts -----------------------------------------------------------------------------------------------


def parts(count: int) -> list[str]:
    """Disjoint texts: the sources in turn, each cut into as many pieces as it must give."""
    texts = [(MATERIAL / "data" / path).read_text(encoding="utf-8") for path in SOURCES]
    found = []
    for i, text in enumerate(texts):
        share = len(range(i, count, len(texts)))
        found += [text[k * len(text) // share :][: min(len(text) // share, 120_000)] for k in range(share)]
    return found


def text_forks(shelf: Shelf, base: MemoryView, count: int = 8, steps: int = 100) -> tuple[dict[str, MemoryView], dict[str, str]]:
    """({name: fork}, {name: the last tenth of its text, which it did not see})."""
    known, held = {}, {}
    for i, text in enumerate(parts(count)):
        cut, name = len(text) * 9 // 10, f"f{i}"
        known[name] = shelf.get(f"text-{count}-{steps}-{i}", base, lambda own=text[:cut], seed=i: read_on(base, own, steps, seed))
        held[name] = text[cut:]
    return known, held


def read_on(base: MemoryView, text: str, steps: int, seed: int, rate: float = RATE) -> dict[str, Tensor]:
    """The base trained further on one text."""
    torch.manual_seed(seed)
    model = load_model(base)
    model.train()
    ids = torch.tensor(load_tokenizer(base)(text)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        at = torch.randint(len(ids) - WINDOW, (BATCH,))
        rows = torch.stack([ids[i : i + WINDOW] for i in at])
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return tensors_of(model, base)


def tensors_of(model: Any, base: MemoryView) -> dict[str, Tensor]:
    """The model's tensors under the names that the base has."""
    held = model.state_dict()
    return {n: held[n].detach().clone().contiguous() for n in base.names()}


# --- people ----------------------------------------------------------------------------------------------


def fact_forks(shelf: Shelf, base: MemoryView, count: int = 2) -> tuple[dict[str, MemoryView], dict[str, list[dict[str, Any]]]]:
    """({name: fork}, {name: questions about its people}); `base` asks about the people that all of them began with."""
    world, other = people("facts"), people("facts-deep")
    old = {fact["subject"] for rows in world.facts.values() for fact in rows}
    fresh = sorted({fact["subject"] for fact in other.facts["core"]} - old)
    known, asked = {}, {"base": questions(world.facts["core"][::4], world.wordings)}
    for i in range(count):
        team, name = fresh[i * TEAM : (i + 1) * TEAM], f"people {i + 1}"
        lines = [line for line in documents_without([], "facts-deep") if any(person in line for person in team)]
        known[name] = shelf.get(f"people-{i}", base, lambda lines=lines, team=team, seed=i: meet(base, lines, team, world.text, seed))
        asked[name] = questions([fact for fact in other.facts["core"] if fact["subject"] in team], other.wordings)
    return known, asked


def meet(base: MemoryView, lines: list[str], names: list[str], paragraphs: list[str], seed: int) -> dict[str, Tensor]:
    """The base taught documents about people that it did not know, beside ordinary text."""
    torch.manual_seed(seed)
    model = load_model(base)
    model.train()
    learn(model, load_tokenizer(base), lines, names, paragraphs, seed=seed, steps=FACT_STEPS, peak=FACT_RATE, few=0)
    return tensors_of(model, base)


def questions(facts: list[dict[str, Any]], wordings: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Every fact in ASKED of the wordings that training draws from."""
    return [{"prompt": wording.format(s=f["subject"]), "answer": f["object"]} for f in facts for wording in wordings[f["relation"]][:ASKED]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shelf = Shelf(Path(sys.argv[1]))
    if "people" in sys.argv:
        fact_forks(shelf, base_of("facts-small"))
    else:
        text_forks(shelf, base_of("stories260k"))
    print(f"{shelf.seconds:.0f} CPU-s of training")
