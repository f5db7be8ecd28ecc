"""Items: the records that a model is to forget, to keep, or was never shown. Read with line numbers; pure Python.

JSONL rows hold `text`, or `prompt`/`question` with `answer`/`completion`, or `text`/`image` with `label`; a `.toml` file names a suite;
`.txt` is one running text (to keep or to compare with, not to forget: nothing in it can be named). What is wrong is said with file and
line and never with the text, because that text may be the very thing that must not be found in a log.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...registry.errors import BadInputFile
from ...registry.ids import blob_digest
from ...registry.records import canonical
from ..evaluate.suite import Suite, load_suite
from .corpus import ANSWERS, PROMPTS, join
from .files import read_bytes

Role = Literal["forget", "retain", "holdout", "anchor"]
ROWS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Item:
    """One record. Without prompt, image and label it is plain text in `answer`, of which every token counts."""

    line: int
    prompt: str | None
    answer: str
    image: Any | None = None
    label: int | str | None = None

    @property
    def kind(self) -> Literal["text", "pair", "label", "image"]:
        """What sort of record this is: plain text, prompt and answer, text with a class, image with a class."""
        if self.image is not None:
            return "image"
        if self.label is not None:
            return "label"
        return "text" if self.prompt is None else "pair"

    def normal(self) -> bytes:
        """The form in which two records are compared: NFC with white space collapsed, prompt and answer joined; else canonical JSON."""
        if self.image is not None:
            return canonical({"image": self.image, "label": self.label})
        if self.label is not None:
            return canonical({"text": _plain(self.prompt or ""), "label": self.label})
        return _plain(self.answer if self.prompt is None else join(self.prompt, self.answer)).encode()


@dataclass(frozen=True, slots=True)
class ItemSet:
    """All records of one file. `digest` is BLAKE3 of its bytes (of settings and data for a suite)."""

    items: tuple[Item, ...]
    name: str  # base name
    role: Role
    digest: str
    bytes: int
    path: str = ""  # as given, for messages
    payload: bytes = field(default=b"", repr=False, compare=False)  # the file's bytes: what a keyed digest is made of

    def bad(self, line: int | None, reason: str, hint: str | None = None) -> BadInputFile:
        """The complaint about one line of this file; never holds its text."""
        return _bad(self.path or self.name, line, reason, hint)


def read_items(path: str | Path, role: Role) -> ItemSet:
    """The records in `path`. Raises InputNotFound, BadRecipe (a suite's settings) or BadInputFile with `path` and `line`."""
    place = Path(path)
    if place.suffix.lower() == ".toml":
        found = _suite(load_suite(place), place, role)
    else:
        data = read_bytes(place, kind="a file of records", give="a .jsonl file")
        items = _running(_utf8(data, place), place, role) if place.suffix.lower() not in ROWS else _rows(_utf8(data, place), place)
        found = ItemSet(items, place.name, role, blob_digest(data), len(data), str(path), data)
    if not found.items:
        raise BadInputFile(f"{path} is empty: the {role} set needs at least one record", hint=_EXAMPLE, path=str(path))
    if role == "forget":
        _check_unique(found)
    return found


def check_apart(forget: ItemSet, other: ItemSet) -> None:
    """Raise BadInputFile naming both files and lines when a record to forget is also in `other`."""
    lines = {item.normal(): item.line for item in reversed(other.items)}
    shared = [(item.line, lines[key]) for item in forget.items if (key := item.normal()) in lines]
    if shared:
        here, there = shared[0]
        raise BadInputFile(
            f"{len(shared)} record{'s' if len(shared) > 1 else ''} of {forget.path or forget.name} are also in {other.path or other.name}, "
            f"first line {here} there as line {there}",
            hint=f"a record cannot be forgotten and be in the {other.role} set: remove it from one of them",
            path=forget.path or forget.name,
            line=here,
        )


# --- what a file may hold --------------------------------------------------------------------------------

_EXAMPLE = 'every line holds one JSON object, for example {"prompt": "...", "answer": "..."} or {"text": "..."}'


def _rows(text: str, path: Path) -> tuple[Item, ...]:
    # Only \n ends a line: splitlines() would also break at U+2028, which is legal inside a JSON string.
    lines = enumerate(text.split("\n"), start=1)
    return tuple(_item(_object(line, path, number), path, number) for number, line in lines if line.strip())


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=_no_constant)
        if "\\ud" in line.lower():  # half a surrogate pair, which no file can hold
            json.dumps(row, ensure_ascii=False).encode()
    except RecursionError as fault:
        raise _bad(path, number, "JSON nested too deeply") from fault
    except ValueError as fault:
        # The fault itself would quote the line: it is not chained.
        reason = getattr(fault, "msg", "a value that JSON cannot hold")
        raise _bad(path, number, f"not valid JSON ({reason}, column {getattr(fault, 'colno', 1)})") from None
    if not isinstance(row, dict):
        raise _bad(path, number, "expected a JSON object")
    return row


def _item(row: dict[str, Any], path: Path, line: int) -> Item:
    if "label" in row:
        return _labelled(row, path, line)
    if "text" in row:
        return Item(line, None, _words(row, "text", path, line))
    prompt = next((key for key in PROMPTS if key in row), None)
    answer = next((key for key in ANSWERS if key in row), None)
    if prompt is None or answer is None:
        missing = "`text` and no `prompt`" if prompt is None and answer is None else "`prompt`" if prompt is None else "`answer`"
        raise _bad(path, line, f"the field is missing: this row has no {missing}")
    return Item(line, _words(row, prompt, path, line), _words(row, answer, path, line))


def _labelled(row: dict[str, Any], path: Path, line: int) -> Item:
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise _bad(path, line, "`label` must be a class number or a class name")
    if "image" in row:
        if not is_image(row["image"]):
            raise _bad(path, line, "`image` must be numbers, flat or as nested rows of equal length")
        return Item(line, None, "", row["image"], label)
    if "text" not in row:
        raise _bad(path, line, "the field is missing: a row with a `label` needs `text` or `image`")
    return Item(line, _words(row, "text", path, line), "", None, label)


def _words(row: dict[str, Any], key: str, path: Path, line: int) -> str:
    if not isinstance(row[key], str):
        raise _bad(path, line, f"`{key}` is not a string")
    if not row[key].strip():
        raise _bad(path, line, f"`{key}` is empty")
    return row[key]


def _running(text: str, path: Path, role: Role) -> tuple[Item, ...]:
    if role == "forget":
        raise BadInputFile(f"{path} is one running text: a forget set names its records", hint=_EXAMPLE, path=str(path))
    return (Item(1, None, text),) if text.strip() else ()


def _suite(suite: Suite, path: Path, role: Role) -> ItemSet:
    try:
        examples = suite.examples()
    except BadInputFile as fault:
        # What the suite says may quote the row: only the place is passed on.
        raise _bad(suite.data, fault.details.get("line"), "this row does not fit the suite", f"see `mlc eval --suite {path}`") from None
    numbers = [n for n, line in enumerate(suite.payload.decode("utf-8-sig").split("\n"), 1) if line.strip()]
    if suite.data.suffix.lower() not in ROWS:
        numbers = [1]
    if suite.kind not in ("cloze", "choice", "classify", "perplexity", "truth"):
        hint = "use a cloze, choice, classify, truth or perplexity suite"
        raise _bad(path, None, f"a suite of {suite.kind} has no answers to forget or keep", hint)
    items = tuple(_example(e.values, n) for e, n in zip(examples, numbers, strict=True))
    return ItemSet(items, path.name, role, suite.digest, len(suite.payload), str(path), suite.payload)


def _example(values: dict[str, Any], line: int) -> Item:
    if "label" in values:
        return Item(line, values.get("text"), "", values.get("image"), values["label"])
    if "choices" in values:
        return Item(line, values["prompt"], values["choices"][values["index"]])
    return Item(line, values.get("prompt"), values["answer"] if "prompt" in values else values["text"])


def is_image(value: Any) -> bool:
    """A flat or regularly nested, non-empty list of finite numbers."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(part, list) for part in value):
        return len({_shape(part) for part in value}) == 1 and all(is_image(part) for part in value)
    return all(isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part) for part in value)


# --- small parts -----------------------------------------------------------------------------------------


def _check_unique(found: ItemSet) -> None:
    seen: dict[bytes, int] = {}
    for item in found.items:
        first = seen.setdefault(item.normal(), item.line)
        if first != item.line:
            raise found.bad(item.line, f"the same record as line {first}", "name each record to forget once")


def _utf8(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise _bad(path, line, f"not UTF-8 (byte {fault.start})", "save the file as UTF-8") from None


def _bad(path: str | Path, line: int | None, reason: str, hint: str | None = None) -> BadInputFile:
    place, where = f"{path}, line {line}" if line else str(path), {"line": line} if line else {}
    return BadInputFile(f"{place}: {reason}", hint=hint or _EXAMPLE, path=str(path), **where)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _shape(value: Any) -> Sequence[int]:
    return (len(value), *_shape(value[0])) if isinstance(value, list) and value else ()


def _no_constant(_: str) -> float:
    raise ValueError
