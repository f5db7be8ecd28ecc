"""One request to forget from beginning to end: records, rows, method, changes. What it did is measured in check.py."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...registry.errors import CheckFailed
from ...registry.records import InputRecord
from ..base import Change, Run, SetTensor
from ..data.items import ItemSet
from ..engine.local import placed, threads
from ..models import load_model, slot, state_names, torch_dtype
from .context import Context, Part
from .sets import read_sets
from .task import Task, task_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .unlearn import Unlearn


def apply(op: Unlearn, view: ModelView, run: Run) -> Iterator[Change]:
    """Forget, and yield every stored tensor that is another now."""
    ctx = prepare(op, view, run)
    for record in inputs_of(ctx):
        run.input(record)
    if ctx.retain is None:
        what = "only the digest of the retain set is known" if ctx.retain_digest else "there is no retain set"
        run.note(f"{what}: what was lost elsewhere is not measured")
    with threads(run.threads):
        values = import_module(f".{op.method}", __package__).apply(ctx)
    weights = ctx.facts.setdefault("weights", sum(p.numel() for p in ctx.parameters.values()))
    selected = ctx.facts.setdefault("selected", sum(value.numel() for value in values.values()))
    ctx.facts.setdefault("selected_fraction", selected / weights)
    for key, value in ctx.facts.items():
        run.record(key, value)
    changed = 0
    for change in changes(ctx, values):
        changed += 1
        yield change
    if not changed:
        hint = "another --strength, or --method dense --objective npo"
        raise CheckFailed(f"selected 0 of {weights:,} weights: nothing would change", hint=hint)


# --- what a method is given ------------------------------------------------------------------------------


def prepare(op: Unlearn, view: ModelView, run: Run) -> Context:
    """Read and check everything that `op` names; the module in fp32. Raises BadInputFile, Incompatible, VocabularyMismatch."""
    sets = read_sets(op)
    task = task_of(view)
    parts = {role: part(task, items) for role, items in sets.items()}
    module = working(view)
    retain = parts.get("retain")
    digest = retain.items.digest if retain is not None else op.stored_retain
    return Context(op, view, run, task, module, parameter_names(module, view), parts["forget"], retain, parts.get("holdout"), digest)


def part(task: Task, items: ItemSet) -> Part:
    """One set as rows."""
    return Part(items, task.rows(items))


def working(view: ModelView) -> nn.Module:
    """The model in fp32 where the engine computes, in evaluation mode."""
    return placed(load_model(view, dtype=torch.float32))


def parameter_names(module: nn.Module, view: ModelView) -> dict[str, str]:
    """Floating parameter's name in the module -> name of a tensor that stores it, tied parameters once."""
    stored = state_names(module, view)
    names: dict[int, str] = {}
    for name, tensor in stored.items():
        names.setdefault(id(slot(module, name)), tensor)
    return {name: names[id(p)] for name, p in module.named_parameters() if id(p) in names and p.is_floating_point()}


def inputs_of(ctx: Context) -> list[InputRecord]:
    """What was read: the forget set under a keyed digest, everything else under its own."""
    forget = ctx.forget.items
    found = [InputRecord("forget", forget.name, ctx.run.pseudonym(forget.payload), forget.bytes)]
    for one in (ctx.retain, ctx.holdout):
        if one is not None:
            found.append(InputRecord(one.items.role, one.items.name, one.items.digest, one.items.bytes))
    if ctx.retain is None and ctx.retain_digest:
        found.append(InputRecord("retain", "stored importance", ctx.retain_digest, 0))
    return found


# --- what becomes of it ----------------------------------------------------------------------------------


def changes(ctx: Context, values: dict[str, Tensor]) -> Iterator[Change]:
    """A SetTensor for each stored tensor whose bytes are others now, in the dtype it is stored in. Raises CheckFailed for NaN."""
    stored = state_names(ctx.module, ctx.view)
    by_object = {id(slot(ctx.module, name)): values[name] for name in values}
    for name, tensor in stored.items():
        value = by_object.get(id(slot(ctx.module, name)))
        if value is None:
            continue
        if not value.isfinite().all():
            raise CheckFailed(f"{tensor} holds values that are not finite numbers", hint="a smaller --lr or --strength")
        old = ctx.view.tensor(tensor)
        new = value.detach().to("cpu", torch_dtype(ctx.view.entry(tensor).dtype)).contiguous()
        if not torch.equal(new, old):
            yield SetTensor(tensor, new)
