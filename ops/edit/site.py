"""Where an edit writes: the MLP output matrix of a block, seen as W [d1, d0] with hidden = W key, whatever the file's layout.

`editable` answers from names and config alone; `Editable` is the module that runs, with its blocks, keys and hidden states. Layout is
decided by the kind of module, never by shapes: a square Conv1D would be edited the wrong way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadParameter, Incompatible
from ..arch import Family, blocks_of, family_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...registry.view import ModelView
    from .front import Front
    from .prompts import Batch

ROLE = "mlp.out"


def editable(view: ModelView) -> tuple[Family, int]:
    """(family, number of blocks) of a view whose facts can be edited; raises Incompatible with the reason when they cannot."""
    family = family_of(view.config)
    if any(".experts." in name for name in view.names()):
        raise Incompatible("facts cannot be edited in a mixture of experts: a fact's key goes to other experts in other contexts")
    if family is None or not family.causal:
        kind = (view.config or {}).get("model_type")
        raise Incompatible(
            f"facts can be edited in Llama, Mistral, Qwen, GPT-2, GPT-J and NeoX models; this one is {kind or 'of unknown type'}"
        )
    if view.adapter:
        raise Incompatible("this version is an adapter: facts are written into whole models", hint="`mlc update` it in full first")
    blocks = blocks_of(family, view.names())
    missing = [layer for layer in range(blocks) if not view.has(stored_name(family, view, layer))]
    if missing or not blocks:
        raise Incompatible(f"facts cannot be edited: block {missing[0] if missing else 0} has no {family.module(ROLE)}.weight")
    return family, blocks


def stored_name(family: Family, view: ModelView, layer: int) -> str:
    """The stored weight of a block's MLP output: with the base model's prefix, or without where the file has none."""
    name = f"{family.prefix}{family.block.format(i=layer)}{family.module(ROLE)}.weight"
    return name if view.has(name) else name.removeprefix(family.prefix)


def inner_width(family: Family, view: ModelView) -> int:
    """d0: how long a key is."""
    shape = view.entry(stored_name(family, view, 0)).shape
    return shape[0] if family.module(ROLE) in family.transposed else shape[1]


def check_span(span: tuple[int, int], blocks: int) -> None:
    """Raise BadParameter when a block is asked for that the model does not have."""
    if span[1] >= blocks:
        raise BadParameter(f"--layers asks for block {span[1]}; the model has blocks 0 to {blocks - 1}", hint="--layers auto")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one pass saw at the last token of each row's subject: keys by layer [n, d0] in fp32, hidden states by layer [n, d1]."""

    keys: dict[int, Tensor]
    hidden: dict[int, Tensor]


class _Enough(Exception):
    """Ends a forward pass whose later blocks nobody reads."""


class Editable:
    """A language model in fp32 whose MLP output matrices can be read and replaced; it computes in `dtype`."""

    def __init__(self, view: ModelView) -> None:
        import torch

        from ..engine.local import placed
        from ..models import load_model

        self.view = view
        self.family, self.count = editable(view)
        self.module: Any = placed(load_model(view, dtype=torch.float32))
        self.module.requires_grad_(False)
        self.base: Any = self.module.base_model
        self.head: Any = self.module.get_output_embeddings()
        first = self.module.get_submodule(self._path(0))
        self.blocks: Any = self.module.get_submodule(self._path(0).rpartition(".")[0])
        self.device = next(first.parameters()).device
        self.dtype = torch.float32
        self._tuples = False  # whether blocks give tuples: seen when one has run

    def _path(self, layer: int) -> str:
        return (self.family.prefix + self.family.block.format(i=layer)).rstrip(".")

    def out(self, layer: int) -> nn.Module:
        """The module that maps a key to its contribution to the hidden state."""
        return self.module.get_submodule(f"{self._path(layer)}.{self.family.module(ROLE)}")

    def transposed(self, layer: int) -> bool:
        """Whether the stored weight is [d0, d1]: so it is for Conv1D, and for nothing else."""
        from transformers.pytorch_utils import Conv1D

        return isinstance(self.out(layer), Conv1D)

    def weight(self, layer: int) -> Tensor:
        """W [d1, d0] as it is now, float32; a view of the module's own memory."""
        weight: Any = self.out(layer).weight
        return weight.t() if self.transposed(layer) else weight

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Passes in another floating type. Only to wider ones: the way back to fp32 then restores every weight's bits."""
        kept, self.dtype = self.dtype, dtype
        self.module.to(dtype)
        try:
            yield
        finally:
            self.dtype = kept
            self.module.to(kept)

    # --- passes ----------------------------------------------------------------------------------------------

    def observe(self, batch: Batch, *, keys: Sequence[int] = (), hidden: Sequence[int] = ()) -> Seen:
        """Keys and block outputs at each row's last subject token. Blocks behind the last asked layer are not run."""
        import torch

        rows = torch.arange(len(batch.ids), device=self.device)
        at, seen = batch.at.to(self.device), Seen({}, {})
        handles = []
        last = max([*keys, *hidden])
        for layer in keys:

            def key(_: Any, inputs: tuple[Any, ...], layer: int = layer) -> None:
                seen.keys[layer] = inputs[0][rows, at].float().clone()

            handles.append(self.out(layer).register_forward_pre_hook(key))
        for layer in {*hidden, last}:

            def state(_: Any, __: Any, output: Any, layer: int = layer) -> None:
                if layer in hidden:
                    seen.hidden[layer] = first_of(output)[rows, at].to(self.dtype, copy=True)
                if layer == last:
                    raise _Enough

            handles.append(self.blocks[layer].register_forward_hook(state))
        try:
            with torch.no_grad():
                self.base(input_ids=batch.ids.to(self.device), use_cache=False)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def keys_everywhere(self, ids: Tensor, layer: int) -> Tensor:
        """The key of `layer` at every token of ids int64 [n, length], float32 [n * length, d0]."""
        import torch

        kept: list[Tensor] = []

        def key(_: Any, inputs: tuple[Any, ...]) -> None:
            kept.append(inputs[0].float().flatten(0, -2).clone())
            raise _Enough

        handle = self.out(layer).register_forward_pre_hook(key)
        try:
            with torch.no_grad():
                self.base(input_ids=ids.to(self.device), use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()
        return kept[0]

    def entering(self, batch: Batch, layer: int) -> Tensor:
        """Output of block `layer` at every token, [n, width, d1] in `dtype`."""
        import torch

        kept: list[Tensor] = []

        def state(_: Any, __: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)
            kept.append(first_of(output).to(self.dtype, copy=True))
            raise _Enough

        handle = self.blocks[layer].register_forward_hook(state)
        try:
            with torch.no_grad():
                self.base(input_ids=batch.ids.to(self.device), use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()
        return kept[0]

    def logits(self, batch: Batch, *, hidden: Tensor | None = None, layer: int = 0, front: Front | None = None) -> Tensor:
        """Logits at the batch's scored places, [places, vocabulary] in `dtype`.

        With `hidden` [n, width, d1], blocks up to `layer` are not run: their output is taken to be `hidden`, with its gradient. With
        `front`, the batch goes on from it.
        """
        ids, words = batch.ids.to(self.device), {"use_cache": False} if front is None else front.words()
        if hidden is None:
            states = self.base(input_ids=ids, **words)[0]
        else:
            with self._from(layer, hidden):
                states = self.base(input_ids=ids, **words)[0]
        return self.head(states[batch.rows.to(self.device), batch.places.to(self.device)]).to(self.dtype)

    def remembered(self, batch: Batch, hidden: Tensor, layer: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [n, heads, width, d] of every block when block `layer` gives `hidden`; up to that block, which is not run, of
        one head and length 1: they are there to be counted."""
        import torch
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        none = hidden.new_zeros(()).expand(len(hidden), 1, hidden.shape[1], 1)
        with torch.no_grad(), self._from(layer, hidden):
            self.base(input_ids=batch.ids.to(self.device), past_key_values=cache, use_cache=True)
        return [(none, none) if i <= layer else (cache.layers[i].keys, cache.layers[i].values) for i in range(self.count)]

    @contextmanager
    def _from(self, layer: int, hidden: Tensor) -> Iterator[None]:
        """Blocks up to `layer` replaced by one that gives `hidden`; the blocks behind them run as always."""
        kept = [self.blocks[i] for i in range(layer + 1)]
        try:
            for i in range(layer + 1):
                self.blocks[i] = _stand_in((hidden, None) if self._tuples else hidden)
            yield
        finally:
            for i, block in enumerate(kept):
                self.blocks[i] = block


def _stand_in(output: Any) -> Any:
    from torch import nn

    class Given(nn.Module):
        """A block whose output is known already."""

        def forward(self, *_: Any, **__: Any) -> Any:
            return output

    return Given()


def first_of(output: Any) -> Tensor:
    """The hidden state of a block's output: blocks give a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output
