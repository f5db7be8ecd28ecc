"""RMU: steer a block's output on forget rows to a fixed random direction, hold it on retain rows (Li et al., WMDP, 2403.03218).

    L_forget = mean over tokens of |h - c u|^2 / d,  u uniform in [0, 1)^d and normalised, drawn once from the seed
    L_retain = mean over tokens of |h - h_start|^2 / d

h is the output of block `layer` (by default at 7/32 of the depth, as in the paper's Zephyr run); only that block and the two before it
move. c is STEERING times the mean norm of h on retain rows, so that it means the same for every model. Works by inflating norms.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ....registry.errors import BadParameter, Incompatible
from ..draws import Draw
from ..task import Rows, batches, device_of
from . import by_rows

if TYPE_CHECKING:
    from ..context import Context

DEPTH = 7 / 32
STEERING = 2.0  # c over the mean norm of the activations
SAMPLED = 64  # retain rows from which the norm is taken


class RMU:
    """Activations instead of likelihoods. Leaves only the parameters of the steered blocks with gradients."""

    def __init__(self, ctx: Context) -> None:
        if ctx.retain is None:
            raise BadParameter("the objective rmu measures activations on a retain set", hint="add --retain-set FILE")
        self.task, self.rows, self.kept = ctx.task, ctx.forget.rows, ctx.retain.rows
        path, blocks = block_list(ctx.module)
        self.layer = ctx.op.layer if ctx.op.layer is not None else round(DEPTH * blocks)
        if self.layer >= blocks:
            raise BadParameter(f"--layer {self.layer}: the model has blocks 0 to {blocks - 1}", hint=f"--layer {blocks - 1}")
        self.path = f"{path}.{self.layer}"
        moved = tuple(f"{path}.{i}." for i in range(max(0, self.layer - 2), self.layer + 1))
        for name, parameter in ctx.module.named_parameters():
            parameter.requires_grad_(name.startswith(moved))
        self.frozen = copy.deepcopy(ctx.module).eval().requires_grad_(False)
        sample = range(min(SAMPLED, len(self.kept)))
        norms = [self._states(self.frozen, self.kept, chosen).norm(dim=-1) for chosen in batches(self.kept, sample)]
        norm = torch.cat(norms).mean().item()
        width = self._states(self.frozen, self.kept, [0]).shape[-1]
        direction = torch.rand(width, generator=torch.Generator().manual_seed(ctx.run.seed))
        self.aim = (STEERING * norm * direction / direction.norm()).to(device_of(ctx.module))
        ctx.facts["rmu"] = {"layer": self.layer, "activation_norm": round(norm, 6), "steering": STEERING}

    def forget(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Mean over real tokens and width of the squared distance to c u."""
        return (self._states(module, self.rows, chosen) - self.aim).square().mean()

    def retain(self, module: nn.Module, draw: Draw) -> Tensor:
        """The same distance to the start's activations; exactly 0 at the start."""
        parts = [part for part in (draw.retain, draw.text) if part]
        return by_rows([(self._drift(module, part), len(part)) for part in parts])

    def _drift(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        with torch.no_grad():
            start = self._states(self.frozen, self.kept, chosen)
        return (self._states(module, self.kept, chosen) - start).square().mean()

    def _states(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [tokens, d]: what the block writes at every real position."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        fed, real = self.task.inputs(rows, chosen, device_of(module))
        handle = module.get_submodule(self.path).register_forward_hook(keep)
        try:
            module.base_model(**fed)  # type: ignore[operator]  # a PreTrainedModel's; the head is not needed
        finally:
            handle.remove()
        return (seen[0][real] if real is not None else seen[0].flatten(0, -2)).float()


def block_list(module: nn.Module) -> tuple[str, int]:
    """(path, length) of the list of a transformer's blocks. Raises Incompatible for a model without one."""
    blocks = getattr(module.config, "num_hidden_layers", None)
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == blocks:
            return path, len(part)
    raise Incompatible("the objective rmu steers the blocks of a transformer, and this model has none", hint="--objective npo")
