"""Every operation on one line. Strings, so that `log` and `--help` know them all without importing torch."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

from ..registry.errors import BadParameter
from .base import Operation

CATALOG: dict[str, str] = {
    "align.embeddings": "embed.align:AlignEmbeddings",
    "align": "compat.align:Align",
    "edit": "edit.edit:Edit",
    "edit.revert": "edit.revert:RevertFacts",
    "patch": "patch.patch:Patch",
    "patch.train": "patch.cure:Cure",
    "merge": "merge.merge:Merge",
    "merge.adapters": "merge.adapters:MergeAdapters",
    "merge.informed": "merge.stored:Informed",
    "merge.opcm": "merge.chain:Opcm",
    "merge.rebuild": "merge.reversible:Rebuild",
    "merge.rmm": "merge.reversible:Rmm",
    "unlearn": "unlearn.unlearn:Unlearn",
    "update": "update.train:Update",
}


def load(name: str) -> type[Operation]:
    """The class of an operation. Raises BadParameter for a name that is not in the catalog."""
    if name not in CATALOG:
        raise BadParameter(f"there is no operation {name!r}", hint=f"known: {', '.join(sorted(CATALOG))}")
    module, _, attribute = CATALOG[name].partition(":")
    return getattr(import_module(f".{module}", __package__), attribute)


def describe(name: str) -> dict[str, Any]:
    """Name, version, first line of the docstring and options (type, default, help) of an operation, for help pages."""
    operation = load(name)
    return {
        "name": operation.name,
        "version": operation.version,
        "summary": (operation.__doc__ or "").strip().splitlines()[0],
        "options": [_option(f) for f in dataclasses.fields(operation)],
    }


def _option(f: dataclasses.Field[Any]) -> dict[str, Any]:
    required = f.default is dataclasses.MISSING
    flag = f.metadata.get("flag") or "--" + f.name.replace("_", "-")
    return {
        "name": f.name,
        "flag": flag,
        "type": str(f.type),
        "required": required,
        "default": None if required else f.default,
        "help": f.metadata.get("help", ""),
    }
