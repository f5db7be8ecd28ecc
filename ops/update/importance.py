"""How much each block turns the text that passes through it: the angle between what enters and what leaves, on new and on old text.

The measure of Gromov et al. (2403.17887) with span 1, as LLM-ADE (2404.13028) uses it. Old text is what is replayed; where nothing is,
the model is asked for some. Forward hooks on the blocks, because `output_hidden_states` gives the last state behind the final norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arch import Family
from ..data import Marks, pack, read_corpus
from ..data.duplicates import read_thinned
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


def measure(op: Update, view: ModelView, run: Run) -> Importance:
    """The importance of the view's blocks for `op`. Raises what reading the data raises, and Incompatible."""
    family, blocks = known_blocks(view)
    new, old, old_text = texts(op, view, run)
    with threads(run.threads):
        module = placed(load_model(view, dtype=torch.float32))
        turned = angles(module, family, blocks, new, op.token)
        before = None if old is None else tuple(angles(module, family, blocks, old, op.token))
    return Importance(tuple(turned), before, old_text, op.token, (len(new), 0 if old is None else len(old)))


def texts(op: Update, view: ModelView, run: Run) -> tuple[Tensor, Tensor | None, str | None]:
    """(rows of new text, rows of old text, its name), int64 [n, seq_len] each; None where there is no old text to be had."""
    length = row_length(op, view)
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    new = _some(pack(read_thinned(op.data, op.dedup), core, marks, length, holdout=op.holdout, least=op.batch).train)
    files = [replay.path for replay in op.replays if replay.path is not None]
    if files:
        replayed = [read_corpus(path, role="replay") for path in files]
        parts = [pack(text, core, marks, length, holdout=op.holdout or 0.05).train for text in replayed]
        return new, _some(torch.cat(parts)), ", ".join(text.record.name for text in replayed)
    if marks.first is None:
        run.note("the tokenizer has neither BOS nor EOS, so the model was not asked for old text: blocks were measured on the new one only")
        return new, None, None
    return new, sampled_rows(view, run, count=0, length=length, first=marks.first)[1], "self"


def _some(rows: Tensor) -> Tensor:
    """At most ROWS of them, evenly spaced."""
    return rows if len(rows) <= ROWS else rows[torch.linspace(0, len(rows) - 1, ROWS).round().long()]


@torch.no_grad()
def angles(module: nn.Module, family: Family, blocks: int, rows: Tensor, token: str = "mean") -> list[float]:
    """arccos(cos(h_in, h_out)) / pi of each block, 0 to 1: the mean over rows int64 [n, seq_len], at their last token or over all tokens.

    In fp32, the cosine clamped (arccos is ill-conditioned near 1: half precision would turn small angles into 0); sums in fp64.
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
        for part in rows.split(TOGETHER):
            module(input_ids=part.to(where), use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return [total / len(rows) for total in sums]
