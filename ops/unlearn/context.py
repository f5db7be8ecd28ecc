"""What a method of unlearning is given: the model, the rows, the run. The session makes it, methods only read it.

The agreement: every method is one file with `apply(ctx: Context) -> dict[str, Tensor]`. It returns the new value of every parameter that
it changed, by the module's parameter name (as `named_parameters` spells it, tied parameters once), in the parameter's shape and in fp32;
the session compares with what is stored, converts, counts and yields the changes. A method may write into `ctx.module` while it searches
but must return all that it wants kept; it writes into `ctx.facts` what the commit shall say about it (strength used, selected weights,
search log, thresholds): numbers and texts that JSON can hold, never a text of a record, never a duration. `apply` raises CheckFailed when
there is nothing that it can honestly do. Gradients and measures come from `ctx.task`; all of it runs under the run's thread count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..data.items import ItemSet
from .task import Measured, Rows, Task

if TYPE_CHECKING:
    from ...registry.records import Json
    from ...registry.view import ModelView
    from ..base import Run
    from .unlearn import Unlearn


@dataclass(frozen=True, slots=True)
class Part:
    """One set of records: as read, and as rows."""

    items: ItemSet
    rows: Rows

    @property
    def everything(self) -> range:
        """All row numbers."""
        return range(len(self.rows))


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a method may read, and the one place where it may write."""

    op: Unlearn
    view: ModelView
    run: Run
    task: Task
    module: nn.Module  # fp32, eval mode, on the engine's device; parameters require gradients
    names: dict[str, str]  # parameter name in the module -> name of the stored tensor (the first, for tied ones)
    forget: Part
    retain: Part | None  # None: none was given, or only its digest (then `retain_digest` names the stored importance)
    holdout: Part | None
    retain_digest: str | None  # plain BLAKE3 of the retain set: half of the key of its stored importance
    facts: dict[str, Json] = field(default_factory=dict)  # recorded in the commit's check

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The floating parameters by name, tied ones once."""
        return {name: p for name, p in self.module.named_parameters() if name in self.names}

    def measure(self, part: Part, module: nn.Module | None = None, chosen: Sequence[int] | None = None) -> Measured:
        """How the module (or another of the same build) does on a part, or on some of its rows."""
        return self.task.measure(module or self.module, part.rows if chosen is None else pick(part.rows, chosen))

    def originals(self) -> dict[str, Tensor]:
        """A copy of every parameter as it is now."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}


def pick(rows: Rows, chosen: Sequence[int]) -> Rows:
    """The chosen rows, in that order."""

    def some(values: tuple) -> tuple:
        return tuple(values[i] for i in chosen)

    return Rows(some(rows.lengths), some(rows.scored), some(rows.owner), some(rows.pairs), some(rows.inputs))
