"""The element types the registry stores: safetensors words, their codes on disk, sizes, and the limits of a shape."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadParameter

MAX_DIMS = 8
MAX_DIM = 1 << 40
MAX_ELEMENTS = 1 << 50

# word -> (code on disk, bytes of an item, name in torch). Codes are for ever: append, never renumber.
_WORDS: dict[str, tuple[int, int, str]] = {
    "F64": (1, 8, "float64"),
    "F32": (2, 4, "float32"),
    "F16": (3, 2, "float16"),
    "BF16": (4, 2, "bfloat16"),
    "F8_E4M3": (5, 1, "float8_e4m3fn"),
    "F8_E5M2": (6, 1, "float8_e5m2"),
    "I64": (7, 8, "int64"),
    "I32": (8, 4, "int32"),
    "I16": (9, 2, "int16"),
    "I8": (10, 1, "int8"),
    "U8": (11, 1, "uint8"),
    "BOOL": (12, 1, "bool"),
    "U16": (13, 2, "uint16"),
    "U32": (14, 4, "uint32"),
    "U64": (15, 8, "uint64"),
    # Rare types are coded as the integers of their bits: they are stored, compared and written out, not measured.
    "C64": (16, 8, "int64"),
    "F8_E8M0": (17, 1, "uint8"),
    "F8_E4M3FNUZ": (18, 1, "uint8"),
    "F8_E5M2FNUZ": (19, 1, "uint8"),
    "F4": (20, 1, "uint8"),
    "F6_E2M3": (21, 1, "uint8"),
    "F6_E3M2": (22, 1, "uint8"),
}
_NARROW = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits of an element, where that is no whole number of bytes
MEASURED = frozenset(word for word, (code, _, _) in _WORDS.items() if code < 16)  # types whose elements are numbers to `distance.stats`
CODES = {word: code for word, (code, _, _) in _WORDS.items()}
WORDS = {code: word for word, code in CODES.items()}


def item_size(word: str) -> int:
    """Bytes of one element, or of the unit that several narrow ones share. Raises BadParameter for a type the registry does not store."""
    try:
        return _WORDS[word][1]
    except KeyError:
        raise BadParameter(f"elements of type {word!r} cannot be stored", hint=f"known types: {', '.join(_WORDS)}") from None


def torch_name(word: str) -> str:
    """The attribute of torch that names this element type."""
    item_size(word)
    return _WORDS[word][2]


def byte_size(word: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor. Raises BadParameter when the shape is beyond the registry's limits."""
    if len(shape) > MAX_DIMS or any(not 0 <= side < MAX_DIM for side in shape):
        raise BadParameter(f"a tensor of shape {list(shape)} is beyond the limits: {MAX_DIMS} dimensions, each below 2^40")
    elements = 1
    for side in shape:
        elements *= side
    if elements >= MAX_ELEMENTS:
        raise BadParameter(f"a tensor of {elements} elements is beyond the limit of 2^50")
    if (elements * _NARROW.get(word, 8)) % 8:
        raise BadParameter(f"a {word} tensor of shape {list(shape)} does not end at a byte")
    return elements * _NARROW[word] // 8 if word in _NARROW else elements * item_size(word)


# Codecs, as written in records and block tables. For ever: append, never renumber.
RAW, ZSTD, CONSTANT, PLANES, SPARSE, DENSE, FORECAST, DERIVED = range(8)
CODECS = {
    "raw": RAW,
    "zstd": ZSTD,
    "constant": CONSTANT,
    "planes": PLANES,
    "sparse": SPARSE,
    "dense": DENSE,
    "forecast": FORECAST,
    "derived": DERIVED,  # of a whole object, never of a block: its base is a recipe, which names the tensors it is a function of
}
DELTAS = (SPARSE, DENSE, FORECAST)  # need their base to be read
