"""Where a LoRA adapter goes and what PEFT calls it. Pure Python: names and a config, no tensor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...registry.errors import Incompatible
from ..arch import Family, blocks_of, family_of
from .options import Adapter

if TYPE_CHECKING:
    from ...registry.view import ModelView

CONFIG = "adapter_config.json"


def adaptable(view: ModelView) -> Family:
    """The family of a view that can carry an adapter; raises Incompatible with the reason when it cannot."""
    family = family_of(view.config)
    if family is None or not family.causal:
        kind = (view.config or {}).get("model_type")
        raise Incompatible(f"adapters go on Llama, Mistral, Qwen, GPT-2 and NeoX models; this one is {kind or 'of unknown type'}")
    if view.adapter:
        raise Incompatible("this version is an adapter already", hint="train from its parent, or `mlc update` it in full to merge it first")
    return family


def target_paths(family: Family, view: ModelView) -> list[str]:
    """Module paths of all projections that the stored names hold, block by block, as transformers spells them."""
    stored = {name.removeprefix(family.prefix) for name in view.names()}
    blocks = range(blocks_of(family, view.names()))
    within = (family.block.format(i=i) + module for i in blocks for module in family.projections)
    return [family.prefix + path for path in within if f"{path}.weight" in stored]


def stored_name(family: Family, view: ModelView, path: str) -> str:
    """The stored weight of a module path: with the base model's prefix, or without where the file has none."""
    name = f"{path}.weight"
    return name if view.has(name) else name.removeprefix(family.prefix)


def tensor_name(path: str, leaf: str) -> str:
    """PEFT's name of a factor."""
    return f"base_model.model.{path}.{leaf}.weight"


def adapter_config(spec: Adapter, family: Family) -> bytes:
    """adapter_config.json: what PEFT needs to put the factors where they belong."""
    config: dict[str, Any] = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": bool(family.transposed),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "target_modules": list(family.projections),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    return (json.dumps(config, indent=2) + "\n").encode()
