"""PEFT adapters: which tensors of a base they change, and how. Names, shapes and numbers only; no tensor is read here.

LoRA: W' = W + scale * B @ A with scale = alpha / r, or alpha / sqrt(r) for rsLoRA (Hu et al. 2021; Kalajdzievski 2023). The names are those
that PEFT writes: `base_model.model.<module>.lora_A.weight`. Other kinds are stored like any file and refused where they would be merged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ShapeMismatch
from .names import shown

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?")
# Options that change the arithmetic or the base itself; a merge that ignored one would be silently wrong.
_CHANGES_MEANING = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "monteclora_config", "kasa_config", "arrow_config", "megatron_config",
)  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "milora")  # these initialisations subtract from the base's own weights


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one tensor: `up` @ `down` * scale, the adapter's tensors by name.

    `transposed` says that both factors are to be read transposed and swapped: the stored weight is [in, out].
    """

    up: str
    down: str
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class MergePlan:
    """How an adapter changes its base: tensors that are replaced (or new), and terms that are added afterwards."""

    replaced: dict[str, str]  # name in the result -> name in the adapter
    added: dict[str, LowRank]  # name in the base -> the term


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Why this adapter cannot be merged, as the end of a sentence; None when it can."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return f"its type is {shown(kind)}, and only LORA can be merged"
    for option in _CHANGES_MEANING:
        if config.get(option) not in (None, False, [], {}):
            return f"it uses {option}, which is not supported"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return f"it was started with {shown(start)}, which also changed its base"
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_literal(key) is not None for key in patterns):
        return "its alpha_pattern is not a table of plain module names"
    if not all(_is_number(value) for value in (config.get("lora_alpha", 8), *patterns.values())):
        return "its lora_alpha is not a number"
    return None


def plan_merge(config: Mapping[str, Any], adapter: Shapes, base: Shapes) -> MergePlan:
    """Match the adapter's tensors to the base's. Only for a config that `unsupported` lets pass.

    Raises ShapeMismatch for a target that the base does not have, or of other sides.
    """
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in sorted(adapter):
        plain = name.removeprefix(_PREFIX)
        if match := _FACTOR.fullmatch(plain):
            factors.setdefault(match[1].removesuffix(".base_layer"), {})[match[2]] = name
        else:
            replaced |= _replacement(plain, name, config, adapter, base)
    added = dict(_term(module, found, config, adapter, base) for module, found in factors.items())
    return MergePlan(replaced, added)


def locate(name: str, base: Collection[str]) -> str | None:
    """The base's name for a tensor that the adapter calls `name`.

    A file saved from the bare model lacks the head's prefix (`bert.encoder...` against `encoder...`), so one leading part may be missing on
    either side; anything ambiguous is no match.
    """
    if name in base:
        return name
    shorter = name.partition(".")[2]
    if shorter and shorter in base:
        return shorter
    longer = [candidate for candidate in base if candidate.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else None


def _replacement(plain: str, name: str, config: Mapping[str, Any], adapter: Shapes, base: Shapes) -> dict[str, str]:
    plain = plain.replace(".modules_to_save.", ".").replace(".base_layer.", ".").replace(".original_module.", ".")
    target = locate(plain, base)
    if target is None:
        kept = config.get("modules_to_save")
        parts = plain.split(".")
        if isinstance(kept, list) and any(isinstance(module, str) and module.split(".")[-1] in parts for module in kept):
            return {plain: name}  # a new head: the base never had one
        raise ShapeMismatch(
            f"the adapter holds {shown(name)}, and its base has no tensor of that place", hint="import it with the base it was made for"
        )
    if tuple(adapter[name]) != tuple(base[target]):
        raise _misfit(name, adapter[name], target, base[target])
    return {target: name}


def _term(module: str, found: dict[str, str], config: Mapping[str, Any], adapter: Shapes, base: Shapes) -> tuple[str, LowRank]:
    embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
    down, up = (found.get("lora_embedding_A"), found.get("lora_embedding_B")) if embedding else (found.get("lora_A"), found.get("lora_B"))
    if down is None or up is None:
        raise ShapeMismatch(f"the adapter holds only one of the two factors of {shown(module)}", hint="save the adapter again")
    target = locate(f"{module}.weight", base)
    if target is None:
        raise ShapeMismatch(
            f"the adapter changes {shown(module)}, and its base stores no such weight", hint="import it with the base it was made for"
        )
    transposed = embedding or config.get("fan_in_fan_out") is True
    _check_sides(up, down, target, transposed, adapter, base)
    return target, LowRank(up, down, _scale(config, module, adapter[down][0]), transposed)


def _check_sides(up: str, down: str, target: str, transposed: bool, adapter: Shapes, base: Shapes) -> None:
    rows, columns, weight = list(adapter[up]), list(adapter[down]), list(base[target])
    fits = len(rows) >= 2 and len(columns) >= 2 and len(rows) == len(columns) and rows[1] == columns[0] > 0 and set(rows[2:]) <= {1}
    if fits and len(rows) == 2:
        made = [rows[0], columns[1]]
        fits = weight == (made[::-1] if transposed else made)
    elif fits:  # a convolution: [out, r, 1, 1] after [r, in, k, k]
        fits = weight == [rows[0], *columns[1:]]
    if not fits:
        raise _misfit(f"{up} {rows} x {down}", columns, target, weight)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)
    for key, value in (config.get("alpha_pattern") or {}).items():
        literal = _literal(key)
        if module == literal or (not key.startswith("^") and module.endswith(f".{literal}")):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _literal(key: object) -> str | None:
    """A pattern that is a plain module name; real regular expressions from a stranger are never run."""
    plain = str(key).removeprefix("^").replace("\\.", ".")
    return plain if re.fullmatch(r"[A-Za-z0-9_.-]+", plain) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def _misfit(name: str, got: Sequence[int], target: str, want: Sequence[int]) -> ShapeMismatch:
    return ShapeMismatch(
        f"the adapter's {shown(name)} of shape {list(got)} does not fit {shown(target)} of shape {list(want)}",
        hint="import it with the base it was made for",
    )
