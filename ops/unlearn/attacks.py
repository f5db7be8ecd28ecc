"""Attacks on an unlearned model: is what was forgotten only hidden? A short fine-tuning, and coarser weights, may bring it back.

Both work on a copy and are deterministic. Relearning (Hu et al., 2024, arXiv 2406.13356) trains on a share of the forget set and asks for
the rest as well. The quantisation round trip (Zhang et al., 2024, arXiv 2410.16454) rounds to a grid; the papers' 4 bits are NF4, a grid
with uneven steps, where ours has even ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...registry.records import Json
from .context import pick
from .rates import usual_rate
from .task import Rows, Task

BATCH = 16  # forget rows per step
MEASURED = 8  # times that recall is looked at on the way
RECOVERED = 0.8  # share of the former recall that counts as brought back
GROUP = 32  # weights that share one scale at 4 bits


def relearn(
    module: nn.Module,
    task: Task,
    rows: Rows,
    *,
    steps: int = 20,
    share: float = 0.1,
    seed: int = 0,
    lr: float | None = None,
    threads: int | None = None,
    before: float | None = None,
) -> dict[str, Json]:
    """Fine-tune a copy on a share of the forget records, with AdamW at a constant rate, and watch recall come back.

    rows: the forget set's. share: of its records, at least one, drawn by `seed`. lr: by default the rate that unlearning itself would
    take for a model of this size; an attack weaker than what it attacks shows nothing. before: recall of the model that had not forgotten.
    Returns `curve` and `rest_curve`: [step, recall] on all records and on those not trained on (recall is Measured.accuracy);
    `area`: mean of the curve over the steps; `after`, `rest_after`: where they end; `recovered`: the first measured step with at
    least 0.8 of `before`, None when it never came or `before` is not given; `records`: how many were trained on.
    """
    drawn, rest = _drawn(rows, share, seed)
    victim = copy.deepcopy(module).eval()  # eval: dropout would make the attack a matter of luck
    for parameter in victim.parameters():
        parameter.requires_grad_(True)
    lr = lr if lr is not None else usual_rate(sum(p.numel() for p in victim.parameters()))
    optimizer = torch.optim.AdamW([p for p in victim.parameters() if p.is_floating_point()], lr=lr, weight_decay=0.0)
    every = max(1, steps // MEASURED)
    remaining = pick(rows, rest)
    curve, rest_curve = [], []
    with _threads(threads):
        for step, chosen in enumerate([[], *_batches(drawn, steps, seed)]):
            if chosen:
                optimizer.zero_grad(set_to_none=True)
                task.losses(victim, rows, chosen).mean().backward()
                nn.utils.clip_grad_norm_(victim.parameters(), 1.0)
                optimizer.step()
            if step % every == 0 or step == steps:
                curve.append((step, _recall(task, victim, rows)))
                rest_curve.append((step, _recall(task, victim, remaining) if rest else None))
    needed = None if before is None else RECOVERED * before
    return {
        "steps": steps,
        "records": len({rows.owner[i] for i in drawn}),
        "lr": lr,
        "curve": [list(point) for point in curve],
        "rest_curve": [list(point) for point in rest_curve],
        "area": _area(curve),
        "after": curve[-1][1],
        "rest_after": rest_curve[-1][1],
        "recovered": next((step for step, recall in curve if needed is not None and recall >= needed), None),
    }


def resistance(unlearned: dict[str, Json], reference: dict[str, Json]) -> float:
    """Steps that an unlearned model needed over those of a model retrained without the data, at most 1; below 0.8 something was left.

    Both are answers of `relearn` with the same settings; who never recovered counts as one step more than were made.
    """
    spent = [1 + (found["steps"] if found["recovered"] is None else found["recovered"]) for found in (unlearned, reference)]  # type: ignore[operator]
    return min(1.0, spent[0] / spent[1])


def quantisation_attack(module: nn.Module, task: Task, rows: Rows, *, bits: Sequence[int] = (8, 4)) -> dict[str, float]:
    """Recall after each round trip: `{"int8": ..., "int4": ...}`. Much above what it was before: the weights only hide what they hold."""
    return {f"int{n}": _recall(task, quantised(module, n), rows) for n in bits}


def quantised(module: nn.Module, bits: int = 8) -> nn.Module:
    """A copy whose weight matrices went to whole numbers of `bits` bits and back; embeddings and the output head stay.

    8 bits: one scale per output row. Fewer: one per GROUP neighbours of a row. Convolutions count as matrices [out, everything else].
    """
    from transformers.pytorch_utils import Conv1D

    result = copy.deepcopy(module)
    head = getattr(result, "get_output_embeddings", lambda: None)()
    kept = {id(part.weight) for part in result.modules() if isinstance(part, nn.Embedding) or part is head}
    with torch.no_grad():
        for part in result.modules():
            weight = getattr(part, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.dim() < 2 or id(weight) in kept:
                continue
            turned = isinstance(part, Conv1D)  # GPT-2 keeps its matrices as [in, out]
            matrix = (weight.T if turned else weight).reshape(weight.shape[-1] if turned else weight.shape[0], -1)
            rounded = round_trip(matrix, bits, None if bits >= 8 else GROUP)
            weight.copy_(rounded.T if turned else rounded.reshape(weight.shape))
            kept.add(id(weight))  # tied weights once
    return result


def round_trip(matrix: Tensor, bits: int, group: int | None = None) -> Tensor:
    """[out, in] rounded to the nearest of the 2^bits - 1 steps of a symmetric grid and back, in the matrix's dtype.

    group: neighbours in a row that share a scale, the last group may be shorter; None: the whole row. A group of zeros stays zero.
    """
    levels = 2 ** (bits - 1) - 1
    parts = matrix.float().split(group or max(1, matrix.shape[1]), dim=1)
    return torch.cat([_on_grid(part, levels) for part in parts], dim=1).to(matrix.dtype)


def _on_grid(part: Tensor, levels: int) -> Tensor:
    scale = part.abs().amax(dim=1, keepdim=True) / levels
    return torch.where(scale > 0, (part / scale).round() * scale, part)


def _recall(task: Task, module: nn.Module, rows: Rows) -> float:
    return task.measure(module, rows).accuracy or 0.0


def _drawn(rows: Rows, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows of the records to train on, and of the others."""
    records = sorted(set(rows.owner))
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    taken = {records[i] for i in order[: max(1, round(share * len(records)))]}
    everything = range(len(rows))
    return [i for i in everything if rows.owner[i] in taken], [i for i in everything if rows.owner[i] not in taken]


def _batches(drawn: Sequence[int], steps: int, seed: int) -> Iterator[list[int]]:
    """`steps` batches: all rows in a new order each time round."""
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for _ in range(steps):
        if not queue:
            queue = [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]
        yield queue[:BATCH]
        queue = queue[BATCH:]


def _area(curve: Sequence[tuple[int, float]]) -> float:
    """The mean height of the curve by the trapezoid rule."""
    if len(curve) < 2:
        return curve[0][1]
    pieces = pairwise(curve)
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pieces) / (curve[-1][0] - curve[0][0])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch on this many threads, and back; None leaves it."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)
