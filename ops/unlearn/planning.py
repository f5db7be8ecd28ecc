"""What a request to forget would touch and cost, from names, shapes and files; no tensor is read and nothing is imported that computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..base import Plan
from ..data.items import ItemSet, Role
from .goal import FLOOR
from .rates import STEPS, usual_rate
from .sets import read_sets

if TYPE_CHECKING:
    from ...registry.records import Json
    from ...registry.view import ModelView
    from .unlearn import Unlearn

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MASTER = 4  # bytes of an fp32 weight, gradient or moment
CHARACTERS = 4  # per token, as a rule
LONGEST = 128  # tokens of a row of text
SECONDS_PER_STEP = 0.05  # for the number of operations
FLOPS_PER_SECOND = 4e10  # measured on one CPU core with small models
COST = 6  # operations per weight and token, forward and backward


def plan(op: Unlearn, view: ModelView) -> Plan:
    """The plan of `op` on `view`. Raises what `apply` would raise for missing files, bad records and overlapping sets."""
    sets = read_sets(op)
    forget, retain = sets["forget"], sets.get("retain")
    names = tuple(n for n in view.names() if view.entry(n).dtype in FLOATS)
    elements = sum(math.prod(view.entry(n).shape) for n in names)
    moved = math.floor(op.keep_ratio * elements) if op.method == "wagle" else elements
    steps = (op.steps or STEPS) if op.trained else 0
    tokens = _tokens(op, forget, retain)
    how = f"{op.method} with {op.objective}" if op.trained else op.method
    kept = f", keep {len(retain.items):,}" if retain is not None else ""
    return Plan(
        summary=f"forget {len(forget.items):,} records{kept} by {how}"
        + (f" ({moved:,} of {elements:,} weights, at most {steps} steps)" if op.trained else ""),
        touches=names,
        bytes_touched=sum(math.prod(view.entry(n).shape) * FLOATS[view.entry(n).dtype] for n in names),
        trainable=moved if op.trained else 0,
        steps=steps,
        seconds=round(steps * SECONDS_PER_STEP + COST * elements * tokens / FLOPS_PER_SECOND, 1),
        memory=MASTER * elements * (6 if op.trained else 5) + _activations(op, view),
        details=_details(op, sets, elements),
    )


def _tokens(op: Unlearn, forget: ItemSet, retain: ItemSet | None) -> float:
    """Tokens that go forward and backward, about."""
    pairs = _mean_tokens(forget)
    if not op.trained:
        return len(forget.items) * pairs + (len(retain.items) * _mean_tokens(retain) if retain is not None else 0)
    text = op.batch / 4 * LONGEST if retain is not None and any(i.kind == "text" for i in retain.items) else 0
    kept = op.batch * _mean_tokens(retain) if retain is not None else 0
    return (op.steps or STEPS) * (op.batch * pairs + kept + text)


def _mean_tokens(items: ItemSet) -> float:
    """Tokens of a row, about; an image counts as LONGEST."""
    sizes = [min(LONGEST, (len(i.prompt or "") + len(i.answer)) / CHARACTERS) if i.image is None else LONGEST for i in items.items]
    return sum(sizes) / len(sizes)


def _details(op: Unlearn, sets: dict[Role, ItemSet], elements: int) -> dict[str, Json]:
    found: dict[str, Json] = {
        "method": op.method,
        "forget": len(sets["forget"].items),
        "retain": len(sets["retain"].items) if "retain" in sets else None,
        "holdout": len(sets["holdout"].items) if "holdout" in sets else None,
        "strength": op.strength,
    }
    if op.trained:
        share = op.keep_ratio if op.method == "wagle" else 1.0
        rate = op.lr if op.lr is not None else usual_rate(elements, share)
        found |= {"objective": op.objective, "lr": rate if op.amount is None else rate * op.amount, "batch": op.batch}
        if op.method == "wagle":
            found |= {"keep_ratio": op.keep_ratio, "mask": op.mask}
    if op.strength == "auto":
        found["auto"] = _auto(op)
    return found


def _auto(op: Unlearn) -> str:
    """What auto will do, in words."""
    target = (
        f"{op.target:g}"
        if op.target is not None
        else f"what guessing gives (1 / classes and two points; by the retain answers, at least {FLOOR:g})"
    )
    keep = f"retain accuracy at least {op.retain_limit:g} of before"
    if not op.trained:
        return f"measures a sample at several strengths and takes the weakest that reaches forget accuracy {target} with {keep}"
    return (
        f"trains at the usual rate, looks every 25 steps, stops when forget accuracy is {target} with {keep}; "
        "up to 4 runs at other rates where that fails. Evaluation suites are not read"
    )


def _activations(op: Unlearn, view: ModelView) -> int:
    """A rough upper estimate, as for training on 128 tokens per row: 24 values of model width per token and block, and the logits."""
    config = view.config or {}
    width = config.get("hidden_size") or config.get("n_embd") or 0
    blocks = config.get("num_hidden_layers") or config.get("n_layer") or 0
    return MASTER * 2 * op.batch * 32 * (24 * width * blocks + 3 * (config.get("vocab_size") or 0))
