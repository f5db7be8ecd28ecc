"""What a merge did to the answers of each version that went into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...registry.ids import short
from .style import Paint
from .text import count, number


def parent_lines(check: Mapping[str, Any], names: Any, paint: Paint) -> list[str]:
    """One line per parent and suite: answers lost and gained, and the numbers; then the state of a chain. Nothing without parents."""
    parents: Mapping[str, Any] = check.get("parents") or {}
    lines = []
    if any(parents.values()):
        called = {parent: _name(parent, names) for parent in parents}
        width = max(map(len, called.values()))
        lines.append(paint.dim("  against each version that was merged:"))
        for parent, suites in parents.items():
            lines += [f"  {called[parent].ljust(width)}  {paint.cyan(suite)}  {told}" for suite, told in _suites(suites)]
    if isinstance(chain := check.get("opcm"), Mapping):
        held, far = count(chain["count"], "model"), number(chain["norm"])
        lines.append(f"  {held} at a distance of {far} from the base, scale {number(chain['scale'])}.")
    return lines


def _suites(suites: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for suite, told in suites.items():
        parts: Iterable[str] = (
            f"{metric} {number(told['after'][metric])} (was {number(was)})"
            for metric, was in told["before"].items()
            if metric in ("accuracy", "perplexity") and metric in told["after"]
        )
        flips = [f"{told['negative_flips']} lost, {told['positive_flips']} gained of {told['n']:,}"] if "negative_flips" in told else []
        yield suite, "  ".join([*parts, *flips])


def _name(commit: str, names: Any) -> str:
    """A branch or tag that stands there, with the id."""
    found = next((name for kind in (names.branches, names.tags) for name, at in kind.items() if at == commit), None)
    return f"{short(commit)} ({found})" if found else short(commit)
