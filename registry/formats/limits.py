"""How much a foreign file may ask of us: the numbers, in one frozen record.

The defaults are those of the limits table in the reliability design; `[limits]` in mlc.toml may change any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on untrusted input. Sizes are bytes."""

    header_bytes: int = 16 * MIB  # the format itself allows 100 MB
    json_depth: int = 32  # config, index, tokenizer; a safetensors header has exactly three levels
    tensors_per_file: int = 20_000
    tensors_per_model: int = 100_000
    name_bytes: int = 512
    dimensions: int = 8
    dimension: int = 1 << 40
    elements: int = 1 << 50
    metadata_keys: int = 1_000
    metadata_value_bytes: int = 64 * 1024
    config_bytes: int = MIB
    index_bytes: int = 16 * MIB
    tokenizer_bytes: int = 64 * MIB
    files: int = 10_000
    path_bytes: int = 1_024
    folder_depth: int = 16
    pickle_seconds: int = 600  # the conversion child, wall clock
    pickle_memory: int = 16 << 30  # its address space beyond four times the input


DEFAULT = Limits()
