"""JSON as strangers write it, read strictly: no duplicate keys, no NaN, no lone surrogates, bounded depth and size.

A text that two readers could understand in two ways is refused; nothing here decides what the values mean.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ..errors import BadInputFile
from .limits import DEFAULT, Limits
from .names import shown


class JsonRefused(ValueError):
    """Raised inside JSON hooks; whoever called the decoder turns it into BadInputFile with the path."""


def loads(data: bytes, *, path: str, limit: int, limits: Limits = DEFAULT) -> Any:
    """The value of UTF-8 JSON `data`. Raises BadInputFile naming `path`, with the line where known."""
    if len(data) > limit:
        raise BadInputFile(f"{path} has {len(data)} bytes, more than the {limit} that are read", path=path)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=_constant)
        _check(value, limits.json_depth)
    except json.JSONDecodeError as fault:
        raise BadInputFile(f"{path} is not JSON: {fault.msg} at line {fault.lineno}", path=path, line=fault.lineno) from None
    except (UnicodeDecodeError, JsonRefused) as fault:
        cause = "it is not UTF-8" if isinstance(fault, UnicodeDecodeError) else fault
        raise BadInputFile(f"{path} is not acceptable JSON: {cause}", path=path) from None
    except RecursionError:
        raise BadInputFile(f"{path} is nested deeper than {limits.json_depth} levels", path=path) from None
    except ValueError:
        raise BadInputFile(f"{path} holds a number with too many digits", path=path) from None
    return value


def read_object(data: bytes, *, path: str, limit: int, limits: Limits = DEFAULT) -> dict[str, Any]:
    """As `loads`, and the value must be an object."""
    value = loads(data, path=path, limit=limit, limits=limits)
    if not isinstance(value, dict):
        raise BadInputFile(f"{path} must hold one JSON object", path=path)
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook for `json.loads`: a dict of the pairs, or a refusal when a key comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonRefused(f"the key {shown(twice)} comes twice")
    return found


def _constant(word: str) -> NoReturn:
    raise JsonRefused(f"{word} is not a JSON number")


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise RecursionError
    if isinstance(value, dict):
        for key, item in value.items():
            _text(key)
            _check(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, str):
        _text(value)


def _text(value: str) -> None:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise JsonRefused("a string holds half of a surrogate pair") from None
