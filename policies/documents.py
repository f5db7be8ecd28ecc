"""Files that people write (TOML, YAML), read so that every complaint names the line and column of the key.

tomllib and a YAML tree tell what a file says but not where; a small scanner finds where each key stands. Pydantic,
imported only here and only when there is a file to judge, checks types; what leaves this module is plain data.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..registry.errors import BadRecipe, InputNotFound
from .toml_places import KeyPath, TomlPlaces

if TYPE_CHECKING:
    import pydantic

    Model = TypeVar("Model", bound=pydantic.BaseModel)

MAX_DEPTH = 32
MAX_BYTES = 1 << 20  # a recipe is written by hand; more is a mistake or an attack


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and where it says it: `places` maps a key path to (line, column), both from 1."""

    name: str
    data: dict[str, Any]
    places: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)

    def fault(self, path: KeyPath, message: str, *, hint: str | None = None) -> BadRecipe:
        """The error for the key at `path`; falls back to the nearest enclosing key that has a place."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                line, column = self.places[path[:end]]
                return located(self.name, line, column, message, hint)
        return BadRecipe(f"{self.name}: {message}", hint=hint, path=self.name)


def located(name: str, line: int, column: int, message: str, hint: str | None = None) -> BadRecipe:
    """A BadRecipe that says where; details carry `path`, `line` and `column`."""
    return BadRecipe(f"{name}, line {line}, column {column}: {message}", hint=hint, path=name, line=line, column=column)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest known word, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"


# --- reading ---------------------------------------------------------------------------------------------


def read(path: Path, *, name: str | None = None) -> Document:
    """Parse a TOML (`.toml`) or YAML (`.yaml`, `.yml`) file. Raises InputNotFound, BadRecipe."""
    name = name or path.name
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise InputNotFound(f"there is no file {path}", hint="check the path") from None
    except OSError as fault:
        raise BadRecipe(f"{name} cannot be read: {fault.strerror}", path=name) from fault
    if len(data) > MAX_BYTES:
        raise BadRecipe(f"{name} is larger than 1 MiB", hint="keep data in data files and name them here", path=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise BadRecipe(f"{name} is not UTF-8 text (byte {fault.start})", path=name) from fault
    return parse_yaml(text, name) if path.suffix in (".yaml", ".yml") else parse_toml(text, name)


def parse_toml(text: str, name: str) -> Document:
    """Parse TOML text. Raises BadRecipe with line and column on a syntax error."""
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        found = re.search(r"^(.*?) \(at line (\d+), column (\d+)\)$", str(fault))
        if not found:  # "at end of document"
            raise located(name, text.count("\n") + 1, 1, f"not valid TOML: {fault}") from fault
        raise located(name, int(found[2]), int(found[3]), f"not valid TOML: {found[1]}") from fault
    except RecursionError as fault:
        raise BadRecipe(f"{name} is nested too deeply", path=name) from fault
    return Document(name, data, TomlPlaces(text).scan())


def parse_yaml(text: str, name: str) -> Document:
    """Parse YAML text with the safe loader's types only: no aliases, no tags of its own, no duplicate keys."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise BadRecipe(f"{name} is nested too deeply", path=name)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                mark = event.start_mark
                raise located(name, mark.line + 1, mark.column + 1, "YAML anchors and aliases are not read", "write the value out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        places: dict[KeyPath, tuple[int, int]] = {}
        _yaml_places(node, (), places, name)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise located(name, line, column, f"not valid YAML: {fault.problem or fault.context}") from fault
    except (yaml.YAMLError, RecursionError, ValueError) as fault:
        raise BadRecipe(f"{name} is not valid YAML: {fault}", path=name) from fault
    if not isinstance(data, dict):
        raise BadRecipe(f"{name} must hold keys and values at its top level", hint="for example: lr: 0.001", path=name)
    return Document(name, data, places)


def _yaml_places(node: Any, path: KeyPath, places: dict[KeyPath, tuple[int, int]], name: str) -> None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*path, index)] = (item.start_mark.line + 1, item.start_mark.column + 1)
            _yaml_places(item, (*path, index), places, name)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if not (isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:str"):
                raise located(name, line, column, "keys must be plain words", "put the key in quotes")
            if (*path, key.value) in places:
                raise located(name, line, column, f"the key {key.value!r} appears twice")
            places[(*path, key.value)] = (line, column)
            _yaml_places(value, (*path, key.value), places, name)


# --- pydantic at the door --------------------------------------------------------------------------------


def validate(model: type[Model], document: Document, at: KeyPath = ()) -> Model:
    """Check `document` (or the table at `at`) against a pydantic model that forbids extra keys. Raises BadRecipe."""
    import pydantic

    data: Any = document.data
    for key in at:
        data = data[key]
    try:
        return model.model_validate(data, strict=True)
    except pydantic.ValidationError as fault:
        first = fault.errors(include_url=False, include_input=True)[0]
        loc: KeyPath = tuple(first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, loc[:-1])
            raise document.fault((*at, *loc), f"unknown key {loc[-1]!r}", hint=did_you_mean(str(loc[-1]), known)) from None
        path = (*at, *_strip(loc, data))
        label = ".".join(str(key) for key in _strip(loc, data) if isinstance(key, str)) or "this table"
        if first["type"] == "missing":
            raise document.fault(path[:-1] or path, f"the key {loc[-1]!r} is missing", hint=f"add {loc[-1]} = ...") from None
        message = first["msg"].removeprefix("Value error, ")
        raise document.fault(path, f"{label}: {message[0].lower() + message[1:]} (found {first['input']!r:.60})") from None


def _strip(loc: KeyPath, data: Any) -> KeyPath:
    """The part of a pydantic location that names keys of the data; union branches (`str`, `list[str]`) drop out."""
    path: list[str | int] = []
    for key in loc:
        if isinstance(data, dict) and key not in data and len(path) < len(loc) - 1:
            continue
        try:
            data = data[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            if isinstance(data, dict):
                path.append(key)
            continue
        path.append(key)
    return tuple(path)


def _known_keys(model: Any, loc: KeyPath) -> list[str]:
    """The keys allowed in the table that `loc` leads to."""
    for key in loc:
        fields = getattr(model, "model_fields", None)
        model = (fields[key].annotation if key in fields else None) if fields is not None else _element(model)
    return list(getattr(model, "model_fields", {}))


def _element(annotation: Any) -> Any:
    """What a list or a table of tables holds; unions answer for their container branch."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next((found for found in map(_element, arguments) if found is not None), None)
    return arguments[-1] if arguments else None
