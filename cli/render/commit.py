"""One commit in full, and the short report after a command made one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from . import text
from .blocks import block_lines
from .style import Paint
from .trials import trial_lines
from .verdict import verdict_lines

TABLES = ("blocks", "auto")  # of a check: drawn below it
PRIMARY = ("accuracy", "perplexity")
Metrics = Mapping[str, Mapping[str, float | None]]


def made_lines(commit: dict[str, Any], paint: Paint, *, moved: bool = True, before: Metrics | None = None) -> list[str]:
    """What a mutating command says: id, branch, what changed, what was measured (and was `before`), what the gate said."""
    where = f" on {paint.green(commit['branch'])}" if moved and commit["branch"] else ""
    message = text.first_line(commit["message"])
    lines = [f"{paint.yellow(commit['short'])}{where}  {paint.magenta(commit['op']['name'])}{'  ' + message if message else ''}"]
    if commit["delta"]:
        lines.append("  " + delta_line(commit["delta"], root=not commit["parents"]))
    lines += [f"  {line}" for line in metric_lines(commit["metrics"], paint, before)]
    if commit["verdict"]["rules"]:
        lines += verdict_lines(commit["verdict"], paint, all_rules=False)
    return lines


def delta_line(delta: dict[str, Any], *, root: bool = False) -> str:
    """`8 of 12 tensors changed, 1.0 MiB stored in 310.2 KiB (30.0 %).`"""
    if not delta["tensors_changed"]:
        return f"{text.count(delta['tensors_total'], 'tensor')}, none changed."
    total = text.count(delta["tensors_total"], "tensor")
    changed = total if root else f"{delta['tensors_changed']:,} of {total} changed"
    if not delta["bytes_stored"]:
        return f"{changed}, all of them stored already."
    share = f" ({text.percent(delta['bytes_stored'] / delta['bytes_logical'])})" if delta["bytes_logical"] else ""
    return f"{changed}, {text.size(delta['bytes_logical'])} stored in {text.size(delta['bytes_stored'])}{share}."


def metric_lines(metrics: Metrics, paint: Paint, before: Metrics | None = None) -> list[str]:
    """One aligned line per suite; a value that moved says what it was."""
    width = max((len(suite) for suite in metrics), default=0)

    def value(suite: str, name: str, now: float | None) -> str:
        was = (before or {}).get(suite, {}).get(name, now)
        return f"{name} {text.number(now)}" + (paint.dim(f" (was {text.number(was)})") if was != now else "")

    return [
        f"{paint.cyan(suite.ljust(width))}  " + "  ".join(value(suite, name, values[name]) for name in sorted(values, key=rank))
        for suite, values in metrics.items()
    ]


def rank(metric: str) -> tuple[int, str]:
    """The metric that decides comes first."""
    return (PRIMARY.index(metric) if metric in PRIMARY else len(PRIMARY), metric)


def show_lines(commit: dict[str, Any], refs: list[str], paint: Paint) -> list[str]:
    """The whole page of `mlc show`."""
    when = datetime.fromisoformat(commit["time"]).strftime("%Y-%m-%d %H:%M:%S UTC")
    decoration = f"  ({paint.green(', '.join(refs))})" if refs else ""
    lines = [f"commit   {paint.yellow(commit['id'])}{decoration}"]
    lines += [f"parent   {parent}" for parent in commit["parents"]]
    lines += [f"snapshot {commit['snapshot']}", f"author   {commit['author']}", f"time     {when}  ({text.ago(commit['time'])})"]
    lines.append(f"op       {paint.magenta(commit['op']['name'])} version {commit['op']['version']}")
    lines += _pairs("params", {k: v for k, v in commit["op"]["params"].items() if v not in (None, (), [], {}, "")}, paint)
    lines += _pairs("seeds", commit["seeds"], paint)
    if commit["message"]:
        lines += ["", *(f"    {line}" for line in commit["message"].splitlines()), ""]
    lines += [f"input    {i['role']}  {text.printable(i['name'])}  {text.size(i['bytes'])}  {i['digest'][:12]}" for i in commit["inputs"]]
    lines += [f"artifact {a['kind']}  {text.size(a['bytes'])}  {a['digest'][:12]}" for a in commit["artifacts"]]
    if commit["delta"]:
        codecs = ", ".join(f"{name} {n}" for name, n in commit["delta"]["codecs"].items())
        lines.append(f"storage  {delta_line(commit['delta'], root=not commit['parents'])}{' Codecs: ' + codecs + '.' if codecs else ''}")
    lines += _block("metrics", metric_lines(commit["metrics"], paint))
    lines += _block("check", [f"{key}  {brief(value)}" for key, value in commit["check"].items() if key not in TABLES])
    if blocks := commit["check"].get("blocks"):
        lines += _block("blocks", block_lines(blocks, paint))
    if trials := commit["check"].get("auto"):
        lines += _block("trials", trial_lines(trials, paint))
    lines += _block("verdict", verdict_lines(commit["verdict"], paint))
    return lines


def _pairs(label: str, values: dict[str, Any], paint: Paint) -> list[str]:
    return [f"{label:<8} " + "  ".join(f"{paint.dim(str(k))} {brief(v)}" for k, v in values.items())] if values else []


def _block(label: str, lines: list[str]) -> list[str]:
    return [f"{label if i == 0 else '':<8} {line}" for i, line in enumerate(lines)]


def brief(value: Any) -> str:
    """A value on one line; long lists by their length and ends."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return text.number(value)
    if isinstance(value, list | tuple):
        shown = [brief(item) for item in value]
        return f"[{', '.join(shown)}]" if len(shown) <= 6 else f"[{', '.join(shown[:3])}, … {shown[-1]}] ({len(shown)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {brief(v)}" for k, v in value.items()) + "}"
    return text.printable(str(value))
