"""Where a run goes on from, whichever engine saved that: one process (all tensors in the state) or many (the state names a folder)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...registry.errors import CorruptRecord, StalePlan
from .atoms import Pieces

if TYPE_CHECKING:
    from torch import Tensor

    from ..base import Run
    from .base import TrainSettings

FOLDER, STABLE_FOLDER = "pieces", "stable_pieces"  # in a state's meta: folders below the run's scratch directory
STABLE = "stable."  # before the names of a stable state inside a saved one


def slowed(settings: TrainSettings, step: int) -> list[list[float]]:
    """What has had a part in the rates of the first `step` steps."""
    return [[first, factor] for first, factor in settings.slow if first <= step]


def check_same(meta: dict[str, Any], step: int, digest: str, settings: TrainSettings) -> None:
    """Raise StalePlan unless a state saved with this meta can go on with these rows and settings."""
    if meta["rows"] != digest:
        raise StalePlan("the data of this run has changed since it was stopped", hint="start it again without --resume")
    if meta.get("slow", []) != slowed(settings, step):
        raise StalePlan(f"--slow speaks of a step that is over: {step} are done", hint=f"--slow {step + 1}:0.25")


def gathered(state: tuple[int, dict[str, Tensor], dict[str, Any]], run: Run) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """The state with all its tensors whole, for an engine of one process. The first worker's generator goes on as the run's."""
    step, tensors, meta = state
    for key, before in ((FOLDER, ""), (STABLE_FOLDER, STABLE)):
        if key in meta:
            tensors = {**tensors, **{before + n: t for n, t in whole(folder_of(run, meta[key])).items()}}
    return step, tensors, meta


def whole(pieces: Pieces) -> dict[str, Tensor]:
    """Everything that a folder holds, as one process would have saved it."""
    names = sorted(name for name in pieces.names() if not name.startswith("rng."))
    return {**{name: pieces.whole(name) for name in names}, "rng": pieces.whole("rng.0")}


def folder_of(run: Run, name: str) -> Pieces:
    """A folder of pieces below the run's scratch directory. Raises CorruptRecord when it is gone."""
    if not (run.scratch / name).is_dir():
        raise CorruptRecord(f"the saved state of run {run.id} names {name}, which is gone", hint="start it again without --resume")
    return Pieces(run.scratch / name)


def without_stable(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what the run stands at, its stable state) of a state that holds both."""
    stable: Sequence[str] = [name for name in tensors if name.startswith(STABLE)]
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(STABLE)}
    return rest, {name.removeprefix(STABLE): tensors[name] for name in stable}
