"""Heads that lay a new encoder's vectors over an old one's: orthogonal (OCA, Procrustes), linear (BCT), basis transformation (BT2).

BT2: "Backward-compatible Training with Basis Transformation" (arXiv 2211.03989). OCA: arXiv 2408.08793. Orthogonal matrices are trained
through torch's parametrisation (Cayley map) in fp32 and stored plain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from ...registry.errors import Incompatible

HEAD_CONFIG, HEAD_WEIGHTS = "compat_head.json", "compat_head.safetensors"


class Head(nn.Module, ABC):
    """Pooled states fp32 [rows, width] to vectors fp32 [rows, size]."""

    size: int

    @abstractmethod
    def plain(self) -> dict[str, Tensor]:
        """What is stored: name -> fp32 tensor, parametrisations resolved."""


class Linear(Head):
    """y = W x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.size = weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def plain(self) -> dict[str, Tensor]:
        """`weight` [size, width]."""
        return {"weight": self.weight.detach().contiguous()}


class Rotated(Head):
    """OCA: y = O [x; E x] with O orthogonal [size, size] and E [size - width, width] free.

    |y_a - y_b| is that of [x; E x]: the rotation loses nothing.
    """

    def __init__(self, width: int, extra: int, start: Tensor | None = None) -> None:
        super().__init__()
        self.size = width + extra
        self.turn = orthogonal_map(self.size)
        self.expand = nn.Linear(width, extra, bias=False) if extra else None
        if self.expand is not None:
            nn.init.normal_(self.expand.weight, std=width**-0.5)
        if start is not None:
            self.turn.weight = start  # through the parametrisation's right inverse

    def expanded(self, x: Tensor) -> Tensor:
        """[x; E x], fp32 [rows, size]: what the rotation turns."""
        return x if self.expand is None else torch.cat([x, self.expand(x)], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.turn(self.expanded(x))

    def plain(self) -> dict[str, Tensor]:
        """`weight` [size, width]: both maps in one."""
        with torch.no_grad():
            turn = self.turn.weight.detach()
            width = self.size - (0 if self.expand is None else self.expand.out_features)
            weight = turn[:, :width].clone()
            if self.expand is not None:
                weight += turn[:, width:] @ self.expand.weight
        return {"weight": weight.contiguous()}


class Basis(Head):
    """BT2: b = Q u[:d_o], y = [b; u[d_o:]], u = [norm(o[:k]); P (C norm(x))], with P, Q orthogonal and o from x by a small network.

    size = k + width. The first `old` numbers are comparable with the old space; y is an isometry of (norm(o[:k]), C norm(x)).
    """

    def __init__(self, width: int, old: int, keep: int, scale: float = 2.0) -> None:
        super().__init__()
        if not 0 < keep <= old <= keep + width:
            raise Incompatible(f"BT2 needs 0 < k <= old width <= k + new width, not k {keep}, {old} and {width}", hint="--extra N")
        self.width, self.old, self.keep, self.scale, self.size = width, old, keep, scale, keep + width
        self.inner = nn.Linear(width, width + old)
        self.out = nn.Linear(width + old, old)
        self.p, self.q = orthogonal_map(width), orthogonal_map(old)

    def forward(self, x: Tensor) -> Tensor:
        o = self.out(relu(self.inner(x)))
        u = torch.cat([normalize(o[:, : self.keep], dim=-1), self.p(self.scale * normalize(x, dim=-1))], dim=-1)
        return torch.cat([self.q(u[:, : self.old]), u[:, self.old :]], dim=-1)

    def plain(self) -> dict[str, Tensor]:
        """inner, out (weights and biases), p, q."""
        names = ("inner.weight", "inner.bias", "out.weight", "out.bias")
        found = {name: self.get_parameter(name).detach().contiguous() for name in names}
        return {**found, "p.weight": self.p.weight.detach().contiguous(), "q.weight": self.q.weight.detach().contiguous()}

    def settings(self) -> dict[str, Any]:
        """What compat_head.json says."""
        return {"kind": "bt2", "width": self.width, "old": self.old, "keep": self.keep, "scale": self.scale}


def orthogonal_map(size: int) -> nn.Linear:
    """A bias-free square map that stays orthogonal while it is trained; the identity at first."""
    layer = nn.Linear(size, size, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(size))
    return orthogonal(layer, orthogonal_map="cayley")  # type: ignore[return-value]


def load_head(said: dict[str, Any], weights: bytes) -> Head:
    """The head of compat_head.json and compat_head.safetensors, ready to run, parametrisations gone. Raises Incompatible."""
    from safetensors.torch import load

    if said.get("kind") != "bt2":
        raise Incompatible(f"{HEAD_CONFIG} speaks of a head of kind {said.get('kind')!r}", hint="bt2 is what is known here")
    head = Basis(int(said["width"]), int(said["old"]), int(said["keep"]), float(said["scale"]))
    for layer in (head.p, head.q):
        parametrize.remove_parametrizations(layer, "weight")
    head.load_state_dict(load(weights))
    return head
