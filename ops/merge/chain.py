"""`merge.opcm`: fold versions into a running merge, one after the other. The chain's state is part of the operation and of the commit.

The first ingredient is the running merge, with the state that its commit recorded; without a state it is the first model of a new chain
(or, where it is the base itself, the place where the chain begins). Each further one is projected and added, and the result rounded to
the stored type: absorbing three at once, or one by one in three commits, gives the same bytes. No torch at the top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ...registry.errors import BadParameter
from ...registry.fs import DiskFault
from ...registry.records import Json
from ..base import Change, Check, Expectations, Operation, Plan, Run, SetTensor, option
from .kept import Kept

if TYPE_CHECKING:
    from torch import Tensor

    from ...registry.view import ModelView
    from .layout import Output
    from .opcm import State

DELTAS = "projected-delta"  # artifact: D~ of the version that was absorbed last
LOOKUPS = ("embedding", "position")  # rows are looked up, not multiplied: added, and not projected


@dataclass(frozen=True, slots=True)
class Opcm(Operation):
    """Fold versions into a running merge by orthogonal projection."""

    name: ClassVar[str] = "merge.opcm"
    version: ClassVar[int] = 1

    ingredients: tuple[str, ...] = option((), help="the running merge (or the first model), then what is absorbed, in order")
    base: str | None = option(None, help="the version that all of them come from")
    alpha: float = option(0.1, help="share of the running merge's singular mass that is protected, in [0, 1)")
    state: tuple[float, ...] = option((), help="scale, number of models and sum of their norms, from the commit of the running merge")
    deltas: bool = option(True, help="keep what was added of the last version, as an artifact")
    shared: bool = option(False, help="keep what goes the running merge's way: only what goes against it is projected away")

    def __post_init__(self) -> None:
        if not self.ingredients or self.base is None:
            raise BadParameter("merge.opcm needs a running merge and the base of all versions", hint="mlc merge main new --method opcm")
        if not 0 <= self.alpha < 1:
            raise BadParameter(f"alpha {self.alpha:g} lies outside [0, 1)", hint="for example: --set alpha=0.5")
        if len(self.state) not in (0, 3) or not all(math.isfinite(number) for number in self.state):
            raise BadParameter("the state of a chain is its scale, its number of models and the sum of their norms")

    # --- the contract ---

    def joins(self) -> tuple[str, ...]:
        return self.ingredients[1:]

    def plan(self, view: ModelView) -> Plan:
        from .merge import BYTES

        size = sum(math.prod(view.entry(n).shape) * BYTES.get(view.entry(n).dtype, 1) for n in view.names())
        largest = max((math.prod(view.entry(n).shape) for n in view.names()), default=0)
        return Plan(
            f"absorb {len(self.ingredients) - 1} versions into a running merge by opcm",
            touches=view.names(),
            bytes_touched=size,
            memory=4 * largest * 8,
            details={"alpha": self.alpha, "shared": self.shared, "base": self.base, "models": int(self.state[1]) if self.state else 0},
        )

    def preview(self, view: ModelView, run: Run) -> dict[str, Json]:
        """Refuses what `apply` would refuse: versions that do not fit each other."""
        _Chain(self, view, run)
        return {}

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from ..engine.local import threads

        chain = _Chain(self, view, run)
        with threads(1):  # a decomposition by several threads may end in other bits
            state = chain.begin()
            for place in range(chain.done, len(self.ingredients) - 1):
                state = chain.absorb(place, state)
        run.record("opcm", asdict(state) | {"norm": state.mean_norm})
        yield from chain.changes()

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        changed = [n for n in after.names() if not before.has(n) or before.entry(n).digest != after.entry(n).digest]
        return Check(True, {"tensors": len(after.names()), "tensors_changed": len(changed), "versions": len(self.ingredients)})

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=("a merge may lose what each ingredient knew: measure it against all of them",))


class _Chain:
    """One run: the versions, laid out tensor by tensor, and the running merge, which waits in files between two steps."""

    def __init__(self, op: Opcm, view: ModelView, run: Run) -> None:
        from .layout import lined_up, tie_heads

        assert op.base is not None
        self.op, self.view, self.run, self.base = op, view, run, op.base
        names = tuple(dict.fromkeys((*op.ingredients, op.base)))
        self.views = {name: view if name == op.ingredients[0] else run.version(name) for name in names}
        laid = tie_heads(lined_up(self.views), self.views)
        self.outputs = {output.name: output for output in laid if self._moves(output)}
        self.done, self.merged = 0, Kept(run.scratch / "merged-0")  # versions absorbed, and the merge that they gave

    def begin(self) -> State:
        """The state before the first version is absorbed."""
        from .opcm import State, absorbed

        op = self.op
        if (found := self._resumed()) is not None:
            return found
        if op.state:
            return State(op.state[0], int(op.state[1]), op.state[2], op.alpha, op.shared)
        empty = State(alpha=op.alpha, shared=op.shared)
        if self.view.snapshot_id == self.views[self.base].snapshot_id:
            return empty  # the chain begins at the base: the first version that is absorbed is its first model
        length = 0.0
        for name in self.outputs:
            length += float((self.read(op.ingredients[0])(name).float() - self.read(self.base)(name).float()).double().square().sum())
        return absorbed(empty, math.sqrt(length), math.sqrt(length))

    def absorb(self, place: int, state: State) -> State:
        """Fold one version in; the merge is rounded to the type it is stored in. A run that died goes on with the sums that it has."""
        from .opcm import State, absorb

        op, model, scratch = self.op, self.op.ingredients[place + 1], self.run.scratch
        sums, added, fresh = (Kept(scratch / f"{what}-{place + 1}") for what in ("sums", "added", "merged"))
        names, after = tuple(name for name in self.outputs if self._stirred(name, model)), state
        last = place == len(op.ingredients) - 2
        adds = added.write if op.deltas and last else None

        def known(name: str) -> Tensor | None:
            return sums.read(name) if adds is None or added.read(name) is not None else None

        parts = (self.read(self.base), self.running, self.read(model))
        for done, step in enumerate(absorb(names, *parts, self.matrix, state, sums.write, _present(sums), adds, known), 1):
            if isinstance(step, State):
                after = step
            else:
                name, tensor = step
                fresh.write(name, tensor.to(self.read(op.ingredients[0])(name).dtype))
                self.run.progress("merge", done, len(names))
        if adds is not None:
            key = f"{self.view.snapshot_id}/{self.views[model].snapshot_id}/{self.views[self.base].snapshot_id}/{op.alpha!r}/{state!r}"
            self.run.artifact(DELTAS, key, lambda: _packed(names, _present(added)))
        if not last:
            self.run.save_state(place + 1, {}, {"state": [after.scale, after.count, after.norms], "names": list(names)})
            for passed in (sums, self.merged):
                passed.clear()
        self.merged = fresh
        return after

    def _resumed(self) -> State | None:
        """The state in which a run that died left off, when the merge that belongs to it is still whole."""
        from .opcm import State

        found = self.run.load_state()
        if found is None:
            return None
        step, _, said = found
        merged, (scale, count, norms) = Kept(self.run.scratch / f"merged-{step}"), cast("list[float]", said["state"])
        if any(merged.read(name) is None for name in cast("list[str]", said["names"])):
            return None
        self.done, self.merged = step, merged
        return State(scale, int(count), norms, self.op.alpha, self.op.shared)

    def changes(self) -> Iterator[Change]:
        """What differs from the version that the result follows."""
        for name, output in self.outputs.items():
            if self.merged.has(name):
                data = _present(self.merged)(name)
                yield from (SetTensor(each, data) for each in (name, *output.also))

    # --- tensors ---

    def read(self, model: str) -> Callable[[str], Tensor]:
        """A reader of one version's tensors."""
        return lambda name: self.views[model].tensor(name)

    def running(self, name: str) -> Tensor:
        """The running merge: as the last step left it, else as it came in."""
        return _present(self.merged)(name) if self.merged.has(name) else self.view.tensor(name)

    def matrix(self, name: str) -> bool:
        """Whether a tensor is the weight of a linear map."""
        from ..arch import family_of, role_of

        output, entry = self.outputs[name], self.view.entry(name)
        if len(entry.shape) != 2 or output.also:  # a tied head is the embedding
            return False
        family = family_of(self.view.config)
        role = role_of(family, name)[1]
        return role not in LOOKUPS and not (family is None and "embed" in name)

    def _moves(self, output: Output) -> bool:
        """Whether any version has another tensor here than the base; buffers must be equal, or they cannot be merged."""
        from .checks import FLOATS, check_buffers

        entries = [self.views[part.model].entry(part.tensor) for part in output.parts]
        if any(entry.dtype not in FLOATS for entry in entries):
            check_buffers(output.parts, self.views)
            return False
        return len({entry.digest for entry in entries}) > 1

    def _stirred(self, name: str, model: str) -> bool:
        """Whether there is anything to add or to scale: what has never left the base stays as it is, to the sign of its zeros."""
        ground = self.views[self.base].entry(name).digest
        unmoved = not self.merged.has(name) and self.view.entry(name).digest == ground
        return not (unmoved and self.views[model].entry(name).digest == ground)


def _present(kept: Kept) -> Callable[[str], Tensor]:
    """A reader of what is known to be there."""

    def read(name: str) -> Tensor:
        tensor = kept.read(name)
        if tensor is None:
            raise DiskFault(f"{name} can no longer be read from {kept.place}", hint="mlc merge --resume")
        return tensor

    return read


def _packed(names: Iterable[str], read: Callable[[str], Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: read(name) for name in names})


def state_of(check: dict[str, Any]) -> tuple[float, ...]:
    """The state that a commit's check recorded: what the next link of the chain is given. Empty when there is none."""
    found = check.get("opcm")
    return (float(found["scale"]), float(found["count"]), float(found["norms"])) if isinstance(found, dict) else ()
