"""From stored tensors to a module that runs, and back to stored names. No directory loader, no remote code, no pickle.

The config is data (already stripped of code references by ModelView), the class is one that the installed transformers knows, and
loading is strict: a name too many or too few is an error, never a guess. torch and transformers are imported on use, so that knowing
about models costs nothing.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ..registry.errors import Incompatible, ShapeMismatch, VocabularyMismatch
from .arch import family_of

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ..registry.view import ModelView

# One implementation, named in the code and not in the model's config, so that a model's numbers do not depend on what happens to be
# installed. `sdpa` on CPU has no atomic additions, forward or backward: equal seeds and thread counts give equal bits (tested), and
# unlike `eager` it never holds the [T, T] scores.
ATTENTION = "sdpa"

NO_CONFIG = "this model has no config.json that transformers understands: it can be stored and compared, not run"

# Tensors that old files carry and today's modules compute themselves.
_COMPUTED = re.compile(
    r"(^|\.)(attn|attention)\.(bias|masked_bias)$|(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)embeddings\.position_ids$"
)
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def load_model(view: ModelView, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The transformers module of `view`, in eval mode, with tensors of its own (a view never lends its memory).

    dtype: what floating tensors are converted to; None keeps each as stored. Raises Incompatible (exit 6) when the model cannot be
    built: no config, a type that transformers does not know, names that do not match (the first ones are named).
    """
    import torch

    module = build(view)
    with torch.no_grad():
        for name, stored in state_names(module, view).items():
            tensor = view.tensor(stored)
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            # Through .data the parameter object stays the same, and with it every tie between embedding and head.
            slot(module, name).data = tensor.to(wanted)
    return module.eval()


def build(view: ModelView) -> PreTrainedModel:
    """A module of the view's class with unset parameters, ties made, shapes checked against what is stored."""
    import torch
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    logging.set_verbosity_error()  # its advice on stderr is for people who call it by hand
    config = read_config(view)
    auto = _auto_class(view, config)
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(view.names()):
        raise Incompatible(f"config.json speaks of {layers} layers, the model has only {len(view.names())} tensors")
    # First without memory: a config that asks for absurd shapes is refused before anything is allocated.
    attention = _attention(auto, config)
    with torch.device("meta"), no_init_weights():
        skeleton = auto.from_config(config, attn_implementation=attention)
    skeleton.tie_weights()
    _check_shapes(skeleton, view)
    with no_init_weights():
        module = auto.from_config(config, attn_implementation=attention)
    module.tie_weights()
    return module


def _attention(auto: Any, config: Any) -> str:
    """ATTENTION, or `eager` where the class does not offer it (a convolutional network has no attention at all)."""
    classes = auto._model_mapping.get(type(config), ())
    offered = all(getattr(c, "_supports_sdpa", True) for c in (classes if isinstance(classes, list | tuple) else (classes,)))
    return ATTENTION if offered else "eager"


def read_config(view: ModelView) -> Any:
    """The transformers config object of the view. Raises Incompatible when there is none that transformers understands."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    data = dict(view.config or {})
    kind = data.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        known = f" (model_type {kind!r})" if kind else ""
        raise Incompatible(NO_CONFIG + known, hint="`mlc show REV --tensors` and `mlc diff A B --weights` work on it")
    if "quantization_config" in data:
        raise Incompatible("the model is quantised: it can be stored and compared, not run", hint="import the unquantised weights")
    try:
        return AutoConfig.for_model(kind, **data)
    except (TypeError, ValueError, StrictDataclassError) as fault:
        raise Incompatible(f"transformers refuses this model's config.json: {_first_line(fault)}") from fault


def _auto_class(view: ModelView, config: Any) -> Any:
    """The Auto class whose table holds the config's architecture; without one, the causal class, then the bare model."""
    import transformers as tf
    from transformers.models.auto import modeling_auto as tables

    kind = config.model_type
    heads = {
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "AutoModelForCausalLM",
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "AutoModelForMaskedLM",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "AutoModelForSequenceClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "AutoModelForTokenClassification",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "AutoModelForQuestionAnswering",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "AutoModelForImageClassification",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "AutoModelForSeq2SeqLM",
        "MODEL_MAPPING_NAMES": "AutoModel",
    }
    wanted = next(iter((view.config or {}).get("architectures") or ()), None)
    for table, auto in heads.items():
        found = getattr(tables, table, {}).get(kind, ())
        if wanted in ((found,) if isinstance(found, str) else tuple(found)):
            return getattr(tf, auto)
    if wanted is not None:
        raise Incompatible(f"transformers knows no {wanted} of type {kind!r}: the model can be stored and compared, not run")
    fallback = "AutoModelForCausalLM" if kind in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "AutoModel"
    return getattr(tf, fallback)


def state_names(module: nn.Module, view: ModelView) -> dict[str, str]:
    """Module state name -> stored name, one entry per stored tensor that the module holds; strict.

    A parameter that is tied needs one stored name; when the file holds several that differ, the config is wrong, and that is said.
    Raises Incompatible naming the first missing or unexpected names.
    """
    wanted = set(module.state_dict().keys())
    mapping: dict[str, str] = {}
    unexpected: list[str] = []
    for stored in view.primary_names():
        name = _module_name(stored, wanted, view.config)
        if name is None or name in mapping:
            if not _COMPUTED.search(stored):
                unexpected.append(stored)
        else:
            mapping[name] = stored
    groups = _ties(module)
    covered = {other for name in mapping for other in groups.get(name, ())}
    missing = sorted(wanted - set(mapping) - covered)
    if missing or unexpected:
        raise Incompatible(_mismatch(module, missing, unexpected))
    for name, stored in mapping.items():
        for other in groups.get(name, ()):
            if other in mapping and view.entry(mapping[other]).digest != view.entry(stored).digest:
                raise Incompatible(f"config.json ties {stored} to {mapping[other]}, but the two tensors differ")
    return mapping


def _module_name(stored: str, wanted: set[str], config: dict[str, Any] | None) -> str | None:
    """The module's name for a stored tensor: as it is, with or without the base model's prefix, or under the family's alias."""
    family = family_of(config)
    spellings = [stored]
    if family is not None:
        for pattern, replacement in family.aliases:
            if (other := re.sub(pattern, replacement, stored)) != stored:
                spellings.append(other)
        spellings += [family.prefix + s for s in spellings] + [s.removeprefix(family.prefix) for s in spellings]
    return next((s for s in spellings if s in wanted), None)


def _ties(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """State name -> the other names of the same parameter object, for tied parameters only."""
    by_object: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        by_object.setdefault(id(parameter), []).append(name)
    return {n: tuple(o for o in group if o != n) for group in by_object.values() if len(group) > 1 for n in group}


def _check_shapes(module: nn.Module, view: ModelView) -> None:
    state = module.state_dict()
    for name, stored in state_names(module, view).items():
        entry, shape = view.entry(stored), tuple(state[name].shape)
        if tuple(entry.shape) != shape:
            raise ShapeMismatch(f"{stored} is stored as {list(entry.shape)}, config.json asks for {list(shape)}")
        if state[name].is_floating_point() and entry.dtype not in _FLOATS:
            raise Incompatible(f"{stored} is stored as {entry.dtype}: such a model can be stored and compared, not run")


def slot(module: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that state name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _mismatch(module: nn.Module, missing: list[str], unexpected: list[str]) -> str:
    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    parts = [f"missing {some(missing)}"] if missing else []
    parts += [f"unexpected {some(unexpected)}"] if unexpected else []
    return f"the tensors do not fit {type(module).__name__}: {'; '.join(parts)}"


def torch_dtype(word: str) -> torch.dtype:
    """The torch type of a safetensors word such as `F32` or `BF16`. KeyError for what no model is computed in."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[word]


def _first_line(fault: BaseException) -> str:
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)


# --- tokenizer -------------------------------------------------------------------------------------------

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


def load_tokenizer(view: ModelView) -> PreTrainedTokenizerFast:
    """The tokenizer of `view`, from the bytes of its tokenizer.json; special tokens from the config files beside it.

    Raises Incompatible when there is none, VocabularyMismatch when its ids go beyond the rows of the embedding.
    """
    from transformers import PreTrainedTokenizerFast

    core = load_core_tokenizer(view)
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special_tokens(view, core))


def load_core_tokenizer(view: ModelView) -> Tokenizer:
    """The `tokenizers.Tokenizer` alone: text to ids without importing transformers. Errors as `load_tokenizer`."""
    from tokenizers import Tokenizer

    data = view.file("tokenizer.json")
    if data is None:
        raise Incompatible("this model has no tokenizer.json", hint="add one to the directory and record it: `mlc commit DIR`")
    try:
        core = Tokenizer.from_str(data.decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise Incompatible("tokenizer.json is not UTF-8") from fault
    except BaseException as fault:
        if type(fault) is not Exception:  # the library raises plain Exception, and nothing narrower, for a malformed file
            raise
        raise Incompatible(f"tokenizer.json cannot be read: {_first_line(fault)}") from fault
    core.no_truncation()
    core.no_padding()
    check_vocabulary(core, view)
    return core


def check_vocabulary(core: Tokenizer, view: ModelView) -> None:
    """Raise VocabularyMismatch when a token id has no row in the embedding (config's vocab_size where it is unknown)."""
    highest = max(core.get_vocab(with_added_tokens=True).values(), default=-1)
    rows = (view.config or {}).get("vocab_size")
    if isinstance(rows, int) and highest >= rows:
        raise VocabularyMismatch(
            f"the tokenizer knows token ids up to {highest}, the model's embedding has {rows} rows",
            hint="use the tokenizer that the model was trained with",
        )


def special_tokens(view: ModelView, core: Tokenizer) -> dict[str, str]:
    """bos_token, eos_token, ... as text, those that the tokenizer has: tokenizer_config.json, else special_tokens_map.json, else the
    ids in config.json."""
    found: dict[str, str] = {}
    for path in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in _json_object(view.file(path)).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key in _SPECIAL and isinstance(text, str):
                found.setdefault(key, text)
    for key in ("bos_token", "eos_token", "pad_token"):
        ident = (view.config or {}).get(f"{key}_id")
        if isinstance(ident, int) and (text := core.id_to_token(ident)) is not None:
            found.setdefault(key, text)
    return {key: text for key, text in found.items() if core.token_to_id(text) is not None}


def _json_object(data: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
