"""A teacher's answers on anchors, kept as an artifact: the TOP likeliest tokens of every decision, and the mass of all others exactly.

With the others as one more cell, the divergence from a student is that of two distributions over TOP + 1 cells, each computed from whole
logits. It is never above the true one, by r KL(others of the teacher || others of the student), r the mass that the teacher gives to the
others; the gradient in the student's logits is off by 2 r at most in l1. With no more than TOP classes everything is kept and both are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.ids import blob_digest
from .anchors import Anchors
from .asking import Kept, asked, readings
from .options import TOP

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run

KIND = "compat-teacher"


@dataclass(frozen=True, slots=True)
class Told:
    """What a teacher says about N decisions; k cells are kept."""

    ids: Tensor  # int64 [N, k]: the student's tokens or classes
    logits: Tensor  # fp32 [N, k]; -inf in a cell that holds nothing
    total: Tensor  # fp32 [N]: log-sum-exp of all logits over the temperature
    rest: Tensor  # fp32 [N]: log of the mass outside the k cells
    hit: Tensor  # bool [N]: the teacher's choice is the target
    known: Tensor  # bool [N]: the teacher has something to say
    spelled: Tensor  # bool [N]: both vocabularies write the answer alike; if not, all that is told is that the target is right
    right: Tensor  # bool [N]: the record as a whole is right (of a plain text: this token is)


class Teacher:
    """A version's stored answers; the version itself need not be in memory."""

    def __init__(self, kept: Kept, anchors: Anchors, tau: float) -> None:
        self.kept, self.tau = kept, tau
        self.starts = [0]
        for count in anchors.counts:
            self.starts.append(self.starts[-1] + count)
        owners = torch.repeat_interleave(torch.arange(len(anchors)), torch.tensor(anchors.counts))
        misses = torch.zeros(len(anchors), dtype=torch.int64).index_add(0, owners, (~kept["hit"]).long())
        self.right = torch.where(torch.tensor(anchors.pairs)[owners], misses[owners] == 0, kept["hit"])

    @cached_property
    def rightly(self) -> list[bool]:
        """Per record: every decision of it is right."""
        return [bool(self.kept["hit"][a:b].all()) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]

    def at(self, chosen: Sequence[int], where: torch.device) -> Told:
        """What was said about the decisions of the chosen records, in their order."""
        places = torch.tensor([n for i in chosen for n in range(self.starts[i], self.starts[i + 1])])
        picked = {name: tensor[places].to(where) for name, tensor in self.kept.items()}
        return Told(**{**picked, "ids": picked["ids"].long()}, right=self.right[places].to(where))

    def facts(self) -> dict[str, Any]:
        """For the record: decisions, the share of them that is right, the mass outside what is kept."""
        rest = self.kept["rest"][self.kept["known"]].exp()
        return {
            "decisions": len(self.kept["hit"]),
            "kept": self.kept["ids"].shape[1],
            "right": round(float(self.kept["hit"].float().mean()), 6),
            "mean_rest": round(float(rest.mean()), 6) if len(rest) else None,
            "largest_rest": round(float(rest.max()), 6) if len(rest) else None,
            "written_otherwise": int((~self.kept["spelled"]).sum()),
        }


def ask(view: ModelView, name: str, student: ModelView, anchors: Anchors, run: Run, tau: float) -> Teacher:
    """The answers of `view` (`name` in messages) on anchors as `student` reads them; computed once and stored.

    Raises VocabularyMismatch when the two vocabularies write no answer alike; Incompatible for a model of another kind, and for a
    classifier with classes that the student has not.
    """
    reading = readings(view, name, student, anchors)
    spelling = b"" if reading.same else student.file("tokenizer.json") or b""
    key = f"{view.snapshot_id}/{anchors.digest()}/{TOP}/{tau:g}" + (f"/{blob_digest(spelling)[:16]}" if spelling else "")
    data = run.artifact(KIND, key, lambda: _pack(asked(view, reading, anchors, run, tau)))
    return Teacher(_unpack(data), anchors, tau)


def _pack(kept: Kept) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in kept.items()})


def _unpack(data: bytes) -> Kept:
    from safetensors.torch import load

    return load(data)
