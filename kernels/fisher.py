"""The diagonal Fisher information of a linear map: the sum over samples of the squared gradient of each sample.

With inputs x_b [T, in] and gradients of the outputs delta_b [T, out], sample b's gradient of the weight is delta_b^T x_b. The sum over
positions has to be squared after summing, so it cannot be one product; but one sample's gradient is needed for a moment only, and in parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import accelerated

WORK = 1 << 18  # elements of the working buffer: a megabyte of float32, which stays in a core's cache


@accelerated("fisher")
def fisher_diag(x: Tensor, delta: Tensor, absolute: bool = False) -> Tensor:
    """Sum over samples b of (delta_b^T x_b)^2, elementwise; of |delta_b^T x_b| when `absolute`.

    Args: x `[B, T, in]` and delta `[B, T, out]`, any floating types. Returns float32 `[out, in]`; products and sums are float32's, in
    chunks of WORK elements, so no more than that is held beside the result. Roads agree to 1e-5 of the greatest element (sums over T
    and B run in another order). Raises ValueError when the shapes do not fit.
    """
    check_pair(x, delta)
    total = torch.zeros(delta.shape[2], x.shape[2], dtype=torch.float32, device=x.device)
    if x.shape[1] == 1:  # one position: the square of a product is the product of squares, and all samples are one matrix product
        a, b = delta[:, 0].float(), x[:, 0].float()
        return torch.mm(a.abs().t(), b.abs(), out=total) if absolute else torch.mm(a.square().t(), b.square(), out=total)
    if not total.numel() or not x.shape[0] or not x.shape[1]:
        return total
    rows = max(1, min(len(total), WORK // total.shape[1]))
    buffer = torch.empty(rows, total.shape[1], dtype=torch.float32, device=x.device)
    for start in range(0, len(total), rows):
        part = total[start : start + rows]
        gradient = buffer[: len(part)]
        for inputs, outputs in zip(x, delta[:, :, start : start + rows], strict=True):
            torch.mm(outputs.t().float(), inputs.float(), out=gradient)
            if absolute:
                part.add_(gradient.abs_())
            else:
                part.addcmul_(gradient, gradient)
    return total


def check_pair(x: Tensor, delta: Tensor) -> None:
    """Raise ValueError unless x is `[B, T, in]` and delta `[B, T, out]`, both of floats."""
    if x.dim() != 3 or delta.dim() != 3 or x.shape[:2] != delta.shape[:2]:
        raise ValueError(f"inputs [B, T, in] and gradients [B, T, out] are needed, not {list(x.shape)} and {list(delta.shape)}")
    if not x.is_floating_point() or not delta.is_floating_point():
        raise ValueError(f"inputs and gradients are floats, not {x.dtype} and {delta.dtype}")
