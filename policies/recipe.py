"""Recipes: an operation's options in a TOML or YAML file, checked against the operation before anything runs.

    op = "update"            # optional where the verb says it
    data = "new.txt"
    replay = ["self:0.5"]

Paths in a recipe are relative to where the command runs, as on the command line. What the command line says holds.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ops import catalog
from ..registry.records import Json
from . import documents
from .documents import Document

if TYPE_CHECKING:
    from ..ops.base import Operation


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe. `given` is what the file says, `params` every parameter after defaults."""

    op: str
    given: dict[str, Json]
    params: dict[str, Json]


def load_recipe(path: Path, op: str | None = None, *, operation: type[Operation] | None = None) -> Recipe:
    """Read a recipe for `op` (else for the operation that its key `op` names).

    Raises BadRecipe with line, column and "did you mean"; BadParameter for values that the operation refuses.
    """
    document = documents.read(path)
    name = _name(document, op)
    kind = operation or catalog.load(name)
    values = given(document, kind)
    missing = [f.name for f in dataclasses.fields(kind) if _required(f) and f.name not in values]
    if missing:
        raise document.fault((), f"the key {missing[0]!r} is missing", hint=f"add {missing[0]} = ...")
    return Recipe(name, values, kind.from_params(dict(values)).as_typed().params())


def read_given(path: Path, op: str, *, operation: type[Operation] | None = None) -> dict[str, Json]:
    """What a recipe says, checked key by key; what it leaves out may come from the command line."""
    document = documents.read(path)
    return given(document, operation or catalog.load(_name(document, op)))


def merged(recipe: dict[str, Json], flags: dict[str, Json]) -> dict[str, Json]:
    """The recipe's values with those of the command line over them; None on the command line means "not said"."""
    return recipe | {key: value for key, value in flags.items() if value is not None}


def given(document: Document, operation: type[Operation]) -> dict[str, Json]:
    """The operation's options in a parsed file, types checked. Raises BadRecipe."""
    body = {key: value for key, value in document.data.items() if key != "op"}
    known = {f.name for f in dataclasses.fields(operation)}
    for key in body:
        if key not in known:
            hint = documents.did_you_mean(key.replace("-", "_"), known)
            raise document.fault((key,), f"{operation.name} has no option {key!r}", hint=hint)
    checked = documents.validate(_model(operation), dataclasses.replace(document, data=_lists(operation, body)))
    return {key: getattr(checked, key) for key in body}


def _name(document: Document, op: str | None) -> str:
    said = document.data.get("op", op)
    if not isinstance(said, str):
        raise document.fault(("op",), "the recipe does not say which operation it is for", hint='op = "update"')
    if op is not None and said != op:
        raise document.fault(("op",), f"this is a recipe for {said}, not for {op}", hint=f"mlc {said} --recipe {document.name}")
    if said not in catalog.CATALOG:
        raise document.fault(("op",), f"there is no operation {said!r}", hint=documents.did_you_mean(said, catalog.CATALOG))
    return said


def _lists(operation: type[Operation], body: dict[str, Any]) -> dict[str, Any]:
    """One word where a list is wanted is a list of one."""
    hints = typing.get_type_hints(operation)
    return {k: [v] if typing.get_origin(hints[k]) in (tuple, list) and not isinstance(v, list) else v for k, v in body.items()}


def _model(operation: type[Operation]) -> Any:
    """A pydantic model with the operation's fields, none of them required: the command line may say the rest."""
    from pydantic import ConfigDict, create_model

    hints = typing.get_type_hints(operation)
    fields: dict[str, Any] = {f.name: (_listed(hints[f.name]), None) for f in dataclasses.fields(operation)}
    return create_model(operation.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def _listed(hint: Any) -> Any:
    return list[typing.get_args(hint)[0]] if typing.get_origin(hint) is tuple else hint  # type: ignore[misc]


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
