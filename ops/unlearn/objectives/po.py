"""PO: learn a refusal in place of the answer (Maini et al., TOFU, 2401.06121, as "IDK").

    L_forget = token-mean NLL of the refusal given the forget prompts

The old answer is covered, not pushed: expect it to come back easily under relearning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ....registry.errors import Incompatible
from ..language import LanguageTask
from . import Likelihood, token_mean

if TYPE_CHECKING:
    from ..context import Context


class PO(Likelihood):
    """Every forget prompt, answered with the refusal."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx)
        if not isinstance(ctx.task, LanguageTask):
            raise Incompatible("the objective po answers with text, and this model is a classifier", hint="--objective npo")
        for item in ctx.forget.items.items:
            if item.kind != "pair":
                raise ctx.forget.items.bad(item.line, "the objective po needs a prompt to refuse", "--objective npo")
        self.refusals = ctx.task.with_answers(ctx.forget.items, ctx.op.refusal)

    def forget(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """NLL of the refusal; row i of the forget set is row i of the refusals, since pairs are one row each."""
        return token_mean(self.task, module, self.refusals, chosen)
