"""A version as an encoder: transformer, pooling, head. The files are those of sentence-transformers, read as data.

`modules.json` names the parts; `N_Pooling/config.json` says how token states become one vector, `N_Dense` is a linear head, `N_Normalize`
unit length. Without these files an encoder pools by the mean. What sentence-transformers has no part for (BT2) is in `compat_head.*`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...registry.errors import Incompatible
from ..models import load_model, load_tokenizer
from .heads import HEAD_CONFIG, HEAD_WEIGHTS, Head, Linear, load_head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ...registry.view import ModelView

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
HEADED = ("ForCausalLM", "LMHeadModel", "ForSequenceClassification", "ForImageClassification", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the files say: pooling, where the linear head lies, how many tokens are read."""

    pooling: str = "mean"
    dense: str | None = None  # the folder of the linear head
    context: int | None = None


class Encoder(nn.Module):
    """Token ids to vectors. `width` is that of the pooled state, `size` that of what comes out."""

    def __init__(self, body: nn.Module, pooling: str, head: Head | None, width: int) -> None:
        super().__init__()
        self.body, self.pooling, self.head, self.width = body, pooling, head, width

    @property
    def size(self) -> int:
        """Numbers per vector."""
        return self.head.size if self.head is not None else self.width

    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """fp32 [rows, width] from ids and mask, int64 [rows, tokens]."""
        states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "max":
            return states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
        weights = mask[..., None].float()
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1e-9)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """fp32 [rows, size], not normalised."""
        pooled = self.pooled(ids, mask)
        return pooled if self.head is None else self.head(pooled)


def load_encoder(view: ModelView) -> Encoder:
    """The encoder of a view, in evaluation mode, fp32. Raises Incompatible for a model that writes or classifies instead of encoding."""
    return as_encoder(load_model(view, dtype=torch.float32), view)


def as_encoder(model: Any, view: ModelView) -> Encoder:
    """A loaded transformers module with the parts that the view's files name."""
    name = type(model).__name__
    if name.endswith(HEADED):
        raise Incompatible(f"{name} is no encoder of texts", hint="an encoder is a model such as BertModel, with tokenizer.json")
    body = model.base_model if hasattr(model, "base_model") else model
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # a pooler is computed beside the token states and used by none of these parts
    parts = read_parts(view)
    return Encoder(body, parts.pooling, _head(view, parts), int(model.config.hidden_size)).eval()


def read_parts(view: ModelView) -> Parts:
    """What modules.json and the files it names say. Raises Incompatible for a part that is none of ours."""
    modules = _json(view, "modules.json", [])
    pooling, dense, context = "mean", None, _json(view, "sentence_bert_config.json", {}).get("max_seq_length")
    for module in modules:
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Pooling":
            pooling = _pooling(_json(view, f"{path}/config.json", {}))
        elif kind == "Dense" and dense is None:
            dense = path
        elif kind not in ("Transformer", "Normalize"):
            raise Incompatible(
                f"modules.json has a part of type {kind!r}, which is not known here", hint="Transformer, Pooling, Dense, Normalize"
            )
    return Parts(pooling, dense, context if isinstance(context, int) else None)


def _pooling(config: dict[str, Any]) -> str:
    chosen = [name for key, name in POOLINGS.items() if config.get(key)]
    if len(chosen) != 1:
        raise Incompatible(f"the pooling is {' and '.join(chosen) or 'none that is known'}", hint="one of mean, cls, max")
    return chosen[0]


def _head(view: ModelView, parts: Parts) -> Head | None:
    if (said := view.file(HEAD_CONFIG)) is not None:
        return load_head(json.loads(said), view.file(HEAD_WEIGHTS) or b"")
    if parts.dense is None:
        return None
    config = _json(view, f"{parts.dense}/config.json", {})
    if not str(config.get("activation_function", "")).endswith("Identity") or config.get("bias"):
        raise Incompatible("the Dense part has an activation or a bias", hint="a linear head without either can be used")
    return Linear(_dense_weight(view, parts.dense))


def _dense_weight(view: ModelView, folder: str) -> Tensor:
    """From the file as we write it, or from the tensor that an import made of it."""
    data = view.file(f"{folder}/model.safetensors")
    if data is not None:
        from safetensors.torch import load

        return load(data)["linear.weight"].float()
    return view.tensor("linear.weight").float()


def _json(view: ModelView, path: str, default: Any) -> Any:
    data = view.file(path)
    try:
        found = default if data is None else json.loads(data)
    except ValueError:
        raise Incompatible(f"{path} is not valid JSON") from None
    return found if isinstance(found, type(default)) else default


# --- texts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coded:
    """Texts as token ids. `pad` fills short rows; a mask hides what it fills."""

    rows: list[list[int]]
    pad: int

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids and mask, int64 [rows, longest]."""
        width = max(len(self.rows[i]) for i in chosen)
        ids, mask = torch.full((len(chosen), width), self.pad), torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(self.rows[i])] = torch.tensor(self.rows[i])
            mask[row, : len(self.rows[i])] = 1
        return ids, mask


def code(view: ModelView, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None = None) -> Coded:
    """Texts as the encoder reads them, cut to its context."""
    tokenizer = tokenizer or load_tokenizer(view)
    window = (view.config or {}).get("max_position_embeddings")
    limits = [n for n in (read_parts(view).context, window) if isinstance(n, int)]
    how = {"truncation": True, "max_length": min(limits)} if limits else {}
    rows = tokenizer(list(texts), verbose=False, **how)["input_ids"]
    return Coded(rows, int(tokenizer.pad_token_id or 0))  # type: ignore[arg-type]


@torch.no_grad()
def encode(encoder: Encoder, coded: Coded, *, batch_tokens: int = 8192, progress: Any = None) -> Tensor:
    """fp32 [texts, size], in the order of the texts, not normalised. Rows are batched by length; padding changes no row beyond rounding."""
    encoder.eval()
    order = sorted(range(len(coded.rows)), key=lambda i: (-len(coded.rows[i]), i))
    found = torch.empty(len(order), encoder.size)
    done = 0
    while done < len(order):
        chosen = order[done : done + max(1, batch_tokens // max(1, len(coded.rows[order[done]])))]
        found[chosen] = encoder(*coded.batch(chosen)).cpu()
        done += len(chosen)
        if progress is not None:
            progress("encode", done, len(order))
    return found
