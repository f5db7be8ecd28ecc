"""How much each block turns the text that passes through it: the angle between what enters and what leaves, on new and on old text.

The measure of Gromov et al. (2403.17887) with span 1, as LLM-ADE (2404.13028) uses it. Old text is what is replayed; where nothing is,
the model is asked for some. Forward hooks on the blocks, because `output_hidden_states` gives the last state behind the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arch import Family
from ..data import Marks, Packed, pack, read_corpus
from ..data.duplicates import read_thinned
from ..engine.documents import logits_of, reads_apart
from ..engine.local import placed, threads
from ..models import load_core_tokenizer, load_model, special_tokens
from .growth import Importance
from .layout import known_blocks
from .limits import row_length
from .replay import SPARE, sampled_rows

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

ROWS = SPARE  # of each text: angles are means over thousands of tokens, a few rows are enough
TOGETHER = 8  # rows in one forward


@dataclass(frozen=True, slots=True)
class Text:
    """Rows int64 [n, seq_len], and for each what begins its documents (None: the row is one text), as the update reads them."""

    rows: Tensor
    begins: tuple[int | None, ...]

    @classmethod
    def of(cls, parts: Sequence[Packed]) -> Text:
        """At most ROWS of the training rows of all parts, evenly spaced."""
        rows = torch.cat([part.train for part in parts])
        begins = [part.begin for part in parts for _ in range(len(part.train))]
        chosen = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().long()
        return cls(rows[chosen], tuple(begins[i] for i in chosen.tolist()))

    def turned(self, module: nn.Module, family: Family, blocks: int, token: str) -> tuple[float, ...]:
        """`angles` of every block on this text; documents are read apart by models that can."""
        begin = next((begin for begin in self.begins if begin is not None), None)
        apart = begin is not None and reads_apart(module, begin)
        return tuple(angles(module, family, blocks, self.rows, token, self.begins if apart else ()))


def measure(op: Update, view: ModelView, run: Run) -> Importance:
    """The importance of the view's blocks for `op`. Raises what reading the data raises, and Incompatible."""
    family, blocks = known_blocks(view)
    new, old, old_text = texts(op, view, run)
    with threads(run.threads):
        module = placed(load_model(view, dtype=torch.float32))
        turned = new.turned(module, family, blocks, op.token)
        before = None if old is None else old.turned(module, family, blocks, op.token)
    return Importance(turned, before, old_text, op.token, (len(new.rows), 0 if old is None else len(old.rows)))


def texts(op: Update, view: ModelView, run: Run) -> tuple[Text, Text | None, str | None]:
    """(new text, old text, its name); None where there is no old text to be had."""
    length = row_length(op, view)
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    new = Text.of([pack(read_thinned(op.data, op.dedup), core, marks, length, holdout=op.holdout, least=op.batch)])
    files = [replay.path for replay in op.replays if replay.path is not None]
    if files:
        replayed = [read_corpus(path, role="replay") for path in files]
        parts = [pack(text, core, marks, length, holdout=op.holdout or 0.05) for text in replayed]
        return new, Text.of(parts), ", ".join(text.record.name for text in replayed)
    if marks.first is None:
        run.note("the tokenizer has neither BOS nor EOS, so the model was not asked for old text: blocks were measured on the new one only")
        return new, None, None
    rows = sampled_rows(view, run, count=0, length=length, first=marks.first)[1]
    return new, Text(rows, (None,) * len(rows)), "self"


@torch.no_grad()
def angles(
    module: nn.Module, family: Family, blocks: int, rows: Tensor, token: str = "mean", begins: Sequence[int | None] = ()
) -> list[float]:
    """arccos(cos(h_in, h_out)) / pi of each block, 0 to 1: the mean over rows int64 [n, seq_len], at their last token or over all tokens.

    begins: what begins the documents of each row, for models that read them apart. In fp32, the cosine clamped (arccos is ill-conditioned
    near 1: half precision would turn small angles into 0); sums in fp64.
    """
    sums = [0.0] * blocks

    def hook(number: int) -> Any:
        def take(_: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = inputs[0] if inputs else kwargs["hidden_states"]
            leaving = output[0] if isinstance(output, tuple) else output
            if token == "last":
                entering, leaving = entering[:, -1:], leaving[:, -1:]
            cosine = nn.functional.cosine_similarity(entering.float(), leaving.float(), dim=-1)  # [batch, seq_len or 1]
            sums[number] += (cosine.clamp(-1, 1).arccos() / torch.pi).double().mean(dim=1).sum().item()

        return take

    module.eval()
    where = next(module.parameters()).device
    names = [(family.prefix + family.block.format(i=i)).rstrip(".") for i in range(blocks)]
    hooks = [module.get_submodule(name).register_forward_hook(hook(i), with_kwargs=True) for i, name in enumerate(names)]
    try:
        for start in range(0, len(rows), TOGETHER):
            logits_of(module, rows[start : start + TOGETHER].to(where), begins[start : start + TOGETHER])
    finally:
        for one in hooks:
            one.remove()
    return [total / len(rows) for total in sums]
