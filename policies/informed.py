"""Merges by statistics of data: options become an operation that names each data file by its digest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..ops.data.items import read_items
from ..ops.merge.merge import Merge
from ..ops.merge.stored import METHODS as INFORMED
from ..ops.merge.stored import Informed
from ..registry.errors import BadParameter
from ..registry.ids import CommitId

OPTIONS = ("method", "settings", "weights")
WORDS: dict[str, dict[str, Any]] = {"fisher": {"norms": {"true": True, "false": False}.__getitem__}, "regmean": {"ratio": float}}


def informed_merge(ids: tuple[CommitId, ...], values: Mapping[str, Any]) -> Informed:
    """The operation for `--method fisher` and `regmean`. Raises BadParameter, and what reading the data files raises."""
    method = values["method"]
    for field in dataclasses.fields(Merge):
        if field.name not in OPTIONS and values.get(field.name, field.default) != field.default:
            raise BadParameter(f"{method} has no {field.name}", hint=f"--set data=A,B and --set {next(iter(WORDS[method]))}=...")
    data: tuple[str, ...] = ()
    extra: dict[str, Any] = {}
    for text in values.get("settings") or ():
        name, _, value = text.partition("=")
        if name == "data":
            data = tuple(value.split(","))
            continue
        try:
            extra[name] = WORDS[method][name](value)
        except (KeyError, ValueError):
            raise BadParameter(
                f"{method} cannot be given {text!r}", hint=f"--set data=A,B and --set {next(iter(WORDS[method]))}=..."
            ) from None
    digests = tuple(read_items(path, "retain").digest for path in data)
    return Informed(ids, method, data, digests, tuple(values.get("weights") or ()), **extra)


__all__ = ["INFORMED", "informed_merge"]
