"""Catching per-sample gradients at backward time: hooks on the modules that own parameters, and an account for each parameter.

The weights themselves need no gradient. A forward hook keeps what went into a module; when the gradient of its output arrives, the squared
gradients of the module's parameters are booked and the inputs let go. A parameter that is used several times in one forward pass (tied
tables, shared layers) is settled when its last use has arrived, because uses have to be added before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.fisher import fisher_diag
from .persample import bias_gradient, dense, factors, is_linear, is_table
from .rowsums import Slots

HELD = 1 << 26  # elements of a module's dense per-sample gradients; beyond that, samples go one by one
COLUMNS = 1 << 22  # elements of the unfolded inputs of a convolution, about


class Anchor(torch.autograd.Function):
    """A copy of a tensor that asks for gradients although nothing below it does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        """`x` to the bit; `anchor` is any tensor that requires gradients."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        """Nothing flows further down."""
        return None, None


class Account:
    """The running sum of one parameter's importance, and the uses of the current batch that wait to be added up."""

    def __init__(self, parameter: Tensor, absolute: bool) -> None:
        self.absolute = absolute
        self.total = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        self.open()

    def open(self) -> None:
        """Start a batch."""
        self.calls = self.arrived = 0
        self.ids: list[Tensor] = []  # of the table look-ups, known from the forward pass on
        self.rows: list[Tensor | None] = []  # and the gradients of what they gave, in the same order
        self.factored: list[tuple[Tensor, Tensor]] = []
        self.dense: Tensor | None = None
        self.slots: Slots | None = None

    def add_factors(self, x: Tensor, delta: Tensor) -> bool:
        """Book a linear use. False when this mixture of uses is not understood."""
        if not self.ids:
            self.factored.append((x, delta))
            return True
        if self.slots is not None or self.calls != len(self.ids) + 1:
            return False
        # A head that is also the embedding: entries of looked-up rows wait for the embedding's share, the others are final.
        self.slots = Slots(self.ids)
        with self.slots.apart(x, delta) as rest:
            self.put(fisher_diag(x, rest, self.absolute))
        return True

    def add_look_up(self, ids: Tensor) -> int:
        """Announce a look-up of ids `[B, T]`; returns the place of its gradient in `rows`."""
        self.ids.append(ids)
        self.rows.append(None)
        return len(self.ids) - 1

    def add_dense(self, gradient: Tensor) -> None:
        """Book per-sample gradients `[B, *shape]`."""
        self.dense = gradient if self.dense is None else self.dense + gradient

    def settle(self) -> bool:
        """Square what the batch has gathered and add it to the total. False when this mixture of uses is not understood."""
        kinds = bool(self.factored) + bool(self.ids) + (self.dense is not None)
        if self.factored:
            x, delta = self.factored[0]
            if len(self.factored) > 1:
                x, delta = (torch.cat([pair[i] for pair in self.factored], 1) for i in (0, 1))
            self.put(fisher_diag(x, delta, self.absolute).view_as(self.total))
        elif self.ids:
            slots = self.slots or Slots(self.ids)
            slots.settle(self.total, self.rows, self.absolute)
        elif self.dense is not None:
            self.put(self._squared(self.dense))
        self.open()
        return kinds <= 1

    def put(self, part: Tensor) -> None:
        """Add one batch's sum of squares."""
        self.total += part.view_as(self.total)

    def _squared(self, gradient: Tensor) -> Tensor:
        gradient = gradient.float()
        return (gradient.abs() if self.absolute else gradient.square()).sum(0)


class _Use:
    """One call of one module, waiting for the gradient of its output."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        self.versions = [a._version for a in self.tensors()]
        self.look_up = 0  # which of a table's look-ups this is

    def tensors(self) -> Iterator[Tensor]:
        return (a for a in (*self.args, *self.kwargs.values()) if isinstance(a, Tensor))

    def untouched(self) -> bool:
        """False when somebody wrote into the inputs after the call."""
        return self.versions == [a._version for a in self.tensors()]


class Capture:
    """Hooks on every module that owns a parameter of `wanted` (name -> parameter). `unfit` gathers names that need another road."""

    def __init__(self, module: nn.Module, wanted: dict[str, Tensor], absolute: bool) -> None:
        self.names = {id(p): name for name, p in wanted.items()}
        self.accounts = {name: Account(p, absolute) for name, p in wanted.items()}
        self.owners = {m: own for m in module.modules() if (own := self._own(m))}
        self.anchor = torch.zeros((), requires_grad=True)
        self.unfit: set[str] = set()
        self.count, self.paused = 0, False

    def _own(self, module: nn.Module) -> dict[str, str]:
        return {key: self.names[id(p)] for key, p in module._parameters.items() if p is not None and id(p) in self.names}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks are in place inside the block."""
        handles = [module.register_forward_hook(self._called, with_kwargs=True) for module in self.owners]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def batch(self, scores: Callable[[list[int]], Tensor], chosen: list[int]) -> None:
        """Forward and backward of one batch; every account is settled afterwards."""
        self.count = len(chosen)
        with torch.enable_grad():
            total = scores(chosen).sum()
        if total.requires_grad:
            total.backward()
        for name, account in self.accounts.items():
            if account.calls and not account.settle():
                self.unfit.add(name)

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if self.paused or not torch.is_grad_enabled():
            return None
        names = [name for name in self.owners[module].values() if name not in self.unfit]
        if isinstance(output, Tensor) and is_table(module) and len(args) == 1 and args[0].shape[0] == 1 < self.count:
            args, output = (args[0].expand(self.count, *args[0].shape[1:]),), output.expand(self.count, *output.shape[1:])
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != self.count:
            self.unfit.update(names)
            return None
        if not names:
            return None
        if not output.requires_grad:
            output = Anchor.apply(output, self.anchor)
        use = _Use(module, args, kwargs)
        for name in names:
            self.accounts[name].calls += 1
            if is_table(module):
                use.look_up = self.accounts[name].add_look_up(args[0].reshape(self.count, -1))
        output.register_hook(lambda delta: self._arrived(use, delta))
        return output

    @torch.no_grad()
    def _arrived(self, use: _Use, delta: Tensor) -> None:
        own = {key: name for key, name in self.owners[use.module].items() if name not in self.unfit}
        if not use.untouched() or not (self._linear(use, own, delta) if is_linear(use.module) else self._other(use, own, delta)):
            self.unfit.update(own.values())
        use.args, use.kwargs = (), {}
        for name in own.values():
            account = self.accounts[name]
            account.arrived += 1
            if account.arrived == account.calls and not account.settle():
                self.unfit.add(name)

    def _linear(self, use: _Use, own: dict[str, str], delta: Tensor) -> bool:
        if len(use.args) != 1:
            return False
        if "bias" in own:
            self.accounts[own["bias"]].add_dense(bias_gradient(use.module, delta))
        if "weight" not in own:
            return True
        account, x = self.accounts[own["weight"]], use.args[0].detach()
        if not isinstance(use.module, nn.Conv2d) or account.calls > 1:
            return account.add_factors(*factors(use.module, x, delta))
        rows = max(1, COLUMNS // max(1, account.total[0].numel() * delta[0, 0].numel()))
        for inputs, outputs in zip(x.split(rows), delta.split(rows), strict=True):
            account.put(fisher_diag(*factors(use.module, inputs, outputs), account.absolute))
        return True

    def _other(self, use: _Use, own: dict[str, str], delta: Tensor) -> bool:
        if is_table(use.module):
            ids = use.args[0].reshape(self.count, -1)
            rows = delta.reshape(self.count, ids.shape[1], -1)
            skipped = use.module.padding_idx  # type: ignore[union-attr]  # an Embedding
            if skipped is not None:
                rows = rows.masked_fill((ids == skipped).unsqueeze(-1), 0.0)
            self.accounts[own["weight"]].rows[use.look_up] = rows
            return True
        parameters = {key: use.module._parameters[key].detach() for key in own}  # type: ignore[union-attr]  # present in _own
        if self.count * sum(p.numel() for p in parameters.values()) > HELD:
            return False
        self.paused = True
        try:
            found = dense(use.module, parameters, use.args, use.kwargs, delta)
        finally:
            self.paused = False
        for key, name in own.items():
            self.accounts[name].add_dense(found[key])
        return True
