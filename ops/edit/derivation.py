"""How an edited matrix follows from the stored one: rank-1 terms in fixed order, the same function when writing and when restoring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...kernels.exact import add_rank1_terms
from ..base import SetTensor

if TYPE_CHECKING:
    from torch import Tensor

    from ...registry.view import ModelView


def edited(stored: Tensor, up: Tensor, down: Tensor, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(W', left, right): stored + left @ right in stored's type and layout.

    up [d1, u], down [u, d0], float32; stored [d1, d0], or [d0, d1] when transposed, where left and right change places.
    """
    left, right = (down.T.contiguous(), up.T.contiguous()) if transposed else (up, down)
    return add_rank1_terms(stored, left, right), left, right


def change(view: ModelView, name: str, data: Tensor, left: Tensor, right: Tensor) -> SetTensor:
    """The changed tensor together with what it follows from."""
    return SetTensor(name, data, **_derived(view, name, left, right))


def _derived(view: ModelView, name: str, left: Tensor, right: Tensor) -> dict[str, Any]:
    from ...registry.delta.derived import Derived

    return {"derived": Derived("rank1", (view.entry(name).digest,), (1.0,), (left.cpu(), right.cpu()))}
