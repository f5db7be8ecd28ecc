"""Editing config.json in place: only the values that change are replaced, every other byte stays as its author wrote it."""

from __future__ import annotations

import json
import re
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")


def edit_json(text: str, changes: dict[str, Any]) -> str:
    """`text` (one JSON object) with the top-level keys in `changes` set; a new key goes behind the last one, in the same style.

    Raises ValueError when `text` is not a JSON object.
    """
    spans = _values(text)
    indent = _indent(text)
    for key, (start, end) in sorted(spans.items(), key=lambda item: -item[1][0]):
        if key in changes:
            text = text[:start] + _write(changes[key], indent, "\n" in text[start:end]) + text[end:]
    for key in [k for k in changes if k not in spans]:
        spans = _values(text)
        last = max((end for _, end in spans.values()), default=text.index("{") + 1)
        lead = ("," if spans else "") + ("\n" + " " * indent if indent else " " if spans else "")
        text = text[:last] + f"{lead}{json.dumps(key)}: {_write(changes[key], indent, bool(indent))}" + text[last:]
    return text


def _values(text: str) -> dict[str, tuple[int, int]]:
    """Top-level key -> (start, end) of its value in `text`."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError("not a JSON object")
    found: dict[str, tuple[int, int]] = {}
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError("not a JSON object")
        start = _skip(text, at + 1)
        _, end = decoder.raw_decode(text, start)
        found[key] = (start, end)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "}":
            raise ValueError("not a JSON object")
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _indent(text: str) -> int:
    match = re.search(r"\{\s*\n( +)\"", text)
    return len(match[1]) if match else 0


def _write(value: Any, indent: int, spread: bool) -> str:
    if isinstance(value, list | tuple) and spread and indent:
        inner = ",\n".join(" " * 2 * indent + json.dumps(item) for item in value)
        return f"[\n{inner}\n{' ' * indent}]"
    return json.dumps(value)
