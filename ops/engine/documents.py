"""Rows that hold several documents, read as if each of them stood alone: from position 0 on, seeing nothing of the others.

What stands beside a document in its row is chance, and it is never there when the model is asked. Where documents are short the
difference is whether they are learned: a model of a million parameters that read 480 changed facts in sentences of 16 tokens, eight to a
row, for 200 steps, could say 66 % of them when it was asked alone, and 97 % when the sentences were read apart (decision 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor, nn


def positions(ids: Tensor, begins: Sequence[int | None]) -> Tensor | None:
    """int64 [n, T]: the place of every token in its document, whose first token `begins` names by row (None: the row is one document).

    None where every row is one document: then nothing has to be said to a model.
    """
    marks = torch.tensor([-1 if begin is None else begin for begin in begins], device=ids.device)
    starts = ids == marks[:, None]
    if not starts[:, 1:].any():
        return None
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return places - torch.where(starts, places, 0).cummax(dim=1).values


def logits_of(module: nn.Module, ids: Tensor, begins: Sequence[int | None] = ()) -> Tensor:
    """Logits [n, T, V] of rows int64 [n, T]. `begins` as in `positions`; only for models that `read_apart`."""
    places = positions(ids, begins) if any(begin is not None for begin in begins) else None
    if places is None:
        return module(input_ids=ids, use_cache=False).logits
    return module(input_ids=ids, position_ids=places, use_cache=False).logits  # positions that begin anew part the row


@torch.no_grad()
def reads_apart(module: nn.Module, begin: int) -> bool:
    """Whether positions that begin anew part a row for this model: tried with two short documents, since architectures differ in this.

    A model that has no positions, or carries a state from token to token, reads on.
    """
    if "position_ids" not in signature(module.forward).parameters:
        return False
    x, y, z = (i for i in range(4) if i != begin) if begin < 4 else range(3)
    first, second = torch.tensor([begin, x, y, z]), torch.tensor([begin, z, x, y])
    where, training = next(module.parameters()).device, module.training
    module.eval()
    alone = logits_of(module, second[None].to(where)).float()
    beside = logits_of(module, torch.cat([first, second])[None].to(where), (begin,)).float()[:, len(first) :]
    module.train(training)
    return bool((alone - beside).abs().max() <= 1e-4 * alone.abs().max().clamp_min(1e-6))
