"""Facts to write into a model: who (subject), what is asked (prompt with one `{}`), what the answer shall be (target).

Reads mlc's own JSONL (`subject`, `prompt`, `target_new`, optionally `target_true`, `relation`, `wordings`, `paraphrases`,
`neighbourhood`) and rows of fact worlds (`object` with `alternatives`, of which the first becomes the new answer). `wordings` are
templates that the edit may learn from; `paraphrases` are only ever measured. Whatever is wrong is said with path and line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile, InputNotFound
from ...registry.ids import blob_digest

SLOT = "{}"


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
    try:
        data = place.read_bytes()
    except FileNotFoundError as fault:
        raise InputNotFound(f"{path} does not exist", hint="give the path of a .jsonl file with one fact per line") from fault
    except OSError as fault:
        raise BadInputFile(f"{path} cannot be read: {fault.strerror}", path=str(path)) from fault
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise _bad(path, data[: fault.start].count(b"\n") + 1, "not UTF-8") from fault
    facts, seen = [], {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fact = _fact(_row(line, path, number), path, number)
        if fact.id in seen:
            raise _bad(path, number, f"the id {fact.id!r} was used in line {seen[fact.id]} already")
        seen[fact.id] = number
        facts.append(fact)
    if not facts:
        raise BadInputFile(f"{path} holds no facts", hint="one JSON object per line", path=str(path))
    return FactSet(tuple(facts), place.name, blob_digest(data), len(data))


def _row(line: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise _bad(path, number, f"not valid JSON ({getattr(fault, 'msg', 'too deep')}, column {getattr(fault, 'colno', 1)})") from fault
    if not isinstance(row, dict):
        raise _bad(path, number, "expected a JSON object")
    return row


def _fact(row: dict[str, Any], path: str | Path, number: int) -> Fact:
    subject = _text(row, "subject", path, number)
    if "target_new" not in row and "object" in row and row.get("alternatives"):
        row = {**row, "target_new": row["alternatives"][0], "target_true": row["object"]}
    prompt = row.get("prompt_template") or _text(row, "prompt", path, number)
    if SLOT not in prompt and subject in prompt:
        prompt = prompt.replace(subject, SLOT, 1)
    if prompt.count(SLOT) != 1:
        raise _bad(path, number, f"the prompt holds {prompt.count(SLOT) or 'no'} {SLOT}, and one is needed where the subject stands")
    new = _text(row, "target_new", path, number)
    true = row.get("target_true")
    if isinstance(true, str) and true.strip() == new.strip():
        raise _bad(path, number, "the new answer is the present answer: there is nothing to edit")
    wordings = tuple(map(str, row.get("wordings", ())))
    if any(w.count(SLOT) != 1 for w in wordings):
        raise _bad(path, number, f"every wording holds {SLOT} exactly once")
    return Fact(
        id=str(row.get("id", number)),
        line=number,
        subject=subject,
        prompt=prompt,
        target_new=new.strip(),
        target_true=true.strip() if isinstance(true, str) and true.strip() else None,
        paraphrases=tuple(str(p).replace(SLOT, subject) for p in row.get("paraphrases", ())),
        neighbourhood=tuple(_neighbour(n, path, number) for n in row.get("neighbourhood", ())),
        relation=row.get("relation"),
        wordings=wordings,
    )


def _neighbour(value: Any, path: str | Path, number: int) -> tuple[str, str]:
    if isinstance(value, dict):
        value = (value.get("prompt"), value.get("answer", value.get("object")))
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, str) and v.strip() for v in value):
        raise _bad(path, number, "a neighbour is a prompt with its right answer")
    return value[0], value[1].strip()


def _text(row: dict[str, Any], key: str, path: str | Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _bad(path, number, f"`{key}` is missing or empty")
    return value


def _bad(path: str | Path, line: int, reason: str) -> BadInputFile:
    hint = 'for example {"subject": "Ada", "prompt": "{} lives in", "target_new": "Rome"}'
    return BadInputFile(f"{path}, line {line}: {reason}", hint=hint, path=str(path), line=line)
