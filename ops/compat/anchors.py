"""Anchors: records on which a new version shall answer as an old one did, and how a model is asked them.

A language model is asked for the tokens of an answer (every token of a plain text), a classifier for a class, and in a suite of choices
or pairs the continuations are the classes, their log-likelihoods the logits. All three give rows of logits with a target each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ...registry.errors import Incompatible
from ...registry.ids import record_digest
from ...registry.records import InputRecord
from ..data.items import Item, ItemSet, read_items
from ..evaluate.suite import load_suite
from ..unlearn.classes import ClassTask
from ..unlearn.language import LanguageTask
from ..unlearn.task import Rows, batches, task_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..evaluate.suite import Suite


class Anchors(Protocol):
    """Records as one model reads them. `pairs` says per record whether it is answered as a whole; `counts` how many decisions it has."""

    kind: str  # "language", "classes" or "choice"
    items: ItemSet

    def __len__(self) -> int: ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Decisions of each record: answer tokens, or 1."""
        ...

    @property
    def pairs(self) -> tuple[bool, ...]:
        """False: a plain text, whose tokens are right or wrong one by one."""
        ...

    def parts(self, chosen: Sequence[int]) -> list[list[int]]:
        """The chosen records in batches of bounded size."""
        ...

    def answers(self, module: nn.Module, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(logits fp32 `[N, V]`, place in `chosen` int64 `[N]`, targets int64 `[N]`), in the order of `chosen`. Differentiable."""
        ...

    def digest(self) -> str:
        """Covers what is asked and which answer counts as right."""
        ...


def read_anchors(path: str | Path, view: ModelView) -> Anchors:
    """The anchors in `path` as the model of `view` is asked them.

    Raises InputNotFound, BadInputFile (empty, malformed, or a record that the model cannot be asked), BadRecipe, Incompatible.
    """
    task = task_of(view)
    suite = load_suite(Path(path)) if str(path).lower().endswith(".toml") else None
    if suite is not None and suite.kind in ("choice", "pairs"):
        if not isinstance(task, LanguageTask):
            raise Incompatible(f"{suite.path.name} asks which text is likelier, and this model is a classifier")
        return Choices(task, suite)
    items = read_items(path, "anchor")
    return Questions(task, items)  # type: ignore[arg-type]  # the two tasks that there are


def input_record(anchors: Anchors) -> InputRecord:
    """How a commit names the file."""
    return InputRecord("compat", anchors.items.name, anchors.items.digest, anchors.items.bytes)


class Questions:
    """Prompts with answers, plain texts, or inputs with a class."""

    def __init__(self, task: LanguageTask | ClassTask, items: ItemSet) -> None:
        self.task, self.items, self.kind = task, items, task.kind
        self.rows: Rows = task.rows(items)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> tuple[int, ...]:
        return self.rows.scored

    @property
    def pairs(self) -> tuple[bool, ...]:
        return self.rows.pairs

    def parts(self, chosen: Sequence[int]) -> list[list[int]]:
        return batches(self.rows, chosen)

    def answers(self, module: nn.Module, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.task, LanguageTask):
            return self.task.scored_logits(module, self.rows, chosen)
        logits = self.task.logits(module, self.rows, chosen)
        targets = torch.tensor([self.rows.inputs[i][1] for i in chosen], device=logits.device)
        return logits, torch.arange(len(chosen), device=logits.device), targets

    def digest(self) -> str:
        return record_digest("mlc.anchors.v1", repr((self.kind, self.items.digest, self.rows.lengths, self.counts)).encode())


class Choices:
    """Continuations of a prompt as classes: the logit of a choice is its log-likelihood (per character with the metric accuracy_norm)."""

    kind = "choice"

    def __init__(self, task: LanguageTask, suite: Suite) -> None:
        examples = suite.examples()
        self.task = task
        self.choices = [_choices(example.values) for example in examples]
        prompts = [str(example.values.get("prompt", "")) for example in examples]
        self.indices = [int(example.values.get("index", 0)) for example in examples]
        normed = suite.metric == "accuracy_norm"
        self.scales = [[1 / len(text) if normed else 1.0 for text in texts] for texts in self.choices]
        flat = [Item(n, prompt, text) for n, (prompt, texts) in enumerate(zip(prompts, self.choices, strict=True), 1) for text in texts]
        self.items = ItemSet(tuple(flat), suite.path.name, "anchor", suite.digest, len(suite.payload), str(suite.path))
        self.rows = task.rows(self.items)
        self.starts = [0]
        for texts in self.choices:
            self.starts.append(self.starts[-1] + len(texts))
        self.width = max(map(len, self.choices))

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def counts(self) -> tuple[int, ...]:
        return (1,) * len(self)

    @property
    def pairs(self) -> tuple[bool, ...]:
        return (True,) * len(self)

    def parts(self, chosen: Sequence[int]) -> list[list[int]]:
        each = max(1, 2048 // max(1, max(self.rows.lengths) * self.width))
        return [list(chosen[start : start + each]) for start in range(0, len(chosen), each)]

    def answers(self, module: nn.Module, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What a record has fewer choices than the widest is filled with -inf."""
        flat = [row for i in chosen for row in range(self.starts[i], self.starts[i + 1])]
        sums, _ = self.task.token_sums(module, self.rows, flat)
        scales = torch.tensor([scale for i in chosen for scale in self.scales[i]], device=sums.device)
        rows = torch.tensor([n for n, i in enumerate(chosen) for _ in self.choices[i]], device=sums.device)
        columns = torch.tensor([c for i in chosen for c in range(len(self.choices[i]))], device=sums.device)
        empty = torch.full((len(chosen), self.width), -torch.inf, device=sums.device)
        logits = empty.index_put((rows, columns), -sums * scales)
        return logits, torch.arange(len(chosen), device=sums.device), torch.tensor([self.indices[i] for i in chosen], device=sums.device)

    def digest(self) -> str:
        return record_digest("mlc.anchors.v1", repr((self.kind, self.items.digest, self.rows.lengths, self.width)).encode())


def _choices(values: dict) -> list[str]:
    return [values["good"], values["bad"]] if "good" in values else list(values["choices"])
