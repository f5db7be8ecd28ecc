"""Labelled texts of an alignment: which labels are trained on and which are measured, and the batches of every step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...registry.errors import BadInputFile
from ...registry.ids import record_digest
from ...registry.records import InputRecord
from ..data.items import ItemSet, read_items
from .encoder import Coded

LEAST = 4  # labels on either side below which nothing can be said


@dataclass(frozen=True)
class Labelled:
    """Texts with a class each. `train` and `held` are indices into `texts`; a label is wholly on one side."""

    texts: list[str]
    labels: list[str]
    train: list[int]
    held: list[int]
    record: InputRecord

    def queries(self) -> tuple[list[int], list[int]]:
        """(queries, gallery) among the held-out texts: of each label the first half is searched, the second half searches."""
        queries, gallery = [], []
        by_label: dict[str, list[int]] = {}
        for i in self.held:
            by_label.setdefault(self.labels[i], []).append(i)
        for rows in by_label.values():
            half = (len(rows) + 1) // 2
            gallery += rows[:half]
            queries += rows[half:]
        return queries, gallery


def read_labelled(path: str, holdout: float, seed: int) -> Labelled:
    """The texts of a file, labels drawn apart by `seed`. Raises BadInputFile for a row without a label, or too few labels."""
    items = read_items(path, "retain")
    for item in items.items:
        if item.kind != "label":
            raise items.bad(item.line, "a row needs `text` and `label`", 'for example {"text": "...", "label": "..."}')
    labels = [str(item.label) for item in items.items]
    names = sorted(set(labels))
    random.Random(seed).shuffle(names)
    held = set(names[: max(LEAST, round(holdout * len(names)))])
    if len(names) - len(held) < LEAST:
        raise BadInputFile(
            f"{path} has {len(names)} labels: at least {2 * LEAST} are needed", hint="texts of one label belong together", path=path
        )
    sides: tuple[list[int], list[int]] = ([], [])
    for i, label in enumerate(labels):
        sides[label in held].append(i)
    found = Labelled([item.prompt or "" for item in items.items], labels, *sides, record=_record(items))
    if not found.queries()[0]:
        raise BadInputFile(f"{path} has one text per label: nothing can be searched", hint="give every label two texts or more", path=path)
    return found


def _record(items: ItemSet) -> InputRecord:
    return InputRecord("data", items.name, items.digest, items.bytes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, mask int64 [rows, tokens]; classes int64 [rows]; targets fp32 by name: old vectors, the untouched encoder's own."""

    ids: Tensor
    mask: Tensor
    classes: Tensor
    targets: dict[str, Tensor]

    def to(self, where: torch.device) -> Batch:
        """The same batch elsewhere."""
        moved = {name: tensor.to(where) for name, tensor in self.targets.items()}
        return Batch(self.ids.to(where), self.mask.to(where), self.classes.to(where), moved)


class Draws:
    """The batches: every text once in an order of its own per round. A batch is a function of its number and the seed."""

    def __init__(
        self, coded: Coded, chosen: Sequence[int], classes: Tensor, targets: dict[str, Tensor], size: int, seed: int, read: str
    ) -> None:
        self.coded, self.chosen, self.classes, self.targets = coded, list(chosen), classes, targets
        self.size, self.seed, self.read = min(size, len(self.chosen)), seed, read

    @property
    def batch_tokens(self) -> int:
        """About how many tokens a batch holds."""
        return self.size * sum(map(len, self.coded.rows)) // max(1, len(self.coded.rows))

    def at(self, number: int) -> Batch:
        """The batch with this number. Places count over `chosen`; classes and targets have one row per place."""
        rounds = len(self.chosen) // self.size
        turn, part = divmod(number, rounds)
        order = torch.randperm(len(self.chosen), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + turn))
        places = order[part * self.size : (part + 1) * self.size]
        ids, mask = self.coded.batch([self.chosen[i] for i in places.tolist()])
        return Batch(ids, mask, self.classes[places], {name: t[places] for name, t in self.targets.items()})

    def digest(self) -> str:
        """Covers texts, split and teachers."""
        said: Any = f"{self.read}/{self.size}/{self.seed}/{len(self.chosen)}"
        return record_digest("mlc.read.v1", said.encode())
