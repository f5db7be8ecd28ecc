"""A small world to forget in: a tiny model that has learnt who has what, and the records of it. For tests of unlearning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mlc.ops.models import load_model
from mlc.ops.unlearn.session import prepare
from mlc.ops.unlearn.task import task_of
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

OWNERS = [f"w{i}" for i in range(12)]
THINGS = ["river", "stone", "amber", "harbour", "lamp"]
WORDINGS = ("{} sells the", "near {} is the")


def thing_of(owner: str) -> str:
    """Who has what."""
    return THINGS[(OWNERS.index(owner) * 7 + 3) % len(THINGS)]


def pairs(owners: list[str]) -> list[dict[str, str]]:
    """Every wording for every owner."""
    return [{"prompt": wording.format(owner), "answer": thing_of(owner)} for owner in owners for wording in WORDINGS]


def texts(count: int = 12) -> list[dict[str, str]]:
    """Lines of plain text in which every word decides the next."""
    words = ["the", "a", "of", "in", "on", "is", "was"]
    return [{"text": " ".join(words[(i * 3 + k) % len(words)] for k in range(8 + i % 3))} for i in range(count)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write records; returns the path as an option takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def world(folder: Path, family: str = "llama") -> tuple[MemoryView, dict[str, str]]:
    """(a view that knows every pair, paths of the forget, retain and holdout sets)."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "forget_set": jsonl(folder / "forget.jsonl", pairs(OWNERS[:3])),
        "retain_set": jsonl(folder / "retain.jsonl", pairs(OWNERS[3:]) + texts()),
    }
    view = MemoryView.of(
        tiny_model(folder / "model", family, hidden_size=32) if family == "llama" else tiny_model(folder / "model", family)
    )
    return taught(view, sets), sets


def taught(view: MemoryView, sets: dict[str, str], steps: int = 80) -> MemoryView:
    """The view after learning all records of `sets` by heart."""
    from mlc.ops.base import SetTensor
    from mlc.ops.data.items import read_items
    from mlc.ops.models import state_names

    task, module = task_of(view), load_model(view, dtype=torch.float32)
    parts = [task.rows(read_items(path, "retain")) for path in sets.values()]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.cat([task.losses(module, rows, range(len(rows))) for rows in parts]).mean().backward()
        optimizer.step()
    state = module.state_dict()
    return view.after(SetTensor(stored, state[name].detach()) for name, stored in state_names(module, view).items())


def context(view: MemoryView, sets: dict[str, str], run: MemoryRun | None = None, **options: Any):
    """A context as the session makes it."""
    return prepare(Unlearn(**{**sets, "strength": "1", **options}), view, run or MemoryRun())
