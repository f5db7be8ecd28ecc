"""Method `expand`: new blocks that change nothing at first, and are all that is trained.

The result is built as a view (`ExpandedView`), so it is loaded by the same strict loader as any stored model: block numbers, caches and
per-block settings come out right without touching a live module. Before training, the logits of parent and result are compared on a
probe batch; a difference other than exactly 0 stops the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...registry.errors import CheckFailed
from ...registry.ids import blob_digest
from ...registry.records import TensorEntry
from ..arch import Family, layer_of
from ..base import Change, CopyTensor, SetFile, SetTensor
from ..models import load_model, read_config, slot, state_names, torch_dtype
from .layout import Layout, expandable, expanded_config, expanded_names, is_output, lay_out, sources_for

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

CONFIG = "config.json"
KIND = "expansion-origin"
PROBE_ROWS = 2
RANKING_ROWS = 16


class ExpandedView:
    """The parent with new blocks put in, as a ModelView: tensors are copies or zeros, made when asked for."""

    adapter = False

    def __init__(self, parent: ModelView, family: Family, layout: Layout) -> None:
        self.parent, self.family, self.layout = parent, family, layout
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
        if new and is_output(self.family, source):
            entry = self.parent.entry(source)
            return torch.zeros(entry.shape, dtype=torch_dtype(entry.dtype))
        return self.parent.tensor(source)

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
    """The expanded module in fp32, with gradients for the new blocks only."""

    def __init__(self, op: Update, view: ModelView, run: Run, probe: Tensor) -> None:
        layout = origin_table(op, view, run, probe)
        family, _ = expandable(view)
        self.view = ExpandedView(view, family, layout)
        self.module = load_model(self.view, dtype=torch.float32)  # type: ignore[arg-type]  # a ModelView in all that loading asks
        self.names = state_names(self.module, self.view)  # type: ignore[arg-type]
        fresh = set(layout.new_blocks)
        for name, parameter in self.module.named_parameters():
            place = layer_of(family, self.names.get(name, name))
            parameter.requires_grad_(place is not None and place[0] in fresh)
        run.record("insertion", insertion(view, self.view, probe, op))

    def changes(self) -> Iterator[Change]:
        """SetTensor for the new blocks, CopyTensor for what only got another number, and config.json."""
        trained = {stored: slot(self.module, name) for name, stored in self.names.items()}
        for name, (source, new) in self.view.origin.items():
            if new and isinstance(trained.get(name), nn.Parameter):
                yield SetTensor(name, trained[name].detach().to("cpu", torch_dtype(self.view.entry(name).dtype)), base=source)
            elif name != source:
                yield CopyTensor(name, source)
        yield SetFile(CONFIG, self.view.config_bytes)


def origin_table(op: Update, view: ModelView, run: Run, probe: Tensor) -> Layout:
    """The layout of this run: an artifact, so that check and later transfers know which block came from where.

    probe: rows int64 [n, seq_len] of the new text; read only when blocks are placed by importance.
    """
    family, blocks = expandable(view)
    probe = probe[:RANKING_ROWS]

    def compute() -> bytes:
        angles = angular_distances(view, family, blocks, probe) if op.where == "importance" else None
        sources = sources_for(op.where, blocks, op.expand, rank(angles) if angles else None)
        return json.dumps({"origin": lay_out(blocks, sources).origin, "angular_distances": angles}).encode()

    read = f"/{blob_digest(probe.numpy().tobytes())}" if op.where == "importance" else ""
    stored = json.loads(run.artifact(KIND, f"{view.snapshot_id}/{op.expand}/{op.where}{read}", compute))
    return Layout(tuple((source, new) for source, new in stored["origin"]))


@torch.no_grad()
def insertion(parent: ModelView, result: ExpandedView, probe: Tensor, op: Update) -> dict[str, Any]:
    """Equality evidence: largest |logit difference| on the probe, in the stored dtype. Raises CheckFailed when it is not exactly 0."""
    before = load_model(parent)(input_ids=probe[:PROBE_ROWS], use_cache=False).logits
    after = load_model(result)(input_ids=probe[:PROBE_ROWS], use_cache=False).logits  # type: ignore[arg-type]
    difference = (after.float() - before.float()).abs().max().item()
    if difference != 0:
        raise CheckFailed(
            f"the new blocks changed the model before any training (largest logit difference {difference:.3g})",
            hint="train without --expand; this model's blocks are not plain residual blocks",
        )
    return {
        "max_logit_difference": difference,
        "probe_tokens": before.shape[0] * before.shape[1],
        "dtype": str(before.dtype).removeprefix("torch."),
        "where": op.where,
        "positions": list(result.layout.new_blocks),
        "copies_of": [source for source, new in result.layout.origin if new],
    }


@torch.no_grad()
def angular_distances(view: ModelView, family: Family, blocks: int, rows: Tensor) -> list[float]:
    """Mean over all tokens of arccos(cos(h_in, h_out)) / pi per block, in fp32 (2403.17887 with span 1; LLM-ADE's importance).

    Forward hooks on the blocks, because `output_hidden_states` gives the last state behind the final norm.
    """
    module = load_model(view, dtype=torch.float32)
    angles = [0.0] * blocks

    def hook(number: int) -> Any:
        def measure(_: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = inputs[0] if inputs else kwargs["hidden_states"]
            leaving = output[0] if isinstance(output, tuple) else output
            cosine = nn.functional.cosine_similarity(entering.float(), leaving.float(), dim=-1)
            angles[number] = (cosine.clamp(-1, 1).arccos() / torch.pi).mean().item()

        return measure

    for i in range(blocks):
        block = module.get_submodule((family.prefix + family.block.format(i=i)).rstrip("."))
        block.register_forward_hook(hook(i), with_kwargs=True)
    module(input_ids=rows, use_cache=False)
    return angles


def rank(angles: list[float]) -> list[int]:
    """Blocks by falling angle, the first left out: it rewrites the embedding and would always win."""
    return sorted(range(1, len(angles)), key=lambda i: -angles[i])


def check_old_tensors(before: ModelView, after: ModelView, layout: Layout) -> dict[str, Any]:
    """How many old tensors are the same to the bit under their new names. Raises CheckFailed naming the first that is not."""
    family, _ = expandable(before)
    old = {name: source for name, (source, new) in expanded_names(family, before.names(), layout).items() if not new}
    for name, source in old.items():
        if after.entry(name).digest != before.entry(source).digest:
            raise CheckFailed(f"{source} was to stay as it is, and {name} holds something else")
    return {"old_tensors_unchanged": len(old), "new_tensors": len(after.names()) - len(old)}
