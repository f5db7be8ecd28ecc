"""Which rows of a corpus serve a target best (TAROT, Yang et al., 2412.00420, ICML 2025): nearest in whitened gradients.

A row is described by the gradient of its own loss, projected at random: for a linear map with inputs x and output gradients d it is d^T x,
and (d P)^T (x Q) is a projection of that without ever multiplying it out; the projections of all maps are added. Rows and targets are
centred and whitened together (S = X^T X / N + 1e-5 I = L L^T, X L^-T) and laid on the unit sphere. Then, for k = 1, 2, ..., every target's
k-th nearest row is taken until there are enough; of the last k the nearest ones (the authors trim these by transport duals instead, and
average several checkpoints: here there is one).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 8  # a gradient becomes SIDE x SIDE numbers
RIDGE = 1e-5
BATCH = 16


def features(module: Any, rows: Tensor, seed: int, told: Callable[[int], None] | None = None, begin: int | None = None) -> Tensor:
    """fp32 [n, SIDE^2]: the projected gradient of each row's mean next-token loss; rows int64 [n, seq_len]. `module` stays as it was.

    begin: as in `engine.local.read_losses`.
    """
    from ..engine.local import read_losses

    where = next(module.parameters()).device
    with _watched(module, seed) as (linear, project):
        found = []
        for part in rows.split(BATCH):
            linear.clear()
            ids = part.to(where)
            with torch.enable_grad():
                total = read_losses(module, ids, begin).mean(1).sum()
                deltas = torch.autograd.grad(total, [out for _, _, out in linear])
            sums = torch.zeros(len(part), SIDE, SIDE, device=where)
            for (name, x, out), delta in zip(linear, deltas, strict=True):
                left, right = project(name, out.shape[-1], x.shape[-1], where)
                sums += torch.bmm((delta.float() @ left).transpose(1, 2), x.detach().float() @ right)
            found.append(sums.flatten(1).cpu())
            if told is not None:
                told(sum(map(len, found)))
    return torch.cat(found)


@contextmanager
def _watched(module: Any, seed: int) -> Iterator[tuple[list[tuple[str, Tensor, Tensor]], Any]]:
    """Every linear map inside the blocks leaves (name, inputs, outputs); the second value makes its two projections."""
    linear: list[tuple[str, Tensor, Tensor]] = []
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def project(name: str, out: int, into: int, where: torch.device) -> tuple[Tensor, Tensor]:
        if name not in kept:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + len(kept))
            sides = [torch.randn(size, SIDE, generator=generator) / SIDE**0.5 for size in (out, into)]
            kept[name] = (sides[0].to(where), sides[1].to(where))
        return kept[name]

    head = module.get_output_embeddings()
    maps = [(n, m) for n, m in module.named_modules() if m is not head and (type(m) is nn.Linear or type(m).__name__ == "Conv1D")]
    hooks = [m.register_forward_hook(lambda _m, args, out, n=n: linear.append((n, args[0], out))) for n, m in maps]
    flags, training = [(p, p.requires_grad) for p in module.parameters()], module.training
    module.eval().requires_grad_(True)
    try:
        yield linear, project
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        module.train(training)


def whitened(rows: Tensor) -> Tensor:
    """fp64 [n, p]: centred, covariance I up to the ridge."""
    x = rows.double() - rows.double().mean(0)
    scale = x.square().mean().sqrt().clamp_min(1e-300)  # the ridge is meant for features of the order of one
    x = x / scale
    lower = torch.linalg.cholesky(x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=torch.float64))
    return torch.linalg.solve_triangular(lower, x.T, upper=False).T


def distances(candidates: Tensor, targets: Tensor) -> Tensor:
    """fp64 [targets, candidates]: sqrt(|2 - 2 cos|) of features whitened together."""
    both = nn.functional.normalize(whitened(torch.cat([candidates, targets])), dim=1)
    return (2 - 2 * both[len(candidates) :] @ both[: len(candidates)].T).abs().sqrt()


def nearest_fill(distance: Tensor, count: int) -> list[int]:
    """`count` of the candidates, in ascending order: every target's nearest, then every target's second nearest, and so on."""
    near = distance.sort(dim=1, stable=True)
    chosen: dict[int, None] = {}
    for k in range(distance.shape[1]):
        layer = sorted(zip(near.values[:, k].tolist(), near.indices[:, k].tolist(), strict=True))
        for _, candidate in layer:
            if len(chosen) == count:
                return sorted(chosen)
            chosen.setdefault(candidate)
    return sorted(chosen)
