"""What the tensors of a model family are called and what they are for: tables, not branches.

Pure Python: `diff --weights` names layers and roles without torch. A family is found by the config's `model_type`; what is not
listed here has no roles, and operations that need them say so. Names are read with and without the base model's prefix, because
hubs hold GPT-2 both as `transformer.h.0...` and as `h.0...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """The naming of one family. Module names are relative to `prefix`, and to `block` where they lie in a layer."""

    name: str
    model_types: tuple[str, ...]
    prefix: str  # of the base model inside the model with a head
    block: str  # of layer {i}, after the prefix
    roles: tuple[tuple[str, str], ...]  # module within a block -> role
    outer: tuple[tuple[str, str], ...]  # module outside the blocks (after the prefix) -> role
    layers_key: str = "num_hidden_layers"  # config key that counts the blocks
    context_key: str | None = "max_position_embeddings"  # config key of the longest sequence
    width_key: str = "hidden_size"
    per_layer: tuple[str, ...] = ()  # config lists with one entry per block
    transposed: tuple[str, ...] = ()  # modules whose weight is [in, out] (Conv1D)
    causal: bool = True
    aliases: tuple[tuple[str, str], ...] = ()  # stored name (regex) -> module name, where files and code disagree
    refuses: tuple[tuple[str, Any, str], ...] = field(default=())  # (config key, value, why blocks may not be renumbered)

    def module(self, role: str) -> str:
        """The module within a block that plays `role` (`attn.out`, `mlp.out`, ...). KeyError when the family has none."""
        return {r: m for m, r in self.roles}[role]

    @property
    def projections(self) -> tuple[str, ...]:
        """The linear maps of attention and MLP within a block: where adapters go."""
        return tuple(m for m, role in self.roles if role.split(".")[0] in ("attn", "mlp") and not role.endswith("norm"))


_LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    prefix="model.",
    block="layers.{i}.",
    roles=(
        ("self_attn.q_proj", "attn.q"),
        ("self_attn.k_proj", "attn.k"),
        ("self_attn.v_proj", "attn.v"),
        ("self_attn.o_proj", "attn.out"),
        ("self_attn.q_norm", "attn.norm"),
        ("self_attn.k_norm", "attn.norm"),
        ("mlp.gate_proj", "mlp.gate"),
        ("mlp.up_proj", "mlp.in"),
        ("mlp.down_proj", "mlp.out"),
        ("input_layernorm", "norm"),
        ("post_attention_layernorm", "norm"),
    ),
    outer=(("embed_tokens", "embedding"), ("norm", "norm.final"), ("lm_head", "head")),
    per_layer=("layer_types", "mlp_layer_types", "no_rope_layers"),
)

_GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    prefix="transformer.",
    block="h.{i}.",
    roles=(
        ("attn.c_attn", "attn.qkv"),
        ("attn.c_proj", "attn.out"),
        ("mlp.c_fc", "mlp.in"),
        ("mlp.c_proj", "mlp.out"),
        ("ln_1", "norm"),
        ("ln_2", "norm"),
    ),
    outer=(("wte", "embedding"), ("wpe", "position"), ("ln_f", "norm.final"), ("lm_head", "head")),
    layers_key="n_layer",
    context_key="n_positions",
    width_key="n_embd",
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    # Measured: renumbering moved logits by 0.19, because the attention scale holds the block's index.
    refuses=(("scale_attn_by_inverse_layer_idx", True, "its attention scale depends on the number of the block"),),
)

_GPTJ = Family(
    name="gptj",
    model_types=("gptj",),
    prefix="transformer.",
    block="h.{i}.",
    roles=(
        ("attn.q_proj", "attn.q"),
        ("attn.k_proj", "attn.k"),
        ("attn.v_proj", "attn.v"),
        ("attn.out_proj", "attn.out"),
        ("mlp.fc_in", "mlp.in"),
        ("mlp.fc_out", "mlp.out"),
        ("ln_1", "norm"),
    ),
    outer=(("wte", "embedding"), ("ln_f", "norm.final"), ("lm_head", "head")),
    layers_key="n_layer",
    context_key="n_positions",
    width_key="n_embd",
)

_NEOX = Family(
    name="neox",
    model_types=("gpt_neox",),
    prefix="gpt_neox.",
    block="layers.{i}.",
    roles=(
        ("attention.query_key_value", "attn.qkv"),
        ("attention.dense", "attn.out"),
        ("mlp.dense_h_to_4h", "mlp.in"),
        ("mlp.dense_4h_to_h", "mlp.out"),
        ("input_layernorm", "norm"),
        ("post_attention_layernorm", "norm"),
    ),
    outer=(("embed_in", "embedding"), ("final_layer_norm", "norm.final"), ("embed_out", "head"), ("lm_head", "head")),
    aliases=((r"^embed_out\.", "lm_head."),),
)

_BERT = Family(
    name="bert",
    model_types=("bert",),
    prefix="bert.",
    block="encoder.layer.{i}.",
    roles=(
        ("attention.self.query", "attn.q"),
        ("attention.self.key", "attn.k"),
        ("attention.self.value", "attn.v"),
        ("attention.output.dense", "attn.out"),
        ("attention.output.LayerNorm", "norm"),
        ("intermediate.dense", "mlp.in"),
        ("output.dense", "mlp.out"),
        ("output.LayerNorm", "norm"),
    ),
    outer=(
        ("embeddings.word_embeddings", "embedding"),
        ("embeddings.position_embeddings", "position"),
        ("embeddings.token_type_embeddings", "embedding.type"),
        ("embeddings.LayerNorm", "norm"),
        ("pooler.dense", "pooler"),
        ("classifier", "head"),
        ("qa_outputs", "head"),
        ("cls", "head"),
    ),
    causal=False,
    aliases=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
)

_VIT = Family(
    name="vit",
    model_types=("vit",),
    prefix="vit.",
    block="encoder.layer.{i}.",
    roles=(
        ("attention.attention.query", "attn.q"),
        ("attention.attention.key", "attn.k"),
        ("attention.attention.value", "attn.v"),
        ("attention.output.dense", "attn.out"),
        ("intermediate.dense", "mlp.in"),
        ("output.dense", "mlp.out"),
        ("layernorm_before", "norm"),
        ("layernorm_after", "norm"),
    ),
    outer=(
        ("embeddings.patch_embeddings.projection", "embedding"),
        ("embeddings.position_embeddings", "position"),
        ("embeddings.cls_token", "embedding.type"),
        ("layernorm", "norm.final"),
        ("pooler.dense", "pooler"),
        ("classifier", "head"),
    ),
    context_key=None,
    causal=False,
    aliases=(
        (r"encoder\.layer\.(\d+)\.attention\.attention\.(query)\.", r"layers.\1.attention.q_proj."),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.(key)\.", r"layers.\1.attention.k_proj."),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.(value)\.", r"layers.\1.attention.v_proj."),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.o_proj."),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.mlp.fc1."),
        (r"encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.mlp.fc2."),
        (r"encoder\.layer\.(\d+)\.layernorm", r"layers.\1.layernorm"),
    ),
)

FAMILIES: tuple[Family, ...] = (_LLAMA, _GPT2, _GPTJ, _NEOX, _BERT, _VIT)

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
_BLOCKS = {family.name: re.compile(re.escape(family.block).replace(r"\{i\}", r"(\d+)")) for family in FAMILIES}
_ANY_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def family_of(config: dict[str, Any] | None) -> Family | None:
    """The family of a config by its `model_type`; None when it is not in the tables."""
    return _BY_TYPE.get((config or {}).get("model_type", ""))


def bare(family: Family, name: str) -> str:
    """`name` without the base model's prefix, which files carry or not."""
    return name.removeprefix(family.prefix)


def layer_of(family: Family, name: str) -> tuple[int, str] | None:
    """(block number, rest of the name) of a tensor that lies in a block; None for the others."""
    match = _BLOCKS[family.name].match(bare(family, name))
    return (int(match[1]), bare(family, name)[match.end() :]) if match else None


def with_layer(family: Family, name: str, layer: int) -> str:
    """The name of the same tensor of another block; keeps the prefix as the file writes it."""
    found = layer_of(family, name)
    if found is None:
        raise ValueError(f"{name} lies in no block")
    prefix = family.prefix if name.startswith(family.prefix) else ""
    return prefix + family.block.format(i=layer) + found[1]


def role_of(family: Family | None, name: str) -> tuple[int | None, str]:
    """(layer or None, role) of a tensor. Roles: embedding, position, attn.{q,k,v,qkv,out,norm}, mlp.{gate,in,out}, norm,
    norm.final, head, pooler, other. A family that is not known gives the layer where the name shows one, and `other`."""
    if family is None:
        match = _ANY_LAYER.search(name)
        return (int(match[1]) if match else None), "other"
    found = layer_of(family, name)
    if found is not None:
        return found[0], _lookup(family.roles, found[1])
    return None, _lookup(family.outer, bare(family, name))


def _lookup(table: Iterable[tuple[str, str]], name: str) -> str:
    for module, role in table:
        if name == module or name.startswith(module + "."):
            return role
    return "other"


def blocks_of(family: Family, names: Iterable[str]) -> int:
    """How many blocks the names hold: the highest block number plus one."""
    return max((found[0] + 1 for found in (layer_of(family, n) for n in names) if found), default=0)
