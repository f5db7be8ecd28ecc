"""From a row of the table to the function that computes it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import means, spheres
from .case import Case
from .table import Method
from .task_vectors import merge_task_vectors

FORMULAS: dict[str, Callable[[Case], Tensor]] = {
    "linear": means.linear,
    "sparse_soup": means.sparse_soup,
    "model_stock": means.model_stock,
    "sce": means.sce,
    "nearswap": means.nearswap,
    "passthrough": means.passthrough,
    "slerp": spheres.slerp,
    "nuslerp": spheres.nuslerp,
    "multislerp": spheres.multislerp,
    "karcher": spheres.karcher,
}


def merge_tensor(method: Method, case: Case) -> Tensor:
    """The merged tensor: float32, or the type of the inputs, as the formula yields it. Raises ValueError where it is not defined."""
    return merge_task_vectors(case, method) if method.formula == "task" else FORMULAS[method.formula](case)
