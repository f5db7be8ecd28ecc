"""A verdict as people read it: one line per rule, its mark, its sentence."""

from __future__ import annotations

from collections import Counter
from typing import Any

from . import text
from .style import Paint

MARKS = {"pass": "✓", "fail": "✗", "warn": "!", "waived": "~", "skipped": "·"}
COLOURS = {"pass": "green", "fail": "red", "warn": "yellow", "waived": "magenta", "skipped": "dim"}
COUNTED = {"pass": "passed", "fail": "failed", "warn": "warned", "waived": "waived", "skipped": "not judged"}
WORDS = {"accepted": "Accepted", "refused": "Refused", "ungated": "Not gated"}


def verdict_lines(verdict: dict[str, Any], paint: Paint, *, all_rules: bool = True) -> list[str]:
    """The outcome, then the rules: all, or only those that did not simply pass."""
    rules = verdict["rules"]
    colour = {"accepted": paint.green, "refused": paint.red}.get(verdict["outcome"], paint.dim)
    counts = Counter(rule["outcome"] for rule in rules)
    said = ", ".join(f"{counts[outcome]} {word}" for outcome, word in COUNTED.items() if counts[outcome])
    lines = [colour(WORDS[verdict["outcome"]]) + (f": {said}." if rules else ".")]
    for rule in rules:
        if all_rules or rule["outcome"] not in ("pass", "skipped"):
            mark = getattr(paint, COLOURS[rule["outcome"]])(MARKS[rule["outcome"]])
            lines.append(f"  {mark} {rule['rule']}: {text.sentence(rule['sentence'])}")
    for waiver in verdict.get("waivers", ()):
        until = f" until {waiver['until']}" if waiver.get("until") else ""
        lines.append(f"  {paint.magenta('waived')} {waiver['rule']} by {waiver['author']}{until}: {waiver['reason']}")
    return lines
