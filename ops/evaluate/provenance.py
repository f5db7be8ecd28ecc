"""Does a model descend from a recorded training run? The order of the run, read back from likelihoods (palimpsestic test).

What was read late is remembered better than what was read early. Rows were shuffled, so in a model that did not read them in this order
loss and order have nothing to do with each other, whatever the text: Spearman's rho between the step in which a row was read last and
nll(suspect) - nll(reference) is then that of a random order, and p is exact by permutation. A descendant has a negative rho. The reference
only takes out how hard each row is; it must not have read the rows in this order (Kuditipudi et al., 2510.19796).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile, BadParameter, CheckFailed, Incompatible
from .exact_tests import student_two_sided

if TYPE_CHECKING:
    from torch import Tensor

    from ...registry.view import ModelView
    from ..data.stream import Stream
    from ..update.train import Update

LEAST = 20  # rows: fewer tell nothing
PARTS = 10  # of the run, in the table
TOGETHER = 1 << 22  # numbers that are shuffled at a time
BATCH = 16  # rows per forward


@dataclass(frozen=True, slots=True)
class Order:
    """The test. `p`: one-sided, by Student's t; `p_permutation`: by `permutations` random orders, at least 1 / (permutations + 1)."""

    rows: int
    rho: float
    p: float
    p_permutation: float
    permutations: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


def order_test(steps: Sequence[float], differences: Sequence[float], *, permutations: int = 9999, seed: int = 0) -> Order:
    """Whether `differences` (nll of the suspect less that of the reference) fall with `steps`. Ties share their mean rank.

    Where one of both is constant nothing can be told: rho 0, p 1. Raises BadParameter for fewer than LEAST rows.
    """
    n = len(steps)
    if n != len(differences) or n < LEAST:
        raise BadParameter(f"{n} rows are too few to tell an order: at least {LEAST} are needed", hint="train on more rows in shorter ones")
    x, y = ranks(steps), ranks(differences)
    rho = correlation(x, y)
    if rho is None:
        return Order(n, 0.0, 1.0, 1.0, permutations)
    return Order(n, rho, lower_tail(rho, n), _permuted(x, y, permutations, seed), permutations)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 on; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            found[place] = (start + end) / 2 + 1
        start = end + 1
    return found


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation (of ranks: Spearman's rho); None where one side is constant."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    a, b = [v - mean_x for v in x], [v - mean_y for v in y]
    size = math.sqrt(math.fsum(v * v for v in a) * math.fsum(v * v for v in b))
    return max(-1.0, min(1.0, math.fsum(p * q for p, q in zip(a, b, strict=True)) / size)) if size else None


def lower_tail(rho: float, n: int) -> float:
    """P(correlation of n random pairs <= rho) by t = rho sqrt((n - 2) / (1 - rho^2)), Student with n - 2 degrees of freedom."""
    if abs(rho) >= 1:
        return 0.0 if rho < 0 else 1.0
    half = student_two_sided(rho * math.sqrt((n - 2) / (1 - rho * rho)), n - 2) / 2
    return half if rho < 0 else 1.0 - half


def _permuted(x: Sequence[float], y: Sequence[float], permutations: int, seed: int) -> float:
    """(1 + random orders whose correlation is at most that of the data) / (permutations + 1)."""
    import torch

    a, b = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    generator = torch.Generator().manual_seed(seed)
    bound, below = float(a @ b) + 1e-9 * float(a.norm() * b.norm()), 0
    most = max(1, TOGETHER // len(x))
    for start in range(0, permutations, most):
        orders = torch.rand(min(most, permutations - start), len(x), generator=generator).argsort(1)
        below += int((b[orders] @ a <= bound).sum())
    return (1 + below) / (permutations + 1)


def course(steps: Sequence[int], differences: Sequence[float]) -> list[dict[str, Any]]:
    """The run in PARTS of equally many rows, in its order: first and last step (counted from 1), rows, mean difference in nats."""
    pairs = sorted(zip(steps, differences, strict=True))
    found = []
    for part in range(min(PARTS, len(pairs))):
        own = pairs[part * len(pairs) // PARTS : (part + 1) * len(pairs) // PARTS]
        if own:
            mean = math.fsum(d for _, d in own) / len(own)
            found.append({"first_step": own[0][0] + 1, "last_step": own[-1][0] + 1, "rows": len(own), "difference": mean})
    return found


# --- rows and losses -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trained:
    """Rows of one corpus that a run read, int64 [n, seq_len], and the step (from 0) in which each was read last."""

    rows: Tensor
    steps: tuple[int, ...]
    times: int  # how often a row was read at most
    begin: int | None = None  # the id that begins each document, where the run read documents apart (`engine/documents.py`)


def trained_rows(op: Update, view: ModelView, stream: Stream, path: str, limit: int | None = None) -> Trained:
    """What the run behind `stream` read of the file `path`; `op` and `view`: the update, and the version that it began with.

    At most `limit` rows, evenly spaced over the run. Raises BadInputFile when the file is not one that was trained on, CheckFailed when
    its rows are others than those that were, BadParameter for too few.
    """
    import torch

    from ..data import Marks, pack, read_corpus
    from ..data.duplicates import read_thinned
    from ..data.stream import rows_digest
    from ..models import load_core_tokenizer, special_tokens

    digest = read_corpus(path).record.digest
    number = next((n for n, source in enumerate(stream.sources) if source.corpus == digest), None)
    if number is None:
        known = ", ".join(sorted(s.corpus[:12] for s in stream.sources if s.corpus)) or "none"
        raise BadInputFile(f"{path} (digest {digest[:12]}) was not read by that run", hint=f"it read files of digest {known}", path=path)
    told, core = stream.sources[number], load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    if told.name.startswith("replay"):
        packed = pack(read_corpus(path), core, marks, stream.seq_len, holdout=op.holdout or 0.05)
    else:
        packed = pack(read_thinned(path, op.dedup), core, marks, stream.seq_len, holdout=op.holdout, least=op.batch)
    rows = packed.train
    if not told.chosen and rows_digest(rows) != told.digest:
        raise CheckFailed(f"the rows made of {path} are not those that the run read", hint="tokenizer or row making has changed since")
    seen = sorted(stream.last_seen(number).items(), key=lambda pair: (pair[1], pair[0]))
    if limit is not None and len(seen) > limit:
        seen = [seen[i * len(seen) // limit] for i in range(limit)]
    if len(seen) < LEAST:
        raise BadParameter(f"the run read {len(seen)} rows of {path}: at least {LEAST} are needed", hint="a run of more steps")
    return Trained(rows[torch.tensor([row for row, _ in seen])], tuple(step for _, step in seen), stream.times_seen(number), packed.begin)


def require_same_tokenizer(view: ModelView, other: ModelView, name: str) -> None:
    """Raise Incompatible when `other` reads text otherwise than `view`."""
    if view.file("tokenizer.json") != other.file("tokenizer.json"):
        raise Incompatible(
            f"{name} has another tokenizer: its losses on these rows would say nothing", hint="compare versions of one lineage"
        )


def row_losses(view: ModelView, rows: Tensor, told: Callable[[int], None] | None = None, begin: int | None = None) -> list[float]:
    """Mean next-token loss of each row in nats, fp32 forward, sums in fp64. Raises CheckFailed where it is no number.

    begin: the id that begins each document: documents are read apart, as training reads them, by models that can.
    """
    import torch

    from ..engine.documents import reads_apart
    from ..engine.local import placed, read_losses
    from ..models import load_model

    module: Any = placed(load_model(view, dtype=torch.float32)).eval()
    where = next(module.parameters()).device
    found: list[float] = []
    apart = begin if begin is not None and reads_apart(module, begin) else None
    with torch.no_grad():
        for part in rows.split(BATCH):
            found += read_losses(module, part.to(where), apart).double().mean(1).tolist()
            if told is not None:
                told(len(found))
    if not all(map(math.isfinite, found)):
        raise CheckFailed("a loss is no number: nothing can be told from this version", hint="mlc diff shows which weights are none")
    return found
