"""GradDiff: gradient ascent on the forget set beside descent on the retain set (Maini et al., TOFU, 2401.06121).

    L_forget = -(token-mean NLL on D_f)

Unbounded: it goes on pushing what is forgotten already, and takes the model with it when nobody stops it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from . import Likelihood, token_mean


class GradDiff(Likelihood):
    """Ascent. With D_f = D_r and w = 1 the whole gradient is zero."""

    def forget(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Minus the mean NLL."""
        return -token_mean(self.task, module, self.rows, chosen)
