"""Configuration files of models: data, never instructions. What would make a loader run or fetch code is taken out.

The file itself is kept byte for byte; only the parsed view that operations see is sanitised.
"""

from __future__ import annotations

from typing import Any

from .limits import DEFAULT, Limits
from .strict_json import read_object

CONFIGS = {"config.json", "generation_config.json", "adapter_config.json"}
TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}

# Keys that name a class, a kernel, a quantiser or a repository to fetch from, at any depth.
_ASK_FOR_CODE = {"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision"}
_NAME_A_PART = {
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "attn_implementation_internal",
    "_attn_implementation_autoset", "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "use_kernels", "kernel_config", "use_pretrained_backbone", "quantization_config", "compression_config", "quantizer_class",
    "transformers_weights",
}  # fmt: skip


def asks_for_code(value: Any) -> list[str]:
    """The keys, at any depth, that ask a loader to run code or to fetch a part from elsewhere; sorted."""
    if isinstance(value, dict):
        own = {key for key, item in value.items() if key in _ASK_FOR_CODE and item not in (None, False, {}, [])}
        return sorted(own.union(*(asks_for_code(item) for item in value.values())))
    if isinstance(value, list):
        return sorted(set().union(*(asks_for_code(item) for item in value)))
    return []


def sanitised(value: Any) -> Any:
    """A copy of a parsed config without the keys that name code, kernels, quantisers or repositories."""
    if isinstance(value, dict):
        return {key: sanitised(item) for key, item in value.items() if key not in _ASK_FOR_CODE | _NAME_A_PART}
    if isinstance(value, list):
        return [sanitised(item) for item in value]
    return value


def parse(path: str, data: bytes, limits: Limits = DEFAULT) -> dict[str, Any] | None:
    """The parsed content of a config or tokenizer file, None for any other. Raises BadInputFile."""
    name = path.rsplit("/", 1)[-1]
    if name in CONFIGS:
        return read_object(data, path=path, limit=limits.config_bytes, limits=limits)
    if name in TOKENIZERS:
        return read_object(data, path=path, limit=limits.tokenizer_bytes, limits=limits)
    return None
