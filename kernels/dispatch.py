"""The door between a kernel's specification (its torch body) and an optional faster road (its Triton twin).

A function decorated with `@accelerated("name")` is its own reference. Its twin has the same name and signature in a
module of `kernels/_triton/`, which is imported only when a CUDA tensor arrives or when the twin is forced (tests
force it in Triton's interpreter, on tensors of the CPU). Both roads give the same bits.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, cast

import torch

Road = Literal["auto", "torch", "triton"]
P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

_ROAD: ContextVar[Road] = ContextVar("mlc_kernels_road", default="auto")


class Kernel(Protocol[P, R_co]):
    """A function with two roads; `reference` is the torch body itself."""

    reference: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


@contextmanager
def use_kernels(road: Road) -> Iterator[None]:
    """Choose the road inside the block: `torch` and `triton` force one, `auto` takes Triton for CUDA tensors."""
    if road not in ("auto", "torch", "triton"):
        raise ValueError(f"kernels can be auto, torch or triton, not {road!r}")
    token = _ROAD.set(road)
    try:
        yield
    finally:
        _ROAD.reset(token)


def accelerated(module: str) -> Callable[[Callable[P, R_co]], Kernel[P, R_co]]:
    """Offer the function of the same name in `kernels/_triton/<module>.py` as a faster road to the decorated one."""

    def decorate(reference: Callable[P, R_co]) -> Kernel[P, R_co]:
        name = reference.__name__

        @functools.wraps(reference)
        def kernel(*args: P.args, **kwargs: P.kwargs) -> R_co:
            if not _wants_triton(args):
                return reference(*args, **kwargs)
            twin = importlib.import_module(f"._triton.{module}", __package__)
            return getattr(twin, name)(*args, **kwargs)

        kernel.reference = reference  # type: ignore[attr-defined]
        return cast("Kernel[P, R_co]", kernel)

    return decorate


def _wants_triton(args: tuple[object, ...]) -> bool:
    road = _ROAD.get()
    if road == "auto":
        return any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args)
    return road == "triton"
