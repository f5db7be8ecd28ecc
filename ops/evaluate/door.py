"""The door of a suite file: its settings checked key by key, so that every complaint names its key, its line and the way out."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry.errors import BadRecipe
from .kinds import DEFAULT_MAX_TOKENS, DEFAULT_SEQ_LEN, KINDS

EVERYWHERE = ("name", "kind", "data", "fields", "slices", "template", "metric", "private")
KEYS = (*EVERYWHERE, *dict.fromkeys(key for kind in KINDS.values() for key in kind.keys))

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Door:
    """The settings of one file. Every method returns a checked value or raises BadRecipe."""

    path: Path
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        for key in self.settings:
            if key not in KEYS:
                raise self.bad(key, f"{self.path}: unknown key {key!r}", _meant(key, KEYS))

    def bad(self, key: str, message: str, hint: str) -> BadRecipe:
        """The complaint about one key, to be raised."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        start = re.compile(rf"\s*\[?\s*[\"']?{re.escape(key)}\b")
        line = next((i for i, text in enumerate(lines, 1) if start.match(text)), None)
        where = {"line": line, "column": 1} if line else {}
        return BadRecipe(message if line is None else f"{message} (line {line})", hint=hint, path=str(self.path), **where)

    def text(self, key: str) -> str:
        """A text that must be there."""
        value = self.settings.get(key)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.bad(key, f"{self.path}: {key!r} must be a non-empty text", f'for instance {key} = "..."')
        return value

    def name(self) -> str:
        """The suite's name."""
        name = self.text("name")
        if not _NAME.fullmatch(name):
            raise self.bad("name", f"{self.path}: {name!r} is no suite name", "letters, digits, '.', '_' and '-', at most 64")
        return name

    def kind(self) -> str:
        """The kind; other settings must fit it."""
        kind = self.text("kind")
        if kind not in KINDS:
            raise self.bad("kind", f"{self.path}: unknown kind {kind!r}", _meant(kind, tuple(KINDS)))
        self._only(kind)
        return kind

    def _only(self, kind: str) -> None:
        """Settings of other kinds are refused: what is ignored in silence is believed to have been measured."""
        for key in self.settings:
            homes = [name for name, known in KINDS.items() if key in known.keys]
            if homes and kind not in homes:
                raise self.bad(key, f"{self.path}: only {' and '.join(homes)} suites take {key!r}", "remove it")
        if kind == "utility":
            for key in ("data", "fields", "slices", "template"):
                if key in self.settings:
                    raise self.bad(key, f"{self.path}: a utility suite takes no {key!r}: it measures its parts", "remove it")

    def metric(self, kind: str) -> str:
        """The metric that decides, the kind's first one by default."""
        known = KINDS[kind].metrics
        metric = self.settings.get("metric", known[0])
        if metric not in known:
            raise self.bad("metric", f"{self.path}: a {kind} suite has no metric {metric!r}", _meant(str(metric), known))
        return metric

    def fields(self, kind: str) -> dict[str, str | tuple[str, ...]]:
        """Our field names to the data's; an id may be put together from several."""
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
        """Fields that group the rows."""
        given = self.settings.get("slices", [])
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise self.bad("slices", f"{self.path}: 'slices' must be field names", 'for instance slices = ["relation"]')
        return tuple(names)

    def template(self, kind: str) -> str | None:
        """A text with {field} slots, or None."""
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

    def seq_len(self) -> int:
        """Tokens of a window."""
        return self.whole("seq_len", DEFAULT_SEQ_LEN, 2)

    def max_tokens(self) -> int:
        """Tokens that may be written."""
        return self.whole("max_tokens", DEFAULT_MAX_TOKENS, 1)

    def whole(self, key: str, default: int, least: int) -> int:
        """A whole number from `least` to a million."""
        value = self.settings.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
            raise self.bad(key, f"{self.path}: {key!r} must be a whole number of at least {least}", f"for instance {key} = {default}")
        return value

    def truth(self, key: str) -> bool:
        """true or false; false where the key is missing."""
        value = self.settings.get(key, False)
        if not isinstance(value, bool):
            raise self.bad(key, f"{self.path}: {key!r} must be true or false", f"for instance {key} = true")
        return value

    def texts(self, key: str, example: str, least: int = 0) -> tuple[str, ...]:
        """A list of non-empty texts, at least `least` of them."""
        given = self.settings.get(key, [])
        if not isinstance(given, list) or len(given) < least or not all(isinstance(text, str) and text for text in given):
            raise self.bad(key, f"{self.path}: {key!r} must be a list of texts", f"for instance {key} = [{example}]")
        return tuple(given)


def _meant(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"
