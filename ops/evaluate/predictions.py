"""Per-example rows of one evaluation, and their columnar form (Arrow IPC), which the catalog reads.

Columns: example (text), answer (text), correct (bool, null where right and wrong have no meaning), score (double), logprob
(double), slice (text or null). A number that is not finite is null, and an example it came from is not correct.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from .flips import Outcome


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model did with one example.

    score: what the kind decides by: probability of the right answer (cloze, classify), margin in nats of the right choice over
    the best wrong one (choice, pairs), mean nats per token (perplexity), token F1 (generate), truth ratio (truth), likeness to a member
    (membership), one of the numbers summed up (utility). logprob: nats of the right answer or of the window's text.
    """

    example: str
    answer: str
    correct: bool | None
    score: float | None
    logprob: float | None
    slice: str | None = None


def settled(row: Prediction) -> Prediction:
    """The row with every non-finite number turned into None; such an example counts as wrong."""
    score, logprob = _finite(row.score), _finite(row.logprob)
    broken = score is None or logprob is None
    correct = False if broken and row.correct is not None else row.correct
    return Prediction(row.example, row.answer, correct, score, logprob, row.slice)


def to_arrow(rows: Sequence[Prediction]) -> bytes:
    """The rows as an Arrow IPC file. Equal rows give equal bytes under one version of pyarrow."""
    import pyarrow as pa

    types = {"example": pa.string(), "answer": pa.string(), "correct": pa.bool_(), "score": pa.float64(), "logprob": pa.float64()}
    types["slice"] = pa.string()
    columns = {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in types.items()}
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_arrow(data: bytes) -> list[Prediction]:
    """The inverse of `to_arrow`."""
    import pyarrow as pa

    return [Prediction(**row) for row in pa.ipc.open_file(data).read_all().to_pylist()]


def veiled(rows: Iterable[Prediction], pseudonym: Callable[[bytes], str]) -> list[Prediction]:
    """The rows without any text: keyed digests stand for example, answer and slice; right and wrong and all scores stay.

    pseudonym: maps bytes to a digest under a key that is kept elsewhere. An answer's digest is bound to its example, so that equal
    answers of one example on two versions stay equal (churn is still counted) and equal answers of two examples do not show.
    """

    def veil(what: str, *parts: str) -> str:
        return pseudonym("\0".join((what, *parts)).encode("utf-8", "surrogatepass"))

    return [
        replace(
            row,
            example=veil("example", row.example),
            answer=veil("answer", row.example, row.answer) if row.answer else "",
            slice=None if row.slice is None else veil("slice", row.slice),
        )
        for row in rows
    ]


def outcomes(rows: Iterable[Prediction]) -> list[Outcome]:
    """The rows as `flips.compare` takes them."""
    return [Outcome(row.example, row.correct, row.answer, row.slice) for row in rows]


def accuracy(rows: Sequence[Prediction]) -> float | None:
    """Share of right answers; None for no rows."""
    return sum(row.correct is True for row in rows) / len(rows) if rows else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, or None when there is nothing to average or one value is missing: a hole must not look like a result."""
    values = list(values)
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
