"""Two versions' logits side by side: who chooses what, how sure each is of the target, and how far apart they are.

The torch body below is the specification. It walks over the rows in parts, so that neither softmax is ever held whole; its twin walks
over the vocabulary once. The divergence can be differentiated (`divergence`): the gradient is made row part by row part as well.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import accelerated

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
WORK = 1 << 14  # elements of a working buffer (a row at least): 64 KiB, and a few of them at a time


class Flips(NamedTuple):
    """What is found for each row; all `[N]`."""

    best_old: Tensor  # int64: the old version's choice; of equals the lowest index
    best_new: Tensor  # int64
    kl: Tensor  # fp32: KL(old || new) in nats, both at the temperature asked for
    logprob_old: Tensor  # fp32: log-probability of the target, at temperature 1
    logprob_new: Tensor
    margin_old: Tensor  # fp32: the target's logit less the greatest other one; above 0: the target is chosen
    margin_new: Tensor

    @property
    def agree(self) -> Tensor:
        """bool: both versions choose the same."""
        return self.best_old == self.best_new


@accelerated("logit_flips")
def logit_flips(old: Tensor, new: Tensor, targets: Tensor, tau: float = 1.0) -> Flips:
    """Compare logits old and new `[N, V]` (fp32, fp16 or bf16; they may differ) given targets int64 `[N]`.

    KL = sum_i p_i (log p_i - log q_i), p = softmax(old / tau), q = softmax(new / tau); where p_i is 0 in fp32 the term is 0, and where
    only q_i is 0 it is infinite. -inf is a logit like others. A row without a finite one has no distribution: its numbers are NaN, as
    are those of a row with a NaN, whose choice may be any. With V = 1 margins are +inf. Computed in fp32; roads agree to 1e-5 (absolute,
    or of the value where that is larger). Raises ValueError when shapes, types or targets do not fit.
    """
    check(old, new, targets, tau)
    found = [torch.empty(len(old), dtype=torch.int64, device=old.device) for _ in range(2)]
    found += [torch.empty(len(old), dtype=torch.float32, device=old.device) for _ in range(5)]
    for part in parts(old):
        for place, value in zip(found, _rows(old[part], new[part], targets[part], tau), strict=True):
            place[part] = value
    return Flips(*found)


def _rows(old: Tensor, new: Tensor, targets: Tensor, tau: float) -> tuple[Tensor, ...]:
    x, y = old.float(), new.float()
    choices, margins = (x.argmax(-1), y.argmax(-1)), (_margin(x, targets), _margin(y, targets))
    p, q = x.log_softmax(-1), y.log_softmax(-1)
    surely = [z.gather(1, targets[:, None])[:, 0] for z in (p, q)]
    if tau != 1:
        p, q = (x / tau).log_softmax(-1), (y / tau).log_softmax(-1)
    apart = q.sub_(p).neg_()
    kl = apart.mul_(p.exp_()).masked_fill_(p == 0, 0.0).sum(-1)
    return *choices, kl, *surely, *margins


def _margin(z: Tensor, targets: Tensor) -> Tensor:
    """The targets' logits less the greatest other one."""
    others = z.scatter(1, targets[:, None], -math.inf).amax(-1)
    return z.gather(1, targets[:, None])[:, 0] - others


# --- the divergence, differentiable ------------------------------------------------------------------------


def divergence(old: Tensor, new: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(old / tau) || softmax(new / tau)) of every row, fp32 `[N]`; differentiable in both. See `logit_flips`."""
    return _Divergence.apply(old, new, tau)  # type: ignore[no-any-return]  # autograd's apply has no types


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, old: Tensor, new: Tensor, tau: float) -> Tensor:
        found = logit_flips(old, new, torch.zeros(len(old), dtype=torch.int64, device=old.device), tau)
        ctx.save_for_backward(old, new, found.kl)
        ctx.tau = tau
        return found.kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        old, new, kl = ctx.saved_tensors
        to_old, to_new, _ = ctx.needs_input_grad
        return (
            kl_gradient(old, new, kl, grads[0].float(), ctx.tau, True) if to_old else None,
            kl_gradient(old, new, kl, grads[0].float(), ctx.tau, False) if to_new else None,
            None,
        )


@accelerated("logit_flips")
def kl_gradient(old: Tensor, new: Tensor, kl: Tensor, scale: Tensor, tau: float, of_old: bool) -> Tensor:
    """scale times the gradient of each row's KL: in `new` (q - p) / tau, in `old` p (log p - log q - KL) / tau.

    Args: logits `[N, V]`, kl and scale fp32 `[N]`. Returns `[N, V]` in the type of the logits that are differentiated; in fp32 roads
    agree to 1e-5 of the scale.
    """
    out = torch.empty_like(old if of_old else new, memory_format=torch.contiguous_format)
    for part in parts(old):
        p, q = ((z[part].float() / tau).log_softmax(-1) for z in (old, new))
        if of_old:
            known = p == -math.inf
            value = p.exp() * (p.sub_(q).masked_fill_(known, 0.0) - kl[part, None])
        else:
            value = q.exp_().sub_(p.exp_())
        out[part] = value.mul_(scale[part, None] / tau)
    return out


# --- small parts -------------------------------------------------------------------------------------------


def parts(logits: Tensor) -> list[slice]:
    """Rows in parts of at most WORK elements, a row at least."""
    rows, width = logits.shape
    step = max(1, WORK // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def check(old: Tensor, new: Tensor, targets: Tensor, tau: float) -> None:
    """Raise ValueError unless the arguments fit each other."""
    if old.dim() != 2 or old.shape != new.shape or targets.shape != old.shape[:1] or not old.shape[1]:
        raise ValueError(f"logits [N, V] and targets [N] are needed, not {list(old.shape)}, {list(new.shape)}, {list(targets.shape)}")
    if old.dtype not in DTYPES or new.dtype not in DTYPES or targets.dtype != torch.int64:
        raise ValueError(f"logits are float32, float16 or bfloat16 and targets int64, not {old.dtype}, {new.dtype}, {targets.dtype}")
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"a temperature is a positive number, not {tau}")
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < old.shape[1]):
        raise ValueError(f"targets lie in 0 to {old.shape[1] - 1}")
