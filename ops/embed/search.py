"""The scorer of `retrieval` suites, and one version's queries in another version's gallery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...registry.errors import Incompatible
from ..evaluate.predictions import Prediction, accuracy, mean, settled
from .encoder import as_encoder, code, encode, load_encoder
from .ranking import Ranking, rank, same_label

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..evaluate.rows import Example

Found = tuple[list[Prediction], dict[str, float | None]]


def score(
    view: ModelView | None, model: Any, tokenizer: Any, examples: Sequence[Example], limit: int | None, batch_tokens: int, progress: Any
) -> Found:
    """Rows (one per query) and metrics: accuracy (CMC top-1), cmc5, map. limit: queries, never the gallery.

    A row's answer is the id of the nearest item, its score the average precision, its logprob minus the log of the rank of the first
    relevant item.
    """
    if view is None:
        raise TypeError("a search needs the view of the encoder")
    queries, gallery = split(examples, limit)
    encoder = as_encoder(model, view)
    both = encode(
        encoder, code(view, [e.values["text"] for e in (*queries, *gallery)], tokenizer), batch_tokens=batch_tokens, progress=progress
    )
    return rows(queries, gallery, both[: len(queries)], both[len(queries) :])


def split(examples: Sequence[Example], limit: int | None = None) -> tuple[list[Example], list[Example]]:
    """(queries, gallery) in file order."""
    queries = [e for e in examples if e.values["role"] == "query"]
    return queries[:limit], [e for e in examples if e.values["role"] == "gallery"]


def rows(queries: Sequence[Example], gallery: Sequence[Example], asking: Tensor, asked: Tensor) -> Found:
    """The same from vectors: asking [queries, d], asked [gallery, d_g]; over as many numbers as the gallery has."""
    if asking.shape[1] < asked.shape[1]:
        raise Incompatible(
            f"the gallery's vectors have {asked.shape[1]} numbers, the queries' only {asking.shape[1]}",
            hint="mlc compat A B says what may be compared",
        )
    labels = [[tuple(e.values["labels"]) for e in side] for side in (queries, gallery)]
    found = rank(asking[:, : asked.shape[1]], asked, same_label(*labels))
    predictions = [_row(example, i, found, gallery) for i, example in enumerate(queries)]
    return predictions, {"accuracy": accuracy(predictions), "cmc5": found.cmc(5), "map": mean(p.score for p in predictions)}


def _row(example: Example, i: int, found: Ranking, gallery: Sequence[Example]) -> Prediction:
    first = int(found.first[i])
    return settled(
        Prediction(
            example=example.id,
            answer=gallery[int(found.nearest[i])].id,
            correct=first == 0,
            score=float(found.precision[i]),
            logprob=-math.log(first + 1 if first >= 0 else len(gallery) + 1),
            slice=example.slice,
        )
    )


def cross(old: ModelView, new: ModelView, examples: Sequence[Example], progress: Any = None) -> dict[str, Found]:
    """`old_old`, `new_old`, `new_new`: whose queries in whose gallery, rows and metrics each.

    Raises Incompatible where the new vectors are shorter than the old ones.
    """
    queries, gallery = split(examples)
    texts = [e.values["text"] for e in (*queries, *gallery)]
    old_both, new_both = (encode(load_encoder(view), code(view, texts), progress=progress) for view in (old, new))
    n = len(queries)
    return {
        "old_old": rows(queries, gallery, old_both[:n], old_both[n:]),
        "new_old": rows(queries, gallery, new_both[:n], old_both[n:]),
        "new_new": rows(queries, gallery, new_both[:n], new_both[n:]),
    }
