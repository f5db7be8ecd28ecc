"""A suite: one TOML file that names a data file and says how its rows are scored. Reads files, runs nothing.

The digest covers the settings and the data, so an evaluation can be cached by (snapshot, suite digest). The data are
read once, at loading: what is digested is what is scored, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile, BadRecipe, InputNotFound
from ...registry.ids import Digest, blob_digest, record_digest
from ...registry.records import InputRecord, canonical
from .rows import Example, parse_examples

DEFAULT_SEQ_LEN = 128  # tokens of a perplexity window, BOS included


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of suite needs and yields. The first metric is the default one."""

    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    templated: str | None = None  # the field that `template` may compose


KINDS: dict[str, Kind] = {
    "cloze": Kind(("prompt", "answer"), ("accuracy", "logprob"), "prompt"),
    "choice": Kind(("prompt", "choices", "index"), ("accuracy", "accuracy_norm", "logprob"), "prompt"),
    "perplexity": Kind(("text",), ("perplexity", "nll", "bits_per_byte"), "text"),
    "classify": Kind(("text", "image", "label"), ("accuracy", "logprob"), "text"),
    "pairs": Kind(("good", "bad"), ("accuracy", "logprob")),
}
LATER = ("generate", "retrieval")  # named by the handbook, not built yet

_KEYS = ("name", "kind", "data", "fields", "slices", "template", "metric", "seq_len")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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
    payload: bytes = field(default=b"", repr=False)  # the data file's bytes, as digested

    def examples(self, limit: int | None = None) -> list[Example]:
        """The rows in file order, at most `limit`. Raises BadInputFile with path and line; always checks the whole file."""
        return parse_examples(self)[:limit]

    def record(self) -> InputRecord:
        """How a commit names this suite among its inputs."""
        return InputRecord("suite", self.path.name, self.digest, len(self.payload))


def load_suite(path: Path) -> Suite:
    """Read and check a suite file and its data. Raises InputNotFound, BadRecipe (settings) or BadInputFile (encoding)."""
    path = Path(path)
    settings = _read_toml(path)
    door = _Door(path, settings)
    name, kind = door.name(), door.kind()
    chosen = {"metric": door.metric(kind), "fields": door.fields(kind), "slices": door.slices()}
    chosen |= {"template": door.template(kind), "seq_len": door.seq_len(kind)}
    data = path.parent / door.text("data")
    payload = _read(data, f"the data file of suite {path.name}")
    return Suite(name, kind, path, data, suite_digest(settings, data.name, payload), payload=payload, **chosen)


def suite_digest(settings: dict[str, Any], data_name: str, payload: bytes) -> str:
    """Content id of a suite: its settings, with the data named by basename, and the digest of the data's bytes."""
    content = {**settings, "data": data_name, "data_digest": Digest(blob_digest(payload))}
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


@dataclass(frozen=True, slots=True)
class _Door:
    """Checks settings key by key, so that every complaint names its key, its line and the way out."""

    path: Path
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        for key in self.settings:
            if key not in _KEYS:
                raise self.bad(key, f"{self.path}: unknown key {key!r}", _meant(key, _KEYS))

    def bad(self, key: str, message: str, hint: str) -> BadRecipe:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        start = re.compile(rf"\s*\[?\s*[\"']?{re.escape(key)}\b")
        line = next((i for i, text in enumerate(lines, 1) if start.match(text)), None)
        where = {"line": line, "column": 1} if line else {}
        return BadRecipe(message if line is None else f"{message} (line {line})", hint=hint, path=str(self.path), **where)

    def text(self, key: str) -> str:
        value = self.settings.get(key)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.bad(key, f"{self.path}: {key!r} must be a non-empty text", f'for instance {key} = "..."')
        return value

    def name(self) -> str:
        name = self.text("name")
        if not _NAME.fullmatch(name):
            raise self.bad("name", f"{self.path}: {name!r} is no suite name", "letters, digits, '.', '_' and '-', at most 64")
        return name

    def kind(self) -> str:
        kind = self.text("kind")
        if kind in LATER:
            raise self.bad("kind", f"{self.path}: suites of kind {kind!r} are not built yet", f"use one of: {', '.join(KINDS)}")
        if kind not in KINDS:
            raise self.bad("kind", f"{self.path}: unknown kind {kind!r}", _meant(kind, tuple(KINDS)))
        return kind

    def metric(self, kind: str) -> str:
        known = KINDS[kind].metrics
        metric = self.settings.get("metric", known[0])
        if metric not in known:
            raise self.bad("metric", f"{self.path}: a {kind} suite has no metric {metric!r}", _meant(str(metric), known))
        return metric

    def fields(self, kind: str) -> dict[str, str | tuple[str, ...]]:
        given, known = self.settings.get("fields", {}), (*KINDS[kind].fields, "id")
        if not isinstance(given, dict):
            raise self.bad("fields", f"{self.path}: 'fields' must be a table", 'for instance fields = { prompt = "question" }')
        result: dict[str, str | tuple[str, ...]] = {}
        for ours, theirs in given.items():
            if ours not in known:
                raise self.bad(ours, f"{self.path}: a {kind} suite has no field {ours!r}", _meant(ours, known))
            if isinstance(theirs, str):
                result[ours] = theirs
            elif ours == "id" and isinstance(theirs, list) and theirs and all(isinstance(part, str) for part in theirs):
                result[ours] = tuple(theirs)
            else:
                raise self.bad(ours, f"{self.path}: field {ours!r} must name a field of the data", "only `id` may be a list of names")
        return result

    def slices(self) -> tuple[str, ...]:
        given = self.settings.get("slices", [])
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise self.bad("slices", f"{self.path}: 'slices' must be field names", 'for instance slices = ["relation"]')
        return tuple(names)

    def template(self, kind: str) -> str | None:
        if "template" not in self.settings:
            return None
        template, target = self.text("template"), KINDS[kind].templated
        if target is None:
            raise self.bad("template", f"{self.path}: a {kind} suite takes no template", "remove it")
        if not re.search(r"\{[^{}]+\}", template):
            raise self.bad(
                "template", f"{self.path}: the template names no field", 'for instance template = "Question: {question} Answer:"'
            )
        return template

    def seq_len(self, kind: str) -> int:
        length = self.settings.get("seq_len", DEFAULT_SEQ_LEN)
        if "seq_len" in self.settings and kind != "perplexity":
            raise self.bad("seq_len", f"{self.path}: only perplexity suites take 'seq_len'", "remove it")
        if isinstance(length, bool) or not isinstance(length, int) or not 2 <= length <= 1_000_000:
            raise self.bad("seq_len", f"{self.path}: 'seq_len' must be a whole number of at least 2", "for instance seq_len = 128")
        return length


def _meant(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def unique_names(suites: list[Suite]) -> list[str]:
    """Names in order; raises BadRecipe when two suites share one, since results are filed by name."""
    seen: dict[str, Path] = {}
    for suite in suites:
        if suite.name in seen:
            raise BadRecipe(f"two suites are called {suite.name!r}: {seen[suite.name]} and {suite.path}", hint="rename one of them")
        seen[suite.name] = suite.path
    return list(seen)
