"""Numbers, sizes and times as people read them. Pure functions, no imports to speak of."""

from __future__ import annotations

from datetime import UTC, datetime


def size(count: float) -> str:
    """Bytes in powers of 1024: `812 B`, `1.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float | None) -> str:
    """A metric: four significant digits, no exponent where it can be helped; `-` for a value that was not finite."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-4:
        return f"{value:.2e}"
    shown = f"{value:.4g}"
    return shown if "." in shown else f"{value:.1f}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal, two below one percent."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if value >= 0.01 or value == 0 else f"{100 * value:.2f} %"


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 tensor`, `12 tensors`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def seconds(value: float) -> str:
    """A duration: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = max(0, round(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(moment: str, now: datetime | None = None) -> str:
    """A UTC ISO time as a distance from now: `just now`, `5 minutes ago`, `3 weeks ago`."""
    passed = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    if passed < 45:
        return "just now"
    for unit, length, limit in _UNITS:
        if passed < limit:
            amount = max(1, round(passed / length))
            return f"{amount} {unit}{'s' if amount > 1 else ''} ago"
    return moment[:10]


_UNITS = (("minute", 60, 3_570), ("hour", 3600, 84_600), ("day", 86_400, 13 * 86_400), ("week", 604_800, 60 * 86_400),
          ("month", 2_629_800, 700 * 86_400), ("year", 31_557_600, 1e12))  # fmt: skip


def first_line(text: str, width: int = 60) -> str:
    """The first line of a message, shortened to `width` characters."""
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def sentence(text: str) -> str:
    """With its full stop."""
    return text if text.endswith((".", "?", "!")) else text + "."


def rate(per_second: float) -> str:
    """`1,200 a second`, `3.4 a second`."""
    return f"{per_second:,.0f} a second" if per_second >= 100 else f"{per_second:.2g} a second"


def printable(text: str) -> str:
    """Text from a file or model with control characters shown, so that it cannot drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
