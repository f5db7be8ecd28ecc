"""The losses that hold a version to an older one's stored answers.

    focal-kl      tau^2 KL(p_old || p_new), weighted alpha + beta where the old version is right        (PCT, 2011.09161)
    focal-logits  1/2 |z_new - z_old|^2, weighted alike; where only the likeliest tokens are kept, half the mean square of what is
                  left after the common offset is taken off (a softmax does not see it)
    kd            tau^2 KL(p_old || p_new), everywhere alike
    muscle-*      KL(p_old || p) where the choice of the student (-student) or of the new teacher (-new) is wrong,
                  KL(p_new || p) where it is right                                                     (MUSCLE, 2407.09435)

The first three come with the cross-entropy of the labels. Means are taken over an answer's tokens and then over records, so that a long
text does not drown short answers. All is added to the mean loss of the new text: how many anchors a step has decides how steady their
part is, and lambda how much it weighs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...kernels.logit_flips import divergence
from .anchors import Anchors
from .options import Settings
from .teacher import Teacher, Told

if TYPE_CHECKING:
    from ..data.mixing import Batch
    from ..engine import Objective


class Compatible:
    """The loss of a step: `text` on the rows that are text, plus the compatibility loss on those that stand for anchors."""

    def __init__(
        self, settings: Settings, anchors: Anchors, old: Teacher, new: Teacher | None, source: int, text: Objective | None
    ) -> None:
        self.s, self.anchors, self.old, self.new, self.source, self.text = settings, anchors, old, new, source, text
        self.whole = anchors.kind != "language"

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """batch: rows of the source number `source` hold the number of an anchor in their first place."""
        mine = [n for n, source in enumerate(batch.source) if source == self.source]
        others = [n for n, source in enumerate(batch.source) if source != self.source]
        total = torch.zeros((), device=batch.ids.device)
        if others and self.text is not None:
            rest = type(batch)(batch.ids[others], tuple(batch.source[n] for n in others))
            total = total + self.text(module, rest)
        if mine:
            total = total + self.loss(module, batch.ids[mine, 0].tolist())
        return total

    def loss(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Mean over the chosen anchors."""
        logits, owners, targets = self.anchors.answers(module, chosen)
        old = self.old.at(chosen, logits.device)
        if self.s.muscle:
            assert self.new is not None
            new = self.new.at(chosen, logits.device)
            wrong = logits.detach().argmax(-1) != targets if self.s.method == "muscle-student" else ~new.hit
            values = torch.where(wrong, self._kl(logits, old), self._kl(logits, new))
            return self.s.weight * _mean(values, owners, len(chosen), torch.where(wrong, old.known, new.known))
        labels = nn.functional.cross_entropy(logits, targets, reduction="none")
        weights = self.s.alpha + (0.0 if self.s.plain else self.s.beta) * old.right.float()
        apart = self._logits(logits, old) if self.s.method == "focal-logits" else self._kl(logits, old)
        kept = _mean(weights * apart, owners, len(chosen), old.known)
        return self.s.labels * _mean(labels, owners, len(chosen), torch.ones_like(old.known)) + self.s.weight * kept

    def _kl(self, logits: Tensor, told: Told) -> Tensor:
        """tau^2 KL(told || logits) per decision."""
        tau = self.s.tau
        return tau * tau * divergence(*cells(logits, told, tau, whole=self.whole))

    def _logits(self, logits: Tensor, told: Told) -> Tensor:
        """Half the squared distance of logits per decision; the divergence where an answer is spelled otherwise."""
        apart = logits.gather(1, told.ids) - told.logits
        finite = apart.isfinite()
        apart = apart.masked_fill(~finite, 0.0)
        if self.whole:
            return 0.5 * apart.square().sum(-1)
        count = finite.sum(-1, keepdim=True).clamp_min(1)
        apart = (apart - apart.sum(-1, keepdim=True) / count).masked_fill(~finite, 0.0)
        near = 0.5 * apart.square().sum(-1) / count[:, 0]
        return torch.where(told.spelled, near, self._kl(logits, told))


def cells(logits: Tensor, told: Told, tau: float, *, whole: bool) -> tuple[Tensor, Tensor]:
    """(teacher's, student's) log-probabilities over the kept cells and the mass of all others as a last one.

    whole: there are no others (classes, of which all are kept). A student with more classes than its teacher is compared on the teacher's.
    """
    theirs = told.logits / tau - told.total[:, None]
    top = logits.gather(1, told.ids) / tau
    if whole or told.ids.shape[1] == logits.shape[1]:
        return theirs, top.log_softmax(-1)
    total = (logits / tau).logsumexp(-1, keepdim=True)
    rest = (logits.scatter(1, told.ids, -torch.inf) / tau).logsumexp(-1, keepdim=True)
    return torch.cat([theirs, told.rest[:, None]], dim=1), torch.cat([top, rest], dim=1) - total


def _mean(values: Tensor, owners: Tensor, records: int, known: Tensor) -> Tensor:
    """The mean over records of the mean over each one's known decisions; records without any count as 0."""
    share = known.float()
    counts = share.new_zeros(records).index_add(0, owners, share)
    sums = values.new_zeros(records).index_add(0, owners, torch.where(known, values, 0.0))
    return (sums / counts.clamp_min(1)).mean()
