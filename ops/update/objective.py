"""The loss of an update, in the order in which its parts are laid over each other:

1. next-token cross-entropy of every row; 2. weights of the rows (`weigh`); 3. on self-sampled rows the parent's whole distribution instead
of their text (`SelfTaught`); 4. further terms on the same logits (`terms`); 5. pulls on the weights (`protect.Anchored`, around all this).

A row sampled from the parent carries, at every position, one draw from a distribution that the parent can simply be asked for. Taking
KL(parent || model) there has the same expected gradient as cross-entropy on the draw, without its variance, for the price of a forward
pass of the parent on those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..engine.documents import logits_of
from ..engine.local import token_losses

if TYPE_CHECKING:
    from ..data.mixing import Batch

# Weight of the divergence. Measured on the 260 k model, 150 steps of `self:0.5` at 5e-4, new text / old text perplexity over the
# parent's: cross-entropy on the draws 0.298 / 1.143; divergence with weight 1: 0.287 / 1.128, 2: 0.296 / 1.090, 4: 0.311 / 1.064.
PULL = 2.0

# Mean loss of each row [n] fp32, no gradient -> weights [n] fp32 with mean 1 (so that equal weights change nothing).
Weigh = Callable[[Tensor], Tensor]
# (module, batch, logits [B, T, vocabulary]) -> a scalar in nats per token, added to the loss.
Term = Callable[[nn.Module, "Batch", Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class SelfTaught:
    """On the rows of source number `source` the loss is PULL times KL to `parent`."""

    parent: Any
    source: int


class UpdateLoss:
    """Cross-entropy on the rows of text, the parent's distributions on the rows it sampled, and what is added to that.

    begins: by number of a source the id that begins each of its documents, which are read apart (`engine/documents.py`).
    """

    def __init__(
        self,
        *,
        taught: SelfTaught | None = None,
        weigh: Weigh | None = None,
        terms: Sequence[Term] = (),
        begins: Mapping[int, int] | None = None,
    ) -> None:
        self.taught, self.weigh, self.terms, self.begins = taught, weigh, tuple(terms), dict(begins or {})
        if taught is not None:
            taught.parent.eval().requires_grad_(False)

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Mean over all predicted tokens of the batch, in nats."""
        logits = logits_of(module, batch.ids, [self.begins.get(source) for source in batch.source])
        source = self.taught.source if self.taught is not None else -1
        own = [i for i, s in enumerate(batch.source) if s == source]
        text = [i for i, s in enumerate(batch.source) if s != source]
        total = logits.new_zeros((), dtype=torch.float32)
        if text:
            losses = token_losses(logits[text], batch.ids[text])
            if self.weigh is not None:
                losses = losses * self.weigh(losses.detach().mean(1))[:, None]
            total = total + losses.sum()
        if own and self.taught is not None:
            with torch.no_grad():
                wanted = self.taught.parent(input_ids=batch.ids[own], use_cache=False).logits[:, :-1].float().log_softmax(-1)
            total = total + PULL * divergence(wanted, logits[own][:, :-1].float().log_softmax(-1))
        total = total / (batch.ids.shape[0] * (batch.ids.shape[1] - 1))
        for term in self.terms:
            total = total + term(module, batch, logits)
        return total


def divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """Sum over positions of KL(wanted || got) from log-probabilities [..., vocabulary]."""
    return nn.functional.kl_div(got, wanted, reduction="sum", log_target=True)
