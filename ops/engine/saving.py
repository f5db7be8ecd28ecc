"""Saving while the next step runs: the bytes are copied at once, and a thread writes the copies.

What is written are the bytes of the step that asked for it: nothing else ever sees the copies, and they are used again only when the
write before is over. One write at a time; whoever leaves waits for it (`join`), so that a run that stops for whatever reason says truly
which state it kept. A write that failed is told at the next save or at `join`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Write = Callable[[int, dict[str, Tensor], dict[str, Any]], None]  # (step, tensors on the CPU, meta): `Run.save_state`, say


class Saver:
    """Writes states in the background by `write`."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._room: dict[str, Tensor] = {}  # copies of the last state: memory that is used again
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Copy now, write later. Waits for the write before; raises what that raised."""
        self.join()
        copies = {name: self._copied(name, tensor) for name, tensor in tensors.items()}
        self._room = dict(copies)
        self._thread = threading.Thread(target=self._work, args=(step, copies, copy.deepcopy(meta)), name="state")
        self._thread.start()

    def join(self) -> None:
        """Wait until everything is written; raises what the write raised."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _work(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        try:
            self._write(step, tensors, meta)
        except BaseException as fault:  # told by join, where somebody can act on it
            self._fault = fault

    @torch.no_grad()
    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        old = self._room.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
            return old.copy_(tensor)
        return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
