"""Runs a recipe over models: one tensor after the other is read, merged and handed on, so that memory does not grow with the model.

Tensors are computed by several threads when the run has them, each alone on its tensor, and come out in the order of their names: one
thread and many give the same bytes. What is equal in all versions, and stays so under the method, is not even read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.delta.buffers import recycling
from ...registry.delta.crew import alone, drawn, enlist
from ...registry.delta.derived import ELECT, LINEAR, TASK, Derived
from ...registry.delta.derived import FLOATS as DERIVABLE
from ...registry.errors import CheckFailed, Incompatible
from ...registry.ids import Digest, blob_digest
from ...registry.records import InputRecord
from ..base import Change, CopyTensor, DropTensor, SetTensor
from ..engine.local import threads
from ..models import torch_dtype
from .case import Case, Draw, Threshold, keyed_draw, sequence_draw
from .checks import FLOATS, check_architectures, check_buffers, check_shapes, check_vocabularies, per_token
from .files import changed_files
from .formulas import merge_tensor
from .global_trim import Cut, cut_at, cuts_over_model
from .kept import Kept
from .layout import Output, Part, lay_out, tie_heads
from .pins import TEXT
from .recipe import Recipe
from .task_vectors import divisor, election
from .vocabulary import Vocabulary, unify

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .merge import Merge

LENDING = ("linear", "task")  # formulas that never write into what they are given
SLOW = 2e-8  # seconds a byte: several times what it takes to write it
AHEAD = 1  # tensors per thread that wait to be handed on


def apply(op: Merge, view: ModelView, run: Run) -> Iterator[Change]:
    """The changes that turn `view` into the merged model. Raises Incompatible, BadParameter or CheckFailed before anything is yielded
    wherever names, shapes and settings can tell."""
    recipe = op.recipe()
    if op.config is not None and not op.config.startswith(TEXT):
        from pathlib import Path

        data = Path(op.config).read_bytes()
        run.input(InputRecord("config", Path(op.config).name, blob_digest(data), len(data)))
    views = views_of(op, recipe, view, run)
    job = prepare(op, recipe, views, view, run)
    outputs = tie_heads(job.outputs, views)
    with threads(1):  # sums inside a tensor are split by torch's threads; these work side by side instead
        if op.scope == "model":
            job = replace(job, cuts=cuts_over_model(job.recipe, outputs, job.delta))
        if not job.serial and run.scratch.is_dir():  # one running generator has to be asked for every tensor again
            job = replace(job, kept=Kept(run.scratch / "merged"))
        workers = 1 if job.serial else max(1, run.threads)
        with alone(workers == 1), recycling():
            for done, changes in enumerate(_in_order(outputs, job.changes, workers), 1):
                yield from changes
                job.held.pop(outputs[done - 1].name, None)
                run.progress("merge", done, len(outputs))
    kept = {name for output in outputs for name in (output.name, *output.also)}
    if not recipe.whole:
        yield from (DropTensor(name) for name in view.names() if name not in kept)
    yield from changed_files(recipe, views, view, job.vocabulary, recipe.out_dtype or recipe.dtype)


def views_of(op: Merge, recipe: Recipe, view: ModelView, run: Run) -> dict[str, ModelView]:
    own = op.ingredients[0] if op.config is None else None
    views = {name: view if name == own else run.version(name) for name in recipe.names()}
    if view.adapter or not any(other.snapshot_id == view.snapshot_id for other in views.values()):
        what = "an adapter" if view.adapter else "none of the merged versions"
        raise Incompatible(f"the version that the result is to follow is {what}", hint="merge on a branch of one of the ingredients")
    return views


def prepare(op: Merge, recipe: Recipe, views: Mapping[str, ModelView], view: ModelView, run: Run) -> Job:
    """All that can be known before a tensor is read. Raises Incompatible or BadParameter."""
    check_architectures(views)
    outputs = lay_out(recipe, views)
    check_shapes(outputs, views, recipe.tokenizer is not None)
    vocabulary = None
    if recipe.tokenizer is not None:
        vocabulary = unify(recipe, views)
    else:
        check_vocabularies(views)
    running = sequence_draw(torch.Generator().manual_seed(run.seed)) if op.rng == "mergekit" or op.parity else None
    return Job(recipe, views, view, tuple(outputs), run.seed, op.parity, running, vocabulary)


@dataclass(frozen=True, slots=True)
class Job:
    """One merge, ready to run tensor by tensor. `running`: the one generator all masks come from, in mergekit's order."""

    recipe: Recipe
    views: Mapping[str, ModelView]
    view: ModelView  # the version that the result follows
    outputs: tuple[Output, ...]
    seed: int
    parity: bool
    running: Draw | None
    vocabulary: Vocabulary | None
    cuts: Mapping[tuple[str, int], Cut] = field(default_factory=dict)
    held: dict[str, tuple[tuple[Part, Tensor], ...]] = field(default_factory=dict)  # by output: what was read for it, until it is stored
    kept: Kept | None = None  # results of this run, should it have to be taken up again

    @property
    def native(self) -> bool:
        """Whether to compute in the tensors' own type."""
        return self.parity or self.recipe.dtype is not None

    @property
    def serial(self) -> bool:
        """Whether tensors have to come one after the other."""
        return self.running is not None and self.recipe.spec.random

    def changes(self, output: Output) -> list[Change]:
        """What becomes of one tensor of the result, under all its names."""
        parts = [*output.parts, *([output.base] if output.base else [])]
        if any(self.views[p.model].entry(p.tensor).dtype not in FLOATS for p in parts):
            check_buffers(parts, self.views)
            return self._taken(output, parts[0])
        if self._steady(output, parts):
            return self._taken(output, parts[0])
        data, derived = self._foretold(output) or self._again(output)
        if read := self.held.get(output.name):  # storage reads what it is coded against or compared with, and nothing else
            own = [(part, x) for part, x in read if self.views[part.model].snapshot_id == self.view.snapshot_id]
            self.held[output.name] = tuple(own)
        nearest = next((p.tensor for p in parts if self.views[p.model].snapshot_id == self.view.snapshot_id), None)
        names = (output.name, *output.also)
        return [SetTensor(name, data, base=None if nearest == name else nearest, derived=derived) for name in names]

    def delta(self, output: Output, index: int) -> Tensor | None:
        """One ingredient's task vector, float32; None where the formula is not applied."""
        parts = [*output.parts, *([output.base] if output.base else [])]
        if any(self.views[p.model].entry(p.tensor).dtype not in FLOATS for p in parts) or self._steady(output, parts):
            return None
        base, tensors = self._read(output)
        self.held.pop(output.name, None)
        assert base is not None
        return tensors[index].to(torch.float32) - base.to(torch.float32)

    # --- one tensor ---

    def _foretold(self, output: Output) -> tuple[Tensor, Derived] | None:
        """A plain sum of stored tensors, which storage computes as it stores it: type, shape and what it is. None for anything else."""
        _, output = self._ordered(output)
        first = self.views[output.parts[0].model].entry(output.parts[0].tensor)
        parts = [*output.parts, *([output.base] if output.base else [])]
        wanted = self._wanted([torch_dtype(self.views[p.model].entry(p.tensor).dtype) for p in parts])
        try:
            derived = self._derived(output, None, wanted)
        except ValueError as fault:
            raise self._impossible(output, fault) from fault
        return None if derived is None else (self.view.promise(derived, wanted, tuple(first.shape)), derived)

    def _impossible(self, output: Output, fault: ValueError) -> CheckFailed:
        return CheckFailed(f"{output.name} cannot be merged by {self.recipe.method}: {fault}")

    def _again(self, output: Output) -> tuple[Tensor, Derived | None]:
        """The tensor as a run that died had computed it, or computed now. What is made as fast as it is written is made again."""
        if self.kept is not None and (data := self.kept.read(output.name)) is not None:
            return data, None
        began = time.thread_time()
        data, derived = self._merged(output)
        if self.kept is not None and derived is None and time.thread_time() - began > SLOW * data.nbytes:
            self.kept.write(output.name, data)
        return data, derived

    def _merged(self, output: Output) -> tuple[Tensor, Derived | None]:
        order, output = self._ordered(output)
        base, tensors = self._read(output)
        stored = [x.dtype for x in (*tensors, *([base] if base is not None else []))]
        wanted = self._wanted(stored)
        if self.native:
            kind = stored[0]
            for other in stored[1:]:
                kind = torch.promote_types(kind, other)
            kind = getattr(torch, self.recipe.dtype) if self.recipe.dtype else kind
        else:
            kind = wanted if all(dtype == wanted for dtype in stored) else _widest(stored)
        case = Case(
            None if base is None else base.to(kind),
            tuple(x.to(kind) for x in tensors),
            output.shared,
            output.each,
            self._draws(output),
            self.native,
            self.parity,
            self._thresholds(output, order, base, tensors),
        )
        try:
            case = replace(case, thresholds=election(case, self.recipe.spec))
            derived = self._derived(output, case.thresholds, wanted)
            if derived is None:
                data = merge_tensor(self.recipe.spec, case).to(wanted)
            else:  # as storage does: it will not have to try it
                data = self.view.derive(derived, wanted, tuple(tensors[0].shape))
        except ValueError as fault:
            raise self._impossible(output, fault) from fault
        self._check_finite(output.name, data, (*tensors, *([base] if base is not None else [])))
        return data, derived

    def _read(self, output: Output) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        parts = [*output.parts, *([output.base] if output.base else [])]
        aligned = self.vocabulary is not None and per_token(self.views, parts[0])
        if not aligned and self.recipe.spec.formula in LENDING:
            tensors = [self.views[p.model].lent(p.tensor) for p in reversed(parts)][::-1]  # the base first: the others may be deltas of it
            self.held[output.name] = tuple(zip(parts, tensors, strict=True))
        else:
            tensors = [self.views[p.model].tensor(p.tensor) for p in parts]
        if self.vocabulary is not None and aligned:
            tensors = list(self.vocabulary.aligned([p.model for p in parts], tensors))
        return (tensors[-1], tuple(tensors[:-1])) if output.base else (None, tuple(tensors))

    def _ordered(self, output: Output) -> tuple[list[int], Output]:
        """Ingredients by digest where their order has no meaning, so that naming them in another order gives the same bytes."""
        order = list(range(len(output.parts)))
        if self.recipe.spec.symmetric and not self.native:
            order.sort(key=lambda i: (self._digest(output.parts[i]), sorted(output.each[i].items())))
        ordered = replace(output, parts=tuple(output.parts[i] for i in order), each=tuple(output.each[i] for i in order))
        return order, ordered

    def _draws(self, output: Output) -> tuple[Draw, ...]:
        if not self.recipe.spec.random:
            return ()
        if self.running is not None:
            return (self.running,) * len(output.parts)
        return tuple(keyed_draw(self.seed, output.name, self._digest(part)) for part in output.parts)

    def _thresholds(
        self, output: Output, order: list[int], base: Tensor | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Threshold, ...] | None:
        if not self.cuts or base is None:
            return None
        pairs = zip(order, tensors, strict=True)
        return tuple(cut_at(x.to(torch.float32) - base.to(torch.float32), self.cuts[output.name, index]) for index, x in pairs)

    def _wanted(self, stored: list[torch.dtype]) -> torch.dtype:
        word = self.recipe.out_dtype or self.recipe.dtype
        if word is not None:
            return getattr(torch, word)
        kind = stored[0]
        for other in stored[1:]:
            kind = torch.promote_types(kind, other)
        return kind

    def _steady(self, output: Output, parts: list[Part]) -> bool:
        """Whether the result is known to be what all versions hold, and stored as they hold it."""
        entries = [self.views[p.model].entry(p.tensor) for p in parts]
        if len({entry.digest for entry in entries}) > 1 or (self.vocabulary is not None and per_token(self.views, parts[0])):
            return False
        kind = torch_dtype(entries[0].dtype)
        if self._wanted([kind]) != kind:
            return False
        method = self.recipe.spec
        if method.name == "passthrough":
            return output.each[0]["scale"] is None
        means = output.shared.get("normalize", output.shared.get("normalize_weights", True)) or method.steady == "base"
        return not self.parity and means and method.steady != "never" and (method.steady == "always" or output.base is not None)

    def _taken(self, output: Output, part: Part) -> list[Change]:
        """The tensor as one version holds it: nothing at all where the result's forerunner has it under that name."""
        found: list[Change] = []
        own = self.views[part.model].snapshot_id == self.view.snapshot_id
        digest = self._digest(part)
        for name in (output.name, *output.also):
            if self.view.has(name) and self.view.entry(name).digest == digest:
                continue
            found.append(CopyTensor(name, part.tensor) if own else SetTensor(name, self.views[part.model].tensor(part.tensor)))
        return found

    def _derived(self, output: Output, thresholds: tuple[Threshold, ...] | None, wanted: torch.dtype) -> Derived | None:
        """The recipe by which storage can repeat this tensor to the bit: for plain sums, and for plain elections."""
        method = self.recipe.spec
        parts = [*([output.base] if output.base else []), *output.parts]
        words = {self.views[p.model].entry(p.tensor).dtype for p in parts}
        plain = method.formula == "linear" or (method.formula == "task" and method.trim is None and not method.vote)
        apart = any(self.views[p.model].adapter for p in parts)  # what an adapter's tensor is after its merge is stored nowhere
        apart |= self.vocabulary is not None and per_token(self.views, parts[0])
        elected = thresholds if method.vote else None
        if self.native or not (plain or elected) or apart or not words <= set(DERIVABLE) or wanted == torch.float64:
            return None
        sources, weights = tuple(map(self._digest, parts)), [p["weight"] for p in output.each]
        if elected:
            numbers = (*weights, output.shared["lambda"], *([1.0] if output.shared["normalize"] else []))
            return Derived(ELECT, sources, numbers, cuts=tuple(elected))
        linear, total = method.formula == "linear", divisor(weights) if output.shared["normalize"] else None
        numbers = (*weights, *(() if linear else (output.shared["lambda"],)), *(() if total is None else (total,)))
        return Derived(LINEAR if linear else TASK, sources, numbers)

    def _digest(self, part: Part) -> Digest:
        return self.views[part.model].entry(part.tensor).digest

    def _check_finite(self, name: str, data: Tensor, inputs: Iterable[Tensor]) -> None:
        if bool(torch.isfinite(data.sum())):  # then every one of them is; the sum may overflow though none does
            return
        if not bool(torch.isfinite(data).all()) and all(bool(torch.isfinite(x).all()) for x in inputs):
            raise CheckFailed(f"{name} became infinite or no number by {self.recipe.method}", hint="smaller weights, or --dtype float32")


def _widest(stored: list[torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in stored else torch.float32


def _in_order(outputs: Iterable[Output], work: Callable[[Output], list[Change]], count: int) -> Iterator[list[Change]]:
    """Results in the order of `outputs`, from `count` threads; no more than a few are ever waiting."""
    if count == 1:
        yield from map(work, outputs)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="merge", initializer=enlist) as pool:
        yield from drawn(pool, work, outputs, count + AHEAD)
