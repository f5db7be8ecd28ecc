"""A suite: one TOML file that names a data file and says how its rows are scored. Reads files, runs nothing.

The digest covers the settings and the data, so an evaluation can be cached by (snapshot, suite digest). The data are
read once, at loading: what is digested is what is scored, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile, BadRecipe, InputNotFound
from ...registry.ids import Digest, blob_digest, record_digest
from ...registry.records import InputRecord, canonical
from .door import Door
from .kinds import DEFAULT_MAX_TOKENS, DEFAULT_SEQ_LEN, KINDS, Kind
from .rows import Example, parse_examples


@dataclass(frozen=True, slots=True)
class Suite:
    """A loaded suite. `fields` maps our names to the data's; `metric` is the one that decides right and wrong."""

    name: str
    kind: str
    path: Path  # the TOML file
    data: Path
    digest: str
    metric: str
    fields: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    template: str | None = None
    seq_len: int = DEFAULT_SEQ_LEN
    max_tokens: int = DEFAULT_MAX_TOKENS  # that greedy decoding may write (generate, truth with `rouge`)
    stop: tuple[str, ...] = ()  # texts that end what is written
    options: bool = False  # truth: the answer's probability is its share among all options
    rouge: bool = False  # truth: also write an answer, and compare it
    private: bool = False  # no text of it may be stored: rows keep keyed digests and scores
    parts: tuple[Suite, ...] = ()  # utility: the suites it sums up
    payload: bytes = field(default=b"", repr=False)  # the data file's bytes, as digested

    @property
    def traits(self) -> Kind:
        """What suites of this kind need and yield."""
        return KINDS[self.kind]

    def examples(self, limit: int | None = None) -> list[Example]:
        """The rows in file order, at most `limit` (of each part). Raises BadInputFile with path and line; always checks the whole file."""
        if self.parts:
            return [example for part in self.parts for example in part.examples(limit)]
        return parse_examples(self)[:limit]

    def record(self) -> InputRecord:
        """How a commit names this suite among its inputs."""
        size = sum(len(suite.payload) for suite in (self, *self.parts))
        return InputRecord("suite", self.path.name, self.digest, size)


def load_suite(path: Path) -> Suite:
    """Read and check a suite file and its data. Raises InputNotFound, BadRecipe (settings) or BadInputFile (encoding)."""
    path = Path(path)
    settings = _read_toml(path)
    door = Door(path, settings)
    name, kind = door.name(), door.kind()
    chosen: dict[str, Any] = {"metric": door.metric(kind), "private": door.truth("private")}
    if kind == "utility":
        parts = _parts(door)
        return Suite(name, kind, path, path, _digest_of_parts(settings, parts), parts=parts, **chosen)
    chosen |= {"fields": door.fields(kind), "slices": door.slices(), "template": door.template(kind)}
    chosen |= {"seq_len": door.seq_len(), "max_tokens": door.max_tokens(), "stop": door.texts("stop", r'"\n"')}
    chosen |= {"options": door.truth("options"), "rouge": door.truth("rouge")}
    data = path.parent / door.text("data")
    payload = _read(data, f"the data file of suite {path.name}")
    return Suite(name, kind, path, data, suite_digest(settings, data.name, payload), payload=payload, **chosen)


def suite_digest(settings: dict[str, Any], data_name: str, payload: bytes) -> str:
    """Content id of a suite: its settings, with the data named by basename, and the digest of the data's bytes."""
    content = {**settings, "data": data_name, "data_digest": Digest(blob_digest(payload))}
    return record_digest("mlc.suite.v1", canonical(content))


def _parts(door: Door) -> tuple[Suite, ...]:
    """The suites that a utility suite sums up; each must yield its three numbers."""
    parts = []
    for name in door.texts("parts", '"retain.toml", "real_authors.toml", "world_facts.toml"', least=1):
        part = load_suite(door.path.parent / name)
        if part.kind != "truth" or not part.rouge:
            hint = 'each part is a suite of kind = "truth" with rouge = true'
            raise door.bad("parts", f"{door.path}: {name} yields no probability, ROUGE-L and truth ratio", hint)
        parts.append(part)
    unique_names(parts)
    return tuple(parts)


def _digest_of_parts(settings: dict[str, Any], parts: tuple[Suite, ...]) -> str:
    content = {**settings, "parts": [Digest(part.digest) for part in parts]}
    return record_digest("mlc.suite.v1", canonical(content))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise InputNotFound(f"{what} does not exist: {path}", hint="check the path; `data` is relative to the suite file") from fault
    except OSError as fault:
        raise BadInputFile(f"{what} cannot be read: {path}", hint="give a regular, readable file", path=str(path)) from fault


def _read_toml(path: Path) -> dict[str, Any]:
    raw = _read(path, "the suite file")
    try:
        return tomllib.loads(raw.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as fault:
        raise BadRecipe(f"{path} is not UTF-8 text", hint="a suite is a TOML file", path=str(path)) from fault
    except tomllib.TOMLDecodeError as fault:
        place = re.search(r"line (\d+), column (\d+)", str(fault))
        end = raw.count(b"\n") + 1  # "at end of document"
        where = {"line": int(place[1]), "column": int(place[2])} if place else {"line": end, "column": 1}
        raise BadRecipe(
            f"{path} is not valid TOML: {fault}", hint="see `mlc eval --help` for a suite's keys", path=str(path), **where
        ) from fault


def unique_names(suites: list[Suite]) -> list[str]:
    """Names in order; raises BadRecipe when two suites share one, since results are filed by name."""
    seen: dict[str, Path] = {}
    for suite in suites:
        if suite.name in seen:
            raise BadRecipe(f"two suites are called {suite.name!r}: {seen[suite.name]} and {suite.path}", hint="rename one of them")
        seen[suite.name] = suite.path
    return list(seen)
