"""Method `expand`: new blocks, and old ones that are chosen, are all that is trained.

The result is built as a view (`ExpandedView`), so it is loaded by the same strict loader as any stored model: block numbers, caches and
per-block settings come out right without touching a live module. Before training, the logits of parent and result are compared on a
probe batch; where new blocks are to change nothing at first (`zeros`), a difference other than exactly 0 stops the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...registry.errors import CheckFailed
from ...registry.ids import record_digest
from ...registry.records import TensorEntry, canonical
from ..arch import Family, layer_of
from ..base import Change, CopyTensor, SetFile, SetTensor
from ..data.corpus import read_corpus
from ..models import load_model, read_config, slot, state_names, torch_dtype
from .growth import Growth, choose
from .importance import measure
from .inits import initial
from .layout import Layout, expandable, expanded_config, expanded_names, known_blocks
from .picture import block_facts

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

CONFIG = "config.json"
KIND = "expansion-origin"
PROBE_ROWS = 2


class ExpandedView:
    """The parent with new blocks put in, as a ModelView: their tensors are made when asked for (see `inits`)."""

    adapter = False

    def __init__(self, parent: ModelView, family: Family, layout: Layout, init: str = "zeros", seed: int = 0) -> None:
        self.parent, self.family, self.layout, self.init, self.seed = parent, family, layout, init, seed
        self.snapshot, self.snapshot_id = parent.snapshot, parent.snapshot_id
        self.origin = expanded_names(family, parent.names(), layout)
        text = (parent.file(CONFIG) or b"").decode("utf-8")
        edited = expanded_config(family, text, json.loads(text), _lists(parent, family), layout)
        self.config_bytes = edited.encode("utf-8")
        was, now = json.loads(text), json.loads(edited)
        # What was stripped from the parent's config stays away: only the edited keys are taken over.
        self.config: dict[str, Any] = {**(parent.config or {}), **{k: v for k, v in now.items() if was.get(k) != v}}

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.origin))

    def primary_names(self) -> tuple[str, ...]:
        chosen = set(self.parent.primary_names())
        return tuple(sorted(name for name, (source, _) in self.origin.items() if source in chosen))

    def has(self, name: str) -> bool:
        return name in self.origin

    def entry(self, name: str) -> TensorEntry:
        return replace(self.parent.entry(self.origin[name][0]), name=name)

    def tensor(self, name: str) -> Tensor:
        source, new = self.origin[name]
        return initial(self.parent, self.family, source, name, self.init, self.seed) if new else self.parent.tensor(source)

    def file(self, path: str) -> bytes | None:
        return self.config_bytes if path == CONFIG else self.parent.file(path)


def _lists(parent: ModelView, family: Family) -> dict[str, list[Any]]:
    """Per-block lists as transformers understands the parent, those that are written in its file or not all alike."""
    config, given = read_config(parent), parent.config or {}
    blocks = config.num_hidden_layers
    found = {}
    for key in family.per_layer:
        values = getattr(config, key, None)
        if isinstance(values, list) and len(values) == blocks and (given.get(key) is not None or len(set(map(str, values))) > 1):
            found[key] = values
    return found


class Expand:
    """The module in fp32 with the new blocks put in, and gradients for them and for the old blocks that are tuned."""

    def __init__(self, op: Update, view: ModelView, run: Run, probe: Tensor) -> None:
        growth = growth_of(op, view, run)
        family, _ = known_blocks(view)
        self.parent, self.grown = view, bool(growth.layout.new_blocks)
        expanded = ExpandedView(view, family, growth.layout, op.init, run.seed) if self.grown else None
        self.view: ModelView = view if expanded is None else expanded  # type: ignore[assignment]  # a ModelView in all that loading asks
        self.origin = {name: (name, False) for name in view.names()} if expanded is None else expanded.origin
        self.module = load_model(self.view, dtype=torch.float32)
        self.names = state_names(self.module, self.view)
        trained = growth.trained()
        for name, parameter in self.module.named_parameters():
            place = layer_of(family, self.names.get(name, name))
            parameter.requires_grad_(place is not None and place[0] in trained)
        for key, value in block_facts(op, growth).items():
            run.record(key, value)
        if expanded is not None:
            facts = insertion(view, expanded, probe, op)
            run.record("insertion", facts)
            if not facts["keeps_function"]:
                moved = facts["max_logit_difference"]
                run.note(f"--init {op.init} changes the model before any training (logits by up to {moved:.3g}); zeros would not")

    def changes(self) -> Iterator[Change]:
        """SetTensor for what was trained, CopyTensor for what only got another number, and config.json where blocks were added."""
        held = {stored: slot(self.module, name) for name, stored in self.names.items()}
        for name, (source, new) in self.origin.items():
            parameter = held.get(name)
            if isinstance(parameter, nn.Parameter) and (new or parameter.requires_grad):
                yield SetTensor(name, parameter.detach().to("cpu", torch_dtype(self.view.entry(name).dtype)), base=source)
            elif name != source:
                yield CopyTensor(name, source)
        if self.grown:
            yield SetFile(CONFIG, self.view.file(CONFIG))


def growth_of(op: Update, view: ModelView, run: Run) -> Growth:
    """The plan of this run: an artifact, so that check, later transfers and a resumed run know the same one.

    Raises BadParameter and Incompatible where the model or the options do not allow it.
    """
    _, blocks = expandable(view) if op.grows else known_blocks(view)

    def compute() -> bytes:
        found = measure(op, view, run) if op.measures_blocks else None
        return json.dumps(choose(op, blocks, found).to_json()).encode()

    return Growth.from_json(json.loads(run.artifact(KIND, f"{view.snapshot_id}/{_decided_by(op, run)}", compute)))


def _decided_by(op: Update, run: Run) -> str:
    """A digest of everything that the plan is a function of, beside the model."""
    asked: list[Any] = [op.expand, op.where, op.tune, op.source]
    if op.measures_blocks:
        files = [op.data, *(replay.path for replay in op.replays if replay.path is not None)]
        digests = [read_corpus(path).record.digest for path in files]
        asked += ["apart", op.rank, op.token, op.seq_len, op.batch, op.holdout, op.dedup, run.seed, *digests]
    return record_digest("mlc.growth.v1", canonical(asked))


@torch.no_grad()
def insertion(parent: ModelView, result: ExpandedView, probe: Tensor, op: Update) -> dict[str, Any]:
    """How new blocks change the model before training: largest |logit difference| on the probe, in the stored dtype.

    For `zeros` that is evidence of equality: CheckFailed when it is not exactly 0. The other ways change the function by design.
    """
    before = load_model(parent)(input_ids=probe[:PROBE_ROWS], use_cache=False).logits
    after = load_model(result)(input_ids=probe[:PROBE_ROWS], use_cache=False).logits  # type: ignore[arg-type]
    difference = (after.float() - before.float()).abs().max().item()
    if difference != 0 and op.init == "zeros":
        raise CheckFailed(
            f"the new blocks changed the model before any training (largest logit difference {difference:.3g})",
            hint="train without --expand; this model's blocks are not plain residual blocks",
        )
    return {
        "init": op.init,
        "keeps_function": op.init == "zeros",
        "max_logit_difference": difference,
        "probe_tokens": before.shape[0] * before.shape[1],
        "dtype": str(before.dtype).removeprefix("torch."),
        "where": op.where,
        "positions": list(result.layout.new_blocks),
        "copies_of": [source for source, new in result.layout.origin if new],
    }


def check_old_tensors(before: ModelView, after: ModelView, growth: Growth) -> dict[str, Any]:
    """How many frozen tensors are the same to the bit under their new names. Raises CheckFailed naming the first that is not."""
    family, _ = known_blocks(before)
    tuned = set(growth.tuned)
    origin = expanded_names(family, before.names(), growth.layout)
    old = {name: source for name, (source, new) in origin.items() if not new and _block(family, source) not in tuned}
    for name, source in old.items():
        if after.entry(name).digest != before.entry(source).digest:
            raise CheckFailed(f"{source} was to stay as it is, and {name} holds something else")
    counts = {"old_tensors_unchanged": len(old), "new_tensors": len(after.names()) - len(before.names())}
    return {**counts, "tuned_tensors": len(before.names()) - len(old)} if tuned else counts


def _block(family: Family, name: str) -> int | None:
    place = layer_of(family, name)
    return None if place is None else place[0]
