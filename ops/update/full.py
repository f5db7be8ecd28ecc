"""Method `full`: every parameter is trained and becomes a new tensor, in the dtype it was stored in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..base import Change, SetTensor
from ..models import load_model, slot, state_names, torch_dtype

if TYPE_CHECKING:
    from ...registry.view import ModelView


class Full:
    """The whole model as fp32 master weights."""

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self.module = load_model(view, dtype=torch.float32)
        self.names = state_names(self.module, view)

    def changes(self) -> Iterator[Change]:
        """One SetTensor per stored parameter; a tied parameter is written under each name that the file has for it."""
        for name, stored in self.names.items():
            parameter = slot(self.module, name)
            if isinstance(parameter, nn.Parameter):
                yield SetTensor(stored, parameter.detach().to("cpu", torch_dtype(self.view.entry(stored).dtype)))
