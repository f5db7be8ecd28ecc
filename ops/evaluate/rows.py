"""Examples of a suite: data file lines in, checked rows with stable ids out. Every complaint carries path and line."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile
from ...registry.ids import record_digest
from ...registry.records import canonical

if TYPE_CHECKING:
    from .suite import Suite

ID_DIGITS = 16  # hex digits of a digest id: a chance of 1e-9 for two of 100,000 to meet
JSONL = (".jsonl", ".ndjson", ".json")

_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Example:
    """One row to score. `values` holds the kind's own fields under our names (prompt, answer, choices, ...)."""

    id: str
    slice: str | None
    values: dict[str, Any]


def parse_examples(suite: Suite) -> list[Example]:
    """All examples of a suite in file order. Raises BadInputFile on the first row that cannot be used."""
    reader = _Reader(suite)
    if suite.kind == "perplexity" and suite.data.suffix.lower() not in JSONL:
        examples = [Example(suite.data.name, None, {"text": reader.text})]
    else:
        examples = reader.rows()
    if not examples or not reader.text.strip():
        raise reader.bad("the data file is empty", None, "a suite needs at least one example")
    if suite.kind == "membership" and len({example.values["member"] for example in examples}) < 2:
        raise reader.bad("all rows are members, or none is", None, "membership is told by comparing rows with member = true and false")
    if suite.kind == "retrieval" and len({example.values["role"] for example in examples}) < 2:
        raise reader.bad("there are only queries, or only items of a gallery", None, "a search needs rows of both kinds")
    return examples


class _Reader:
    """One pass over a data file; remembers ids, and the lines to complain about."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.lines: dict[str, int] = {}  # explicit id -> its line
        self.repeats: dict[str, int] = {}  # digest -> how often it came
        try:
            self.text = suite.payload.decode("utf-8-sig")
        except UnicodeDecodeError as fault:
            line = suite.payload.count(b"\n", 0, fault.start) + 1
            raise self.bad(f"byte 0x{suite.payload[fault.start]:02x} is not UTF-8 text", line, "save the file as UTF-8") from fault

    def bad(self, message: str, line: int | None, hint: str) -> BadInputFile:
        place = str(self.suite.data) + (f", line {line}" if line else "")
        where = {"path": str(self.suite.data)} | ({"line": line} if line else {})
        return BadInputFile(f"{place}: {message}", hint=hint, **where)

    def rows(self) -> list[Example]:
        # Not splitlines(): a JSON string may hold U+2028, which is no line end of JSONL.
        lines = enumerate(self.text.split("\n"), 1)
        return [self.example(self.object(line, number), number) for number, line in lines if line.strip()]

    def object(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line, parse_constant=_no_constant)
            if "\\ud" in line.lower():  # only an escape can bring in half a surrogate pair, which no file can hold
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as fault:
            reason = fault.msg if isinstance(fault, json.JSONDecodeError) else str(fault)
            raise self.bad(f"not valid JSON: {reason}", number, "each line is one JSON object") from fault
        if not isinstance(row, dict):
            raise self.bad("not a JSON object", number, "each line is one JSON object, such as " + '{"prompt": "...", "answer": "..."}')
        return row

    def example(self, row: dict[str, Any], number: int) -> Example:
        values = self.values(row, number)
        return Example(self.identity(row, values, number), self.slice(row, number), values)

    # --- fields ------------------------------------------------------------------------------------------

    def take(self, row: dict[str, Any], ours: str, number: int) -> Any:
        theirs = self.suite.fields.get(ours, ours)
        if theirs not in row:
            hint = f'add it, or say which field holds it: fields = {{ {ours} = "..." }}'
            raise self.bad(f"field {theirs!r} is missing", number, hint)
        return row[theirs]

    def words(self, row: dict[str, Any], ours: str, number: int) -> str:
        value = self.take(row, ours, number)
        if not isinstance(value, str) or not value.strip():
            raise self.bad(f"{ours!r} must be a non-empty text", number, self.got(value))
        return value

    def texts(self, row: dict[str, Any], ours: str, number: int) -> list[str]:
        """One text or a list of them, none empty."""
        value = self.take(row, ours, number)
        found = value if isinstance(value, list) else [value]
        if not found or not all(isinstance(text, str) and text.strip() for text in found):
            raise self.bad(f"{ours!r} must be a text or a list of texts, none of them empty", number, self.got(value))
        return found

    def has(self, row: dict[str, Any], ours: str) -> bool:
        """The row has this field under the name that the data use, and something in it."""
        theirs = self.suite.fields.get(ours, ours)
        return isinstance(theirs, str) and row.get(theirs) not in (None, "", [])

    def got(self, value: Any) -> str:
        """What was found instead, for a hint; a private suite tells no more than its type."""
        return f"got a value of type {type(value).__name__}" if self.suite.private else f"got {value!r:.60}"

    def composed(self, row: dict[str, Any], ours: str, number: int) -> str:
        """The field itself, or the suite's template filled from the row's fields."""
        if self.suite.template is None:
            return self.words(row, ours, number)

        def fill(slot: re.Match[str]) -> str:
            if slot[1] not in row:
                raise self.bad(f"the template's field {slot[1]!r} is missing", number, "add it, or change `template`")
            return str(row[slot[1]])

        return _SLOT.sub(fill, self.suite.template)

    def values(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        kind = self.suite.kind
        if kind == "cloze":
            return {"prompt": self.composed(row, "prompt", number), "answer": self.words(row, "answer", number)}
        if kind == "choice":
            return self.choice(row, number)
        if kind == "perplexity":
            return {"text": self.composed(row, "text", number)}
        if kind == "pairs":
            return {name: self.words(row, name, number) for name in ("good", "bad")}
        if kind == "generate":
            return {"prompt": self.composed(row, "prompt", number), "reference": self.texts(row, "reference", number)}
        if kind == "truth":
            return self.truth(row, number)
        if kind == "membership":
            return self.membership(row, number)
        if kind == "retrieval":
            return self.searched(row, number)
        return self.labelled(row, number)

    def truth(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """Without a paraphrase the answer stands for it; without wrong answers the row has a probability and no truth ratio."""
        answer = self.words(row, "answer", number)
        paraphrase = self.words(row, "paraphrased_answer", number) if self.has(row, "paraphrased_answer") else answer
        wrong = self.texts(row, "perturbed_answer", number) if self.has(row, "perturbed_answer") else []
        if self.suite.options and not wrong:
            raise self.bad("`options` needs wrong answers to choose among", number, "add 'perturbed_answer', a list of texts")
        return {
            "prompt": self.composed(row, "prompt", number),
            "answer": answer,
            "paraphrased_answer": paraphrase,
            "perturbed_answer": wrong,
        }

    def membership(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """A running text, or an answer after its prompt (None for a running text)."""
        member = self.take(row, "member", number)
        if not isinstance(member, bool):
            raise self.bad("'member' must be true or false", number, self.got(member))
        if self.has(row, "text"):
            return {"prompt": None, "text": self.words(row, "text", number), "member": member}
        return {"prompt": self.composed(row, "prompt", number), "text": self.words(row, "answer", number), "member": member}

    def searched(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """A query or an item of the gallery, with its labels: the two belong together when they share one."""
        if self.has(row, "query") == self.has(row, "gallery"):
            raise self.bad("a row holds either 'query' or 'gallery'", number, 'such as {"query": "...", "relevance": "label"}')
        role = "query" if self.has(row, "query") else "gallery"
        labels = self.take(row, "relevance", number)
        found = labels if isinstance(labels, list) else [labels]
        if not found or not all(isinstance(label, str | int) and not isinstance(label, bool) and label != "" for label in found):
            raise self.bad("'relevance' must be a label or a list of labels", number, self.got(labels))
        return {"role": role, "text": self.words(row, role, number), "labels": sorted({str(label) for label in found})}

    def choice(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        choices, index = self.take(row, "choices", number), self.take(row, "index", number)
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
            raise self.bad("'choices' must be a list of two or more texts", number, self.got(choices))
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
            raise self.bad(f"'index' must be a whole number from 0 to {len(choices) - 1}", number, self.got(index))
        return {"prompt": self.composed(row, "prompt", number), "choices": choices, "index": index}

    def labelled(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        label = self.take(row, "label", number)
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise self.bad("'label' must be a class number or a class name", number, f"got {label!r:.60}")
        if self.suite.fields.get("image", "image") in row:
            image = self.take(row, "image", number)
            if not _is_image(image):
                raise self.bad(
                    "'image' must be numbers, flat or as nested rows of equal length", number, "for instance [[0, 0.5], [1, 0.25]]"
                )
            return {"image": image, "label": label}
        return {"text": self.composed(row, "text", number), "label": label}

    # --- identity ----------------------------------------------------------------------------------------

    def slice(self, row: dict[str, Any], number: int) -> str | None:
        if not self.suite.slices:
            return None
        for name in self.suite.slices:
            if name not in row:
                raise self.bad(f"the slice field {name!r} is missing", number, "add it, or change `slices`")
        return "/".join(str(row[name]) for name in self.suite.slices)

    def identity(self, row: dict[str, Any], values: dict[str, Any], number: int) -> str:
        names = self.suite.fields.get("id", "id")
        parts = names if isinstance(names, tuple) else (names,)
        if "id" not in self.suite.fields and "id" not in row:
            return self.unnamed(values)
        for name in parts:
            if not isinstance(row.get(name), str | int) or row[name] == "":
                raise self.bad(f"the id field {name!r} must be a text or a number", number, self.got(row.get(name)))
        identity = "-".join(str(row[name]) for name in parts)
        if identity in self.lines:
            which = "its id" if self.suite.private else f"the id {identity!r}"
            raise self.bad(f"{which} is already used in line {self.lines[identity]}", number, "ids pair versions: make each unique")
        self.lines[identity] = number
        return identity

    def unnamed(self, values: dict[str, Any]) -> str:
        """The digest of what is scored; equal rows are told apart by a count, whose order cannot matter."""
        digest = record_digest("mlc.example.v1", canonical(values))[:ID_DIGITS]
        again = self.repeats[digest] = self.repeats.get(digest, 0) + 1
        return digest if again == 1 else f"{digest}~{again}"


def _is_image(value: Any) -> bool:
    """A flat or regularly nested, non-empty list of finite numbers."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, list) for item in value):
        return len({_shape(item) for item in value}) == 1 and all(_is_image(item) for item in value)
    return all(isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in value)


def _shape(value: Any) -> tuple[int, ...]:
    return (len(value), *_shape(value[0])) if isinstance(value, list) and value else ()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
