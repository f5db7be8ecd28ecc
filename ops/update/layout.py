"""Where new blocks go and what everything is called afterwards. Pure Python: plans, names and configs, no tensor.

Block expansion after LLaMA Pro (Wu et al., 2401.02415): a new block is a copy of the block before it whose two output projections are
zero, so that it adds exactly nothing until it is trained. `stack-side` is the layout of SOLAR (Kim et al., 2312.15166) as DLO (2407.11030)
uses it: the blocks in the middle stand twice, one run behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadParameter, Incompatible
from ..arch import Family, blocks_of, family_of, layer_of, with_layer
from ..arch.configs import edit_json

if TYPE_CHECKING:
    from ...registry.view import ModelView

PLACES = ("interleave", "append", "importance", "stack-side")


@dataclass(frozen=True, slots=True)
class Layout:
    """The origin table: for every block of the result, the parent's block it comes from and whether it is new."""

    origin: tuple[tuple[int, bool], ...]

    @property
    def new_blocks(self) -> tuple[int, ...]:
        """Numbers of the new blocks in the result."""
        return tuple(j for j, (_, new) in enumerate(self.origin) if new)

    def old_index(self) -> dict[int, int]:
        """Parent's block number -> its number in the result."""
        return {source: j for j, (source, new) in enumerate(self.origin) if not new}


def lay_out(blocks: int, sources: Sequence[int]) -> Layout:
    """The layout with a copy of block s behind block s, for every s in `sources` (repetitions allowed)."""
    origin: list[tuple[int, bool]] = []
    for i in range(blocks):
        origin.append((i, False))
        origin += [(i, True)] * list(sources).count(i)
    return Layout(tuple(origin))


def regrown(blocks: int, new: Sequence[int]) -> Layout:
    """The layout of a model that grew from `blocks` blocks, from the numbers of its new ones; what they are copies of is not told."""
    origin: list[tuple[int, bool]] = []
    old = 0
    for number in range(blocks + len(new)):
        origin.append((max(old - 1, 0), True) if number in new else (old, False))
        old += number not in new
    return Layout(tuple(origin))


def spread(blocks: int, count: int) -> tuple[int, ...]:
    """Sources spread evenly, ending at the last block: one new block after each of `count` groups as equal as can be.

    Where `count` divides `blocks` this is LLaMA Pro's interleaving (4 blocks: 1 -> after 3; 2 -> after 1, 3).
    """
    return tuple(-(-k * blocks // count) - 1 for k in range(1, count + 1))


def stack_side(blocks: int, count: int) -> Layout:
    """The `count` blocks in the middle once more behind themselves, as one run. Raises BadParameter for more than there are."""
    if count > blocks:
        raise BadParameter(f"stack-side repeats at most the {blocks} blocks that there are, not {count}", hint="--where interleave")
    low = (blocks - count) // 2
    high = low + count
    once = [(i, False) for i in range(blocks)]
    return Layout((*once[:high], *((i, True) for i in range(low, high)), *once[high:]))


def explicit(where: str) -> tuple[int, ...] | None:
    """The block numbers in `--where 1,3`; None for a named place. Raises BadParameter for anything else."""
    if where in PLACES:
        return None
    parts = where.split(",")
    if not all(p.strip().isdecimal() for p in parts):
        raise BadParameter(f"--where {where!r} is not one of {', '.join(PLACES)}, nor block numbers such as 1,3", hint="--where interleave")
    return tuple(sorted(int(p) for p in parts))


def sources_for(where: str, blocks: int, count: int, ranking: Sequence[int] | None = None) -> tuple[int, ...]:
    """The parent's blocks behind which new ones go. `ranking`: blocks by importance, most important first, for `importance`."""
    numbers = explicit(where)
    if numbers is not None:
        if len(numbers) != count or numbers[-1] >= blocks:
            raise BadParameter(f"--where {where} does not name {count} of the blocks 0 to {blocks - 1}", hint=f"--expand {len(numbers)}")
        return numbers
    if where == "append":
        return (blocks - 1,) * count
    if where == "importance" and ranking is not None:
        if count > len(ranking):
            raise BadParameter(f"importance can place at most {len(ranking)} blocks in this model", hint="--where interleave")
        return tuple(sorted(ranking[:count]))
    return spread(blocks, count)


def layout_for(where: str, blocks: int, count: int, ranking: Sequence[int] | None = None) -> Layout:
    """The layout with `count` new blocks; see `sources_for`. Raises BadParameter."""
    if where == "stack-side":
        return stack_side(blocks, count)
    return lay_out(blocks, sources_for(where, blocks, count, ranking))


def known_blocks(view: ModelView) -> tuple[Family, int]:
    """(family, number of blocks) of a language model whose blocks can be told apart. Raises Incompatible with the reason."""
    family = family_of(view.config)
    if family is None or not family.causal:
        kind = (view.config or {}).get("model_type")
        raise Incompatible(f"blocks can be added to Llama, Mistral, Qwen, GPT-2 and NeoX models; this one is {kind or 'of unknown type'}")
    if view.adapter:
        raise Incompatible("this version is an adapter: blocks are added to whole models", hint="`mlc update` it in full first")
    blocks = blocks_of(family, view.names())
    if not blocks:
        raise Incompatible("the model has no blocks under the names of its family")
    return family, blocks


def expandable(view: ModelView) -> tuple[Family, int]:
    """(family, number of blocks) of a view that can be expanded; raises Incompatible with the reason when it cannot."""
    family, blocks = known_blocks(view)
    for key, value, reason in family.refuses:
        if (view.config or {}).get(key) == value:
            raise Incompatible(f"blocks cannot be added: with {key}, {reason}", hint="`--tune K` trains the blocks that are there")
    _check_complete(family, view, blocks)
    return family, blocks


def _check_complete(family: Family, view: ModelView, blocks: int) -> None:
    """Every block must hold the same tensors, the two output projections among them (mixtures of experts do not)."""
    held: list[set[str]] = [set() for _ in range(blocks)]
    for name in view.names():
        if found := layer_of(family, name):
            held[found[0]].add(found[1])
    for role in ("attn.out", "mlp.out"):
        wanted = family.module(role) + ".weight"
        if any(wanted not in parts for parts in held):
            raise Incompatible(f"blocks cannot be added: not every block has {wanted} (experts and other layouts are not supported)")
    known = tuple(f"{module}." for module, _ in family.roles)
    if odd := sorted({p for parts in held for p in parts if not p.startswith(known) and not p.startswith(("attn.bias", "attn.masked"))}):
        raise Incompatible(f"blocks cannot be added: {odd[0]} is not a tensor of a plain {family.name} block")


def expanded_names(family: Family, names: Sequence[str], layout: Layout) -> dict[str, tuple[str, bool]]:
    """Name in the result -> (name in the parent, lies in a new block)."""
    found: dict[str, tuple[str, bool]] = {}
    for name in names:
        place = layer_of(family, name)
        if place is None:
            found[name] = (name, False)
            continue
        for j, (source, new) in enumerate(layout.origin):
            if source == place[0]:
                found[with_layer(family, name, j)] = (name, new)
    return found


def is_output(family: Family, name: str) -> bool:
    """Whether a tensor is weight or bias of an output projection: zero in a new block (a bias left as it was moves the logits)."""
    place = layer_of(family, name)
    return place is not None and place[1].startswith((family.module("attn.out") + ".", family.module("mlp.out") + "."))


def expanded_config(family: Family, text: str, config: dict[str, Any], effective: dict[str, list[Any]], layout: Layout) -> str:
    """config.json for the result: the block count and every list with one entry per block; all else as it was.

    `effective`: the per-block lists as transformers understands the parent, given in the file or not. A list that is derived from the
    block's number must be written out, or the blocks behind a new one would change their kind. Raises Incompatible for a list of the
    right length that is not known.
    """
    blocks = sum(not new for _, new in layout.origin)
    changes: dict[str, Any] = {key: len(layout.origin) for key in (family.layers_key, "num_hidden_layers") if key in config}
    changes = changes or {family.layers_key: len(layout.origin)}
    for key, values in effective.items():
        changes[key] = [values[source] for source, _ in layout.origin]
    for key, value in config.items():
        if isinstance(value, list) and len(value) == blocks and "layer" in key and key not in changes:
            raise Incompatible(f"blocks cannot be added: config.json has {key} with one entry per block, and its meaning is not known")
    return edit_json(text, changes)
