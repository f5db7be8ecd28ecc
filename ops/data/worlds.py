"""Worlds: what was true at a date, as (subject, relation, object) triples with optional start, end and point in time.

A JSONL file of triples; its first row may be a header without `subject`: `{"date": "2021-01-04", "relations": {"born in": {"prompt":
"{} was born in", "paraphrases": [...], "functional": true, "dated": false}}}`. A triple may bring its own `prompt` and `paraphrases`, so
the rows of a fact world are triples too. Dates are `YYYY`, `YYYY-MM` or `YYYY-MM-DD`; a missing month or day is the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile
from ...registry.ids import blob_digest
from .facts import SLOT, bad_line, read_rows, rows_of, template, text_of

DEATHS = ("P570", "P4602")  # relations of Wikidata whose object is a date that comes once
QUALIFIERS = ("start", "end", "point")
_DATE = re.compile(r"[+]?(\d{1,4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?(?:T.*)?")

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Triple:
    """One statement of one world, in the line where it stands."""

    line: int
    subject: str
    relation: str
    object: str
    start: date | None = None
    end: date | None = None
    point: date | None = None
    prompt: str | None = None  # with one {}
    paraphrases: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Who it is about, what is said, and what of."""
        return self.subject, self.relation, self.object


@dataclass(frozen=True, slots=True)
class Relation:
    """What a header says of a relation; `functional` None: to be seen from the triples."""

    prompt: str | None = None
    paraphrases: tuple[str, ...] = ()
    functional: bool | None = None
    dated: bool = False  # its object is a date that comes once, such as a death


@dataclass(frozen=True, slots=True)
class World:
    """All triples of one file."""

    triples: tuple[Triple, ...]
    name: str
    digest: str
    bytes: int
    date: date | None = None
    relations: dict[str, Relation] = field(default_factory=dict)

    def objects(self, subject: str, relation: str) -> tuple[Triple, ...]:
        """What is said of a subject, in file order."""
        return tuple(t for t in self.triples if (t.subject, t.relation) == (subject, relation))


def read_world(path: str | Path) -> World:
    """The world in `path`. Raises InputNotFound (3) or BadInputFile (2) with `path` and `line` in the details."""
    place = Path(path)
    data = read_rows(place)
    triples: list[Triple] = []
    lines: dict[Key, int] = {}
    when, relations = None, dict[str, Relation]()
    for number, row in rows_of(data, path, EXAMPLE):
        if not triples and "subject" not in row and ("date" in row or "relations" in row):
            when, relations = _header(row, path, number)
            continue
        triple = _triple(row, path, number)
        if triple.key in lines:
            raise bad_line(path, number, f"says the same as line {lines[triple.key]}", "say every triple once")
        lines[triple.key] = number
        triples.append(triple)
    if not triples:
        raise BadInputFile(f"{path} holds no triples", hint=f"one JSON object per line, {EXAMPLE}", path=str(path))
    return World(tuple(triples), place.name, blob_digest(data), len(data), when, relations)


def day(text: str) -> date | None:
    """A date as it is written, missing parts as the first; None for anything else."""
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        return date(int(found[1]), int(found[2] or 1), int(found[3] or 1))
    except ValueError:
        return None


# --- rows ------------------------------------------------------------------------------------------------

EXAMPLE = 'for example {"subject": "Ada", "relation": "lives in", "object": "Rome", "prompt": "{} lives in"}'


def _triple(row: dict[str, Any], path: str | Path, number: int) -> Triple:
    subject = text_of(row, "subject", path, number, EXAMPLE)
    said = template(row, subject, path, number) if "prompt" in row or "prompt_template" in row else None
    dates = {name: _date(row[name], f"`{name}`", path, number) for name in QUALIFIERS if row.get(name) is not None}
    name = " ".join(subject.split())
    return Triple(
        number,
        name,
        " ".join(text_of(row, "relation", path, number, EXAMPLE).split()),
        " ".join(text_of(row, "object", path, number, EXAMPLE).split()),
        prompt=said,
        paraphrases=tuple(p.replace(SLOT, name) for p in _wordings(row, path, number)),
        **dates,
    )


def _header(row: dict[str, Any], path: str | Path, number: int) -> tuple[date | None, dict[str, Relation]]:
    when = _date(row["date"], "`date`", path, number) if row.get("date") is not None else None
    told = row.get("relations", {})
    if not isinstance(told, dict) or not all(isinstance(value, dict) for value in told.values()):
        raise bad_line(path, number, "`relations` should map names to what is known of them")
    relations = {}
    for name, known in told.items():
        prompt = known.get("prompt")
        if prompt is not None and (not isinstance(prompt, str) or prompt.count(SLOT) != 1):
            raise bad_line(path, number, f"the prompt of relation {name!r} needs exactly one {SLOT}")
        flags = {key: known[key] for key in ("functional", "dated") if key in known}
        if not all(isinstance(value, bool) for value in flags.values()):
            raise bad_line(path, number, f"`functional` and `dated` of relation {name!r} are true or false")
        relations[" ".join(name.split())] = Relation(prompt, _wordings(known, path, number), **flags)
    return when, relations


def _wordings(row: dict[str, Any], path: str | Path, number: int) -> tuple[str, ...]:
    values = row.get("paraphrases") or ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v.strip() for v in values):
        raise bad_line(path, number, "`paraphrases` is not a list of texts")
    return tuple(values)


def _date(value: Any, what: str, path: str | Path, number: int) -> date:
    found = day(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if found is None:
        raise bad_line(path, number, f"{what} is no date", "YYYY, YYYY-MM or YYYY-MM-DD")
    return found
