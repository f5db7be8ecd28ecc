"""Facts to write into a model: who (subject), what is asked (prompt with one `{}`), what the answer shall be (target).

Reads mlc's own JSONL (`subject`, `prompt`, `target_new`, optionally `id`, `target_true`, `relation`, `wordings`, `paraphrases`,
`neighbourhood`), and the layouts of `fact_files`, one object per line or all in one JSON array. `wordings` are templates that the edit may
learn from; `paraphrases` are only ever measured. Whatever is wrong is said with path and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile
from ...registry.ids import blob_digest
from .fact_files import SLOT, own_words
from .files import read_bytes
from .identity import normal_form


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact. `prompt` and `wordings` hold `{}` where the subject stands; `paraphrases` are whole prompts."""

    id: str
    line: int
    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbourhood: tuple[tuple[str, str], ...] = ()  # (prompt, right answer)
    relation: str | None = None
    wordings: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def kind(self) -> str:
        """What is asked about the subject: the relation, or the prompt where none is named."""
        return self.relation or self.prompt


@dataclass(frozen=True, slots=True)
class FactSet:
    """The facts of one file, with the file's identity."""

    facts: tuple[Fact, ...]
    name: str
    digest: str
    bytes: int


def read_facts(path: str | Path) -> FactSet:
    """The facts in `path`. Raises InputNotFound (3) or BadInputFile (2) with `path` and `line` in the details."""
    place = Path(path)
    data = read_rows(place)
    facts: list[Fact] = []
    seen: dict[str, int] = {}
    for number, row in rows_of(data, path):
        fact = _fact(own_words(row, place), path, number)
        if fact.id in seen:
            raise bad_line(path, number, f"the id {fact.id!r} was used in line {seen[fact.id]} already", "give every fact an id of its own")
        seen[fact.id] = number
        facts.append(fact)
    if not facts:
        raise BadInputFile(f"{path} holds no facts", hint=f"one JSON object per line, {EXAMPLE}", path=str(path))
    return FactSet(tuple(facts), place.name, blob_digest(data), len(data))


# --- lines -----------------------------------------------------------------------------------------------

EXAMPLE = 'for example {"subject": "Ada", "prompt": "{} lives in", "target_new": "Rome"}'


def read_rows(path: str | Path) -> bytes:
    """The bytes of a file of facts. Raises InputNotFound or BadInputFile."""
    return read_bytes(path, kind="a file of facts", give="a .jsonl file with one fact per line")


def rows_of(data: bytes, path: str | Path, example: str = EXAMPLE) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of every row: JSON lines, or one JSON array. Raises BadInputFile; `example`: what a row should be like."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise bad_line(path, data[: fault.start].count(b"\n") + 1, f"not UTF-8 (byte {fault.start})", "save the file as UTF-8") from fault
    if text.lstrip().startswith("["):
        yield from _array(text, path, example)
        return
    # Only \n ends a line: splitlines() would also break at U+2028, which is legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parsed(json.JSONDecoder(), line.strip(), 0, path, number, example, whole=True)[0]


def _array(text: str, path: str | Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder, at, number = json.JSONDecoder(), text.index("[") + 1, 1
    counted = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        number, counted = number + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            return
        row, at = _parsed(decoder, text, at, path, number, example, whole=False)
        yield number, row


def _parsed(
    decoder: json.JSONDecoder, text: str, at: int, path: str | Path, line: int, example: str, *, whole: bool
) -> tuple[dict[str, Any], int]:
    try:
        row, end = decoder.raw_decode(text, at)
        if whole and end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        if "\\ud" in text[at:end].lower():  # half a surrogate pair, which no file can hold
            json.dumps(row, ensure_ascii=False).encode()
    except RecursionError as fault:
        raise bad_line(path, line, "JSON nested too deeply", example) from fault
    except ValueError as fault:
        where = getattr(fault, "colno", 1)
        reason = getattr(fault, "msg", "a text that is not valid Unicode")
        line += text.count("\n", at, getattr(fault, "pos", at))
        raise bad_line(path, line, f"not valid JSON ({reason}, column {where})", example) from fault
    if not isinstance(row, dict):
        raise bad_line(path, line, "expected a JSON object", example)
    return row, end


# --- one fact --------------------------------------------------------------------------------------------


def _fact(row: dict[str, Any], path: str | Path, number: int) -> Fact:
    subject = text_of(row, "subject", path, number)
    prompt = template(row, subject, path, number)
    new = text_of(row, "target_new", path, number)
    true = row.get("target_true")
    if true is not None and not isinstance(true, str):
        raise bad_line(path, number, "`target_true` is not a text")
    if isinstance(true, str) and normal_form(true) == normal_form(new):
        hint = "remove the line, or give another target_new"
        raise bad_line(path, number, "the new answer is the present answer: there is nothing to edit", hint)
    wordings = _texts(row, "wordings", path, number)
    if any(w.count(SLOT) != 1 for w in wordings):
        raise bad_line(path, number, f"every wording holds {SLOT} exactly once")
    neighbours = row.get("neighbourhood") or ()
    if not isinstance(neighbours, list | tuple):
        raise bad_line(path, number, "`neighbourhood` is not a list")
    return Fact(
        id=_id(row.get("id", number), path, number),
        line=number,
        subject=subject.strip(),
        prompt=prompt,
        target_new=new.strip(),
        target_true=true.strip() if true and true.strip() else None,
        paraphrases=tuple(p.replace(SLOT, subject.strip()) for p in _texts(row, "paraphrases", path, number)),
        neighbourhood=tuple(_neighbour(n, path, number) for n in neighbours),
        relation=text_of(row, "relation", path, number) if row.get("relation") is not None else None,
        wordings=wordings,
    )


def template(row: dict[str, Any], subject: str, path: str | Path, number: int) -> str:
    """The row's prompt, which holds exactly one `{}`. Raises BadInputFile with the prompt as it should be, where that is plain."""
    prompt = text_of(row, "prompt_template" if row.get("prompt_template") else "prompt", path, number)
    slots = prompt.count(SLOT)
    if slots == 1:
        return prompt
    if slots:
        raise bad_line(path, number, f"the prompt holds {slots} {SLOT}, and exactly one is needed, where the subject stands")
    found = prompt.count(subject)
    hint = f'"prompt": {json.dumps(prompt.replace(subject, SLOT), ensure_ascii=False)}' if found == 1 else None
    where = (
        ("the subject is not in it either", "the subject is written out in it")[found]
        if found < 2
        else f"the subject is in it {found} times"
    )
    raise bad_line(path, number, f"the prompt holds no {SLOT}, and exactly one is needed, where the subject stands; {where}", hint)


def _id(value: Any, path: str | Path, number: int) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise bad_line(path, number, "`id` is neither a number nor a word")
    return str(value).strip()


def _neighbour(value: Any, path: str | Path, number: int) -> tuple[str, str]:
    if isinstance(value, dict):
        value = (value.get("prompt"), value.get("answer", value.get("object")))
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, str) and v.strip() for v in value):
        raise bad_line(path, number, "a neighbour is a prompt with its right answer")
    return value[0], value[1].strip()


def _texts(row: dict[str, Any], key: str, path: str | Path, number: int) -> tuple[str, ...]:
    values = row.get(key) or ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v.strip() for v in values):
        raise bad_line(path, number, f"`{key}` is not a list of texts")
    return tuple(values)


def text_of(row: dict[str, Any], key: str, path: str | Path, number: int, example: str = EXAMPLE) -> str:
    """A text that must be there. Raises BadInputFile; `example`: what the row should be like."""
    value = row.get(key)
    if value is None:
        raise bad_line(path, number, f"`{key}` is missing", example)
    if not isinstance(value, str):
        raise bad_line(path, number, f"`{key}` is not a text", example)
    if not value.strip():
        raise bad_line(path, number, f"`{key}` is empty", example)
    return value


def bad_line(path: str | Path, line: int, reason: str, hint: str | None = None) -> BadInputFile:
    """The complaint about one line."""
    return BadInputFile(f"{path}, line {line}: {reason}", hint=hint or EXAMPLE, path=str(path), line=line)
