"""Per-sample gradients of single modules: how a layer's inputs and output gradients become the gradient of its own parameters.

Three forms, from cheap to dear. *Factors*: a linear map's gradient is a product of two matrices per sample, not multiplied out here.
*Rows*: an embedding's gradient touches a few rows. *Dense*: `[B, *shape]`, for all that is small (norms, biases, position tables).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

PART = 1 << 18  # elements of an output gradient that are looked at in one step


def is_linear(module: nn.Module) -> bool:
    """True for the modules that `factors` understands, weight and bias."""
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, Conv1D) or type(module) is nn.Linear


def is_table(module: nn.Module) -> bool:
    """True for plain embeddings, whose gradient is made of rows."""
    return type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


def factors(module: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(inputs `[B, T, in]`, output gradients `[B, T, out]`): sample b's gradient is outputs_b^T inputs_b, in the weight's layout."""
    if isinstance(module, nn.Conv2d):
        columns = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]  # pairs
        return columns.transpose(1, 2), delta.flatten(2).transpose(1, 2)
    count = len(delta)
    x, delta = _reached(x.reshape(count, -1, x.shape[-1]), delta.reshape(count, -1, delta.shape[-1]))
    return (delta, x) if isinstance(module, Conv1D) else (x, delta)  # Conv1D keeps its weight as [in, out]


def _reached(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Both without positions that no gradient reaches, where that saves much: a head is scored on answers only, padding nowhere."""
    rows = max(1, PART // max(1, delta[0].numel()))  # no temporary of delta's size
    reached = torch.cat([part.abs().amax(-1) for part in delta.split(rows)]) != 0  # true for NaN
    most = int(reached.sum(1).max()) if reached.numel() else 0
    if not most or 4 * most > 3 * reached.shape[1]:
        return x, delta
    first = (~reached).to(torch.uint8).argsort(dim=1, stable=True)[:, :most].unsqueeze(-1)
    return tuple(t.gather(1, first.expand(-1, -1, t.shape[2])) for t in (x, delta))  # type: ignore[return-value]  # two


def bias_gradient(module: nn.Module, delta: Tensor) -> Tensor:
    """`[B, out]`: the output's gradient summed over positions, of a module that `is_linear`."""
    where = tuple(range(2, delta.dim())) if isinstance(module, nn.Conv2d) else tuple(range(1, delta.dim() - 1))
    return delta.float().sum(where) if where else delta.float()


def dense(module: nn.Module, own: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], delta: Tensor) -> dict[str, Tensor]:
    """Gradients `[B, *shape]` of the parameters `own` (name within the module -> parameter) of any module whose rows do not mix.

    Norms have a closed form; the rest is the module run again for each sample, by `vmap` or, where that cannot follow, one by one.
    """
    scaled = _scaled(module, args)
    if scaled is not None:
        return _affine(own, scaled, delta)
    try:
        return _mapped(module, own, args, kwargs, delta)
    except RuntimeError:  # data-dependent control flow, or an operator without a batching rule
        each = [_single(module, own, _row(args, b, len(delta)), _row(kwargs, b, len(delta)), delta[b : b + 1]) for b in range(len(delta))]
        return {name: torch.stack([one[name] for one in each]) for name in own}


def _scaled(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, int] | None:
    """What a norm multiplies with its weight, and the axis of the channels; None for other modules."""
    if len(args) != 1:
        return None
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        return F.layer_norm(args[0], module.normalized_shape, None, None, module.eps), -1
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training and module.running_mean is not None:
        return F.batch_norm(args[0], module.running_mean, module.running_var, None, None, False, 0.0, module.eps), 1
    if type(module).__name__.endswith("RMSNorm") and [p.dim() for p in module.parameters()] == [1]:
        weight = next(iter(module._parameters))
        shape = getattr(module, weight)
        one = functional_call(module, {weight: torch.ones_like(shape)}, args)
        zero = functional_call(module, {weight: torch.zeros_like(shape)}, args)  # not 0 where the gain is 1 + weight
        return one - zero, -1
    return None


def _affine(own: dict[str, Tensor], scaled: tuple[Tensor, int], delta: Tensor) -> dict[str, Tensor]:
    normed, axis = scaled
    where = tuple(a for a in range(1, delta.dim()) if a != axis % delta.dim())
    out = {}
    for name in own:
        product = delta.float() if name == "bias" else delta.float() * normed.float()
        out[name] = product.sum(where) if where else product
    return out


def _mapped(module: nn.Module, own: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], delta: Tensor) -> dict[str, Tensor]:
    count = len(delta)
    over = {key: value for key, value in [*enumerate(args), *kwargs.items()] if _per_row(value, count)}

    def one(rows: dict[int | str, Tensor], wanted: Tensor) -> dict[str, Tensor]:
        def run(parameters: dict[str, Tensor]) -> Tensor:
            inputs = tuple(rows[i].unsqueeze(0) if i in rows else value for i, value in enumerate(args))
            named = {key: rows[key].unsqueeze(0) if key in rows else value for key, value in kwargs.items()}
            return functional_call(module, parameters, inputs, named)

        pull = vjp(run, own)[1]
        return pull(wanted.unsqueeze(0))[0]

    return vmap(one)(over, delta)


def _single(module: nn.Module, own: dict[str, Tensor], args: Any, kwargs: Any, delta: Tensor) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in own.items()}
        output = functional_call(module, leaves, args, kwargs)
        found = torch.autograd.grad(output, list(leaves.values()), delta, allow_unused=True)
    return {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), found, strict=True)}


def _row(values: Any, b: int, count: int) -> Any:
    if isinstance(values, dict):
        return {key: value[b : b + 1] if _per_row(value, count) else value for key, value in values.items()}
    return tuple(value[b : b + 1] if _per_row(value, count) else value for value in values)


def _per_row(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count
