"""Corpora: `.txt` (one running text) and JSONL (one document per line), read with line numbers and a digest.

A JSONL line holds `text`, or a prompt and its answer (`prompt`/`question` with `answer`/`completion`), which are joined by one space
unless one of them brings its own. Whatever is wrong with a file is said with path and line; nothing is skipped silently.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile
from ...registry.ids import blob_digest
from ...registry.records import InputRecord
from .files import read_bytes

PROMPTS = ("prompt", "question")
ANSWERS = ("answer", "completion")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in file order. `running` marks one continuous text, whose order carries meaning."""

    documents: tuple[str, ...]
    record: InputRecord
    running: bool


def read_corpus(path: str | Path, *, role: str = "data") -> Corpus:
    """The corpus in `path`. Raises InputNotFound (3) or BadInputFile (2) with `path` and `line` in the details."""
    place = Path(path)
    data = read_bytes(path, kind="a text file", give="a .txt or .jsonl file")
    record = InputRecord(role, place.name, blob_digest(data), len(data))
    text = _utf8(data, path)
    if not text.strip():
        raise BadInputFile(f"{path} is empty", hint="a corpus needs at least one batch of text", path=str(path))
    if place.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return Corpus(_documents(text, path), record, running=False)
    return Corpus((text,), record, running=True)


def document(row: Any, path: str | Path, line: int) -> str:
    """The text of one JSONL row."""
    if not isinstance(row, dict):
        raise _bad(path, line, "expected a JSON object")
    text = row.get("text")
    if text is None:
        prompt = next((row[k] for k in PROMPTS if k in row), None)
        answer = next((row[k] for k in ANSWERS if k in row), None)
        if prompt is None or answer is None:
            raise _bad(path, line, "has neither `text` nor a `prompt` with an `answer`")
        text = join(prompt, answer) if isinstance(prompt, str) and isinstance(answer, str) else None
    if not isinstance(text, str):
        raise _bad(path, line, "the text is not a string")
    if not text.strip():
        raise _bad(path, line, "the text is empty")
    return text


def join(prompt: str, answer: str) -> str:
    """Prompt and answer as one text: a single space between them unless either brings white space of its own."""
    touching = prompt[-1:].isspace() or answer[:1].isspace() or not prompt
    return prompt + answer if touching else f"{prompt} {answer}"


def _documents(text: str, path: str | Path) -> tuple[str, ...]:
    found = []
    # Only \n ends a line: splitlines() would also break at U+2028, which is legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as fault:
            reason = getattr(fault, "msg", "not valid JSON")
            raise _bad(path, number, f"not valid JSON ({reason}, column {getattr(fault, 'colno', 1)})") from fault
        except RecursionError as fault:
            raise _bad(path, number, "JSON nested too deeply") from fault
        found.append(document(row, path, number))
    return tuple(found)


def _utf8(data: bytes, path: str | Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise _bad(path, line, f"not UTF-8 (byte {fault.start} is 0x{data[fault.start]:02x})") from fault


def _bad(path: str | Path, line: int, reason: str) -> BadInputFile:
    return BadInputFile(
        f"{path}, line {line}: {reason}",
        hint='every line holds one JSON object, for example {"text": "..."}' if Path(path).suffix != ".txt" else "save the file as UTF-8",
        path=str(path),
        line=line,
    )
