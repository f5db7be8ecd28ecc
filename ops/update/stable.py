"""The state before a run's rate falls: kept with the version, so that the next update can go on from there (`--from stable`).

A schedule that ends in an annealing gives two models: the annealed one, which is the version, and the stable one before it, from which
training goes on without warming up again (Ibrahim et al., 2403.08763; MiniCPM's WSD, 2404.06395). The stable one is an artifact of the
version: weights and moments in fp32, and how far the rows were read. It says which weights it belongs to, so that what was changed since
(an edit, a merge) is not lost unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ...registry.errors import Incompatible
from ...registry.ids import record_digest, tensor_digest
from ...registry.records import canonical
from ..base import Change, SetTensor
from ..engine import State

if TYPE_CHECKING:
    from torch import Tensor

    from ...registry.view import ModelView
    from ..base import Run

KIND = "stable-state"


def kept(changes: Iterator[Change], state: State | None, view: ModelView, run: Run) -> Iterator[Change]:
    """Pass the changes on; afterwards leave `state`, named after the weights that they make."""
    digests: dict[str, str] = {name: view.entry(name).digest for name in view.names()}
    for change in changes:
        if state is not None and isinstance(change, SetTensor):
            digests[change.name] = _digest(view, change.name, change.data)
        yield change
    if state is not None:
        of = _identity(digests)
        run.artifact(KIND, of, lambda: _pack(state, of))
        run.record("stable", {"step": state.step, "rate": state.meta["rate"], "artifact": KIND})


def begun(view: ModelView, run: Run) -> State:
    """The stable state of the version `view`. Raises Incompatible when it keeps none, or when its weights were changed since."""
    hint = "train it with --decay wsd or --decay infinite; without --from, training begins at the version's weights"
    data = run.inherited(KIND)
    if data is None:
        raise Incompatible("this version keeps no stable state to go on from", hint=hint)
    state, of = _unpack(data)
    if of != _identity({name: view.entry(name).digest for name in view.names()}):
        raise Incompatible("the stable state behind this version belongs to other weights: something was changed since", hint=hint)
    run.record("begun", {"from": "stable", "step": state.step, "rate": state.meta["rate"]})
    return state


def _identity(digests: Mapping[str, str]) -> str:
    return record_digest("mlc.stable.v1", canonical(sorted(digests.items())))


def _digest(view: ModelView, name: str, data: Tensor) -> str:
    import torch

    entry = view.entry(name)
    raw = data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return tensor_digest(entry.dtype, entry.shape, [raw])


def _pack(state: State, of: str) -> bytes:
    from safetensors.torch import save

    head = canonical({"of": of, "step": state.step, "meta": state.meta}).decode()
    return save({n: t.contiguous() for n, t in sorted(state.tensors.items())}, metadata={"mlc": head})


def _unpack(data: bytes) -> tuple[State, str]:
    from safetensors.torch import load

    length = int.from_bytes(data[:8], "little")
    head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["mlc"])
    return State(head["step"], load(data), head["meta"]), head["of"]
