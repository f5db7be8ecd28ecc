"""Path importance: how much each weight did for the loss on the way (SI, 1703.04200; HLE's record, 2501.13669).

    omega_i = sum_t -g_i,t dtheta_i,t ,   Omega_i = max(0, omega_i) / ((theta_end - theta_start)_i^2 + XI)

over a short tuning phase on old text, from the parent; gradients as they are, before any clipping. The phase is made on the module that
is handed in, and taken back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..engine.local import read_losses

if TYPE_CHECKING:
    from ..base import Run

PHASE = 24  # steps of the tuning phase
ROWS = 8  # of old text in each
RATE = 1e-4
XI = 1e-7  # Avalanche's


def path_importance(
    module: nn.Module,
    old: Tensor,
    run: Run | None = None,
    begin: int | None = None,
    *,
    steps: int = PHASE,
    rate: float = RATE,
    sgd: bool = False,
) -> dict[str, Tensor]:
    """Omega of every parameter, fp32, from rows int64 [n, seq_len]; parameters, flags and modes are as before afterwards.

    begin: as in `engine.local.read_losses`.
    """
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    worth, moved = walked(module, old, run, begin, steps=steps, rate=rate, sgd=sgd)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
    return {n: worth[n].clamp(min=0) / (moved[n].square() + XI) for n in worth}


def walked(
    module: nn.Module, old: Tensor, run: Run | None, begin: int | None = None, *, steps: int, rate: float, sgd: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(omega, theta_end - theta_start) of the phase, which stays in the module. With plain SGD the sum of omega is the drop in loss."""
    flags = {n: p.requires_grad for n, p in module.named_parameters()}
    module.eval().requires_grad_(True)
    parameters = dict(module.named_parameters())
    first = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer: torch.optim.Optimizer
    optimizer = torch.optim.SGD(parameters.values(), lr=rate) if sgd else torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    worth = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    where = next(iter(parameters.values())).device
    for step in range(steps):
        ids = old[[(step * ROWS + i) % len(old) for i in range(ROWS)]].to(where)
        optimizer.zero_grad(set_to_none=True)
        read_losses(module, ids, begin).mean().backward()
        before = {n: p.detach().clone() for n, p in parameters.items()}
        optimizer.step()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                worth[name] -= parameter.grad * (parameter.detach() - before[name])
        if run is not None:
            run.progress("path importance", step + 1, steps)
    optimizer.zero_grad(set_to_none=True)
    for name, parameter in parameters.items():
        parameter.requires_grad_(flags[name])
    return worth, {n: p.detach() - first[n] for n, p in parameters.items()}
