"""Two vocabularies laid over each other: which token of a teacher is which of a student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.errors import VocabularyMismatch
from ..models import load_core_tokenizer

if TYPE_CHECKING:
    from ...registry.view import ModelView


@dataclass(frozen=True, slots=True)
class Overlay:
    """`to_student` int64 [teacher's rows]: the student's id of the same token, -1 where it has none. `same`: one vocabulary, id by id."""

    to_student: Tensor
    same: bool
    student: int  # rows of the student's embedding
    texts: tuple[dict[int, str], dict[int, str]]  # id -> token, of teacher and student

    @property
    def common(self) -> int:
        """Tokens that both have."""
        return int((self.to_student >= 0).sum())


def overlay(teacher: ModelView, student: ModelView, name: str) -> Overlay:
    """Lay the tokenizer of one version over that of another. Raises VocabularyMismatch when they share nothing."""
    theirs, ours = (load_core_tokenizer(view).get_vocab(with_added_tokens=True) for view in (teacher, student))
    rows, width = _rows(teacher, theirs), _rows(student, ours)
    same = theirs == ours and teacher.file("tokenizer.json") == student.file("tokenizer.json")
    places = torch.full((rows,), -1, dtype=torch.int64)
    if same:  # rows beyond the tokenizer's are rows of both
        places[: min(rows, width)] = torch.arange(min(rows, width))
    else:
        for text, i in theirs.items():
            places[i] = ours.get(text, -1)
    found = Overlay(places, same, width, ({i: t for t, i in theirs.items()}, {i: t for t, i in ours.items()}))
    if not found.common:
        raise VocabularyMismatch(f"{name} has another vocabulary and shares no token with this version", hint="name a version that does")
    return found


def _rows(view: ModelView, vocabulary: dict[str, int]) -> int:
    """Rows of a version's embedding."""
    return int((view.config or {}).get("vocab_size") or max(vocabulary.values()) + 1)
