"""Generate: what does greedy decoding write after a prompt, and how near is it to a reference?"""

from __future__ import annotations

from collections.abc import Sequence

from .bench import Bench
from .decode import Limits, write
from .overlap import Overlap, overlap
from .predictions import Prediction, mean
from .rows import Example


def score(bench: Bench, examples: Sequence[Example], limits: Limits) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows (right: an exact match in normal form; score: token F1) and metrics `exact_match`, `f1`, `rouge_l`, `rouge_l_f1`.

    Of several references each number takes the one it is highest for.
    """
    texts = write(bench, [e.values["prompt"] for e in examples], limits)
    found = [best([overlap(text, r) for r in e.values["reference"]]) for e, text in zip(examples, texts, strict=True)]
    rows = [Prediction(e.id, text, o.exact, o.f1, None, e.slice) for e, text, o in zip(examples, texts, found, strict=True)]
    metrics = {
        "exact_match": mean(float(o.exact) for o in found),
        "f1": mean(o.f1 for o in found),
        "rouge_l": mean(o.rouge_l for o in found),
        "rouge_l_f1": mean(o.rouge_l_f1 for o in found),
    }
    return rows, metrics


def best(overlaps: Sequence[Overlap]) -> Overlap:
    """The highest of each number, over several references."""
    return Overlap(
        any(o.exact for o in overlaps), max(o.f1 for o in overlaps), max(o.rouge_l for o in overlaps), max(o.rouge_l_f1 for o in overlaps)
    )
