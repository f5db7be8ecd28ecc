"""Policy files to rules. Every complaint names file, line and column; pydantic is imported only when a file is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...registry.ids import record_digest
from ...registry.records import InputRecord
from .. import documents
from ..documents import Document, KeyPath
from .rule import DELTA_METRICS, FLIP_METRICS, ROOMS, Rule
from .when import BadExpression, parse

if TYPE_CHECKING:
    from ..schemas import RuleTable
    from ..settings import Settings

BUILT_IN = Path(__file__).parent.parent / "default.toml"
FLOORED = ("nfr", "nfr_lower95", "nfr_upper95", "churn")  # what two seeds of one recipe differ by, too
LIMITS = ("max", "min", "ratio_max", "drop_max")


def load_policy(settings: Settings) -> tuple[list[Rule], list[InputRecord]]:
    """The rules in force and a record of each policy file. A later file replaces a rule of the same id, in place.

    Without any policy file the built-in policy holds; `[policy] files = []` says that nothing is judged.
    """
    paths = settings.policy_paths()
    return load_files([BUILT_IN] if paths is None else paths)


def load_files(paths: Sequence[Path]) -> tuple[list[Rule], list[InputRecord]]:
    """Read several policy files in order. Raises InputNotFound, BadRecipe."""
    rules: dict[str, Rule] = {}
    records = []
    for path in paths:
        for rule in load_rules(documents.read(path)):
            rules[rule.id] = rule
        data = path.read_bytes()
        records.append(InputRecord("policy", path.name, record_digest("mlc.policy.v1", data), len(data)))
    return list(rules.values()), records


def load_rules(document: Document) -> list[Rule]:
    """The rules of one parsed file. Raises BadRecipe."""
    from ..schemas import PolicyFile

    tables = documents.validate(PolicyFile, document).rule
    rules: list[Rule] = []
    for index, table in enumerate(tables):
        if any(rule.id == table.id for rule in rules):
            raise document.fault(("rule", index, "id"), f"the rule id {table.id!r} is already used in this file")
        rules.append(_rule(table, document, ("rule", index)))
    return rules


def _rule(table: RuleTable, document: Document, at: KeyPath) -> Rule:
    metric = _metric(table, document, at)
    given = [name for name in LIMITS if getattr(table, name) is not None]
    if table.sql is None and len(given) != 1:
        said = f"has {' and '.join(given)}" if given else "has no limit"
        raise document.fault(at, f"rule {table.id!r} {said}", hint=f"a rule has exactly one of {', '.join(LIMITS)}")
    if table.sql is not None and given:
        raise document.fault((*at, given[0]), "an sql rule has no limit", hint="it fails when its query returns a row")
    _check_test(table, metric, document, at)
    globs = (table.suite,) if isinstance(table.suite, str) else tuple(table.suite)
    if not all(glob.removeprefix("!") for glob in globs):
        raise document.fault((*at, "suite"), "suite: an empty name", hint='suite = "*" means every suite')
    condition = None
    if table.when is not None:
        try:
            condition = parse(table.when)
        except BadExpression as fault:
            raise document.fault((*at, "when"), f"when: {fault}", hint="for example: op in ('update', 'merge')") from None
    plain = table.model_dump(exclude={"metric", "suite"})
    return Rule(metric=metric, suite=globs, condition=condition, **plain)


def _metric(table: RuleTable, document: Document, at: KeyPath) -> str:
    if (table.metric is None) == (table.sql is None):
        raise document.fault(at, f"rule {table.id!r} needs a metric or a query, and not both", hint='metric = "flips.nfr_upper95"')
    if table.metric is None:
        return "sql"
    parts = table.metric.split(".")
    place = (*at, "metric")
    if parts[0] not in ROOMS or len(parts) < 2 or not all(parts):
        rooms = ", ".join(f"{room}.*" for room in ROOMS)
        raise document.fault(place, f"unknown metric {table.metric!r}", hint=f"metrics are {rooms}, or use sql = ...")
    if parts[0] == "suite" and len(parts) < 3:
        raise document.fault(place, f"{table.metric!r} names no suite", hint=f'for example "suite.*.{parts[1]}"')
    for room, known in (("flips", FLIP_METRICS), ("delta", DELTA_METRICS)):
        if parts[0] == room and ".".join(parts[1:]) not in known:
            raise document.fault(place, f"unknown metric {table.metric!r}", hint=documents.did_you_mean(parts[1], known))
    return table.metric


def _check_test(table: RuleTable, metric: str, document: Document, at: KeyPath) -> None:
    room = metric.split(".")[0]
    relative = next((name for name in ("ratio_max", "drop_max") if getattr(table, name) is not None), None)
    if relative and room != "suite":
        raise document.fault(
            (*at, relative), f"{relative} compares a suite's metric with that of another version", hint='"suite.*.accuracy"'
        )
    if table.test and table.drop_max is None:
        raise document.fault((*at, "test"), "a test belongs to drop_max", hint="add drop_max = 0.0")
    if table.test and metric.rsplit(".", 1)[-1] not in ("accuracy", "accuracy_norm"):
        raise document.fault((*at, "test"), f"{table.test} tests right and wrong answers, not {metric}", hint='metric = "suite.*.accuracy"')
    if table.floor and (room != "flips" or table.max is None or metric.rsplit(".", 1)[-1] not in FLOORED):
        raise document.fault(
            (*at, "floor"), f"a floor of noise is taken off {', '.join(FLOORED)}", hint='metric = "flips.nfr_lower95", max = 0.01'
        )
    if table.detect is not None and table.test != "mcnemar":
        raise document.fault((*at, "detect"), "detect belongs to test = 'mcnemar'", hint='add test = "mcnemar"')
    if table.slice and not (room == "flips" or table.test == "mcnemar"):
        raise document.fault((*at, "slice"), "slices are judged by flips.* or by drop_max with test = 'mcnemar'")
