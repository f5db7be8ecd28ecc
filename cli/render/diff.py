"""Two versions side by side: flips with their certainty, distances by layer and role, what changed in the config."""

from __future__ import annotations

import json
from typing import Any

from ..context import Session
from . import text
from .commit import rank


def render_behaviour(session: Session, suites: dict[str, Any], asked: dict[str, dict[str, str]] | None) -> None:
    """One row per suite; then the flips of each, unless `asked` (example texts by suite digest) is None."""
    from .console import print_table

    paint = session.paint
    judged = {name: s for name, s in suites.items() if s["acc_a"] is not None}
    others = {name: s for name, s in suites.items() if s["acc_a"] is None}
    if judged:
        rows = [
            (
                name, f"{s['n']:,}", f"{text.percent(s['acc_a'])} -> {text.percent(s['acc_b'])}",
                _red(session, s["negative_flips"]), str(s["positive_flips"]), text.percent(s["nfr"]), text.percent(s["nfr_upper95"]),
                _p(s["mcnemar_p"]), text.percent(s["churn"]),
            )
            for name, s in judged.items()
        ]  # fmt: skip
        columns = ("suite", "n", "accuracy", "lost", "won", "nfr", "nfr below", "McNemar p", "churn")
        print_table(session.console(), columns, rows, right=columns[1:])
        session.line(paint.dim("lost: right before, wrong now (negative flips). nfr below: upper 95 % bound of their rate."))
    for name, s in suites.items():
        for what, unit in (("similarity", ""), ("likelihood", " nats")):
            if (moved := s.get(what)) is not None and moved["regression"]:
                fell, more = text.number(moved["regression"]), text.number(moved["gain"])
                share = text.percent(moved["smooth_nfr"]["0.1"])
                session.line(f"{paint.cyan(name)}  {what} fell by {fell}{unit} and rose by {more} a row; {share} fell by over 0.1")
    for name, s in judged.items():
        if s.get("ks") is not None:
            session.line(f"{paint.cyan(name)}  truth ratios {text.number(s['ks'])} apart (Kolmogorov-Smirnov p {s['ks_p']:.3g})")
    for name, s in others.items():
        before, after = s["metrics"]["a"], s["metrics"]["b"]
        shown = "  ".join(
            f"{metric} {text.number(before.get(metric))} -> {text.number(after.get(metric))}" for metric in sorted(after, key=rank)
        )
        session.line(f"{paint.cyan(name)}  {shown}")
    for name, s in judged.items():
        if s.get("slices"):
            _render_slices(session, name, s["slices"])
    if asked is not None:
        for name, s in judged.items():
            _render_flips(session, name, s, asked.get(s["suite_digest"], {}))


SHOWN_SLICES = 12


def _render_slices(session: Session, name: str, slices: dict[str, dict[str, Any]]) -> None:
    """The worst slices first, as the document has them."""
    from .console import print_table

    rows = [
        (
            text.printable(label) or "-", f"{s['n']:,}", _red(session, s["negative_flips"]), str(s["positive_flips"]),
            text.percent(s["nfr"]), text.percent(s["nfr_upper95"]), _p(s["p_holm"]),
        )
        for label, s in list(slices.items())[:SHOWN_SLICES]
    ]  # fmt: skip
    columns = ("slice", "n", "lost", "won", "nfr", "nfr below", "worse: p (Holm)")
    session.line()
    left = len(slices) - len(rows)
    more = f"; {left:,} more under --json" if left else ""
    session.line(f"{session.paint.cyan(name)}  by slice, the worst first{more}.")
    print_table(session.console(), columns, rows, right=columns[1:])


def _red(session: Session, count: int) -> str:
    return session.paint.red(str(count)) if count else "0"


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _render_flips(session: Session, name: str, suite: dict[str, Any], asked: dict[str, str]) -> None:
    from .console import print_table

    paint = session.paint
    session.line()
    total, listed = suite["negative_flips"] + suite["positive_flips"], suite["flips"]
    if not total:
        session.line(f"{paint.cyan(name)}  no flips.")
        return
    session.line(f"{paint.cyan(name)}  {text.count(total, 'flip')}{f', {len(listed)} shown' if len(listed) < total else ''}.")
    word = {"negative": paint.red("lost"), "positive": paint.green("won")}
    columns = ["", "example", "answer", "A said", "B says"]
    rows = [[word[f["kind"]], *(text.printable(str(f[key] or "-")) for key in ("example", "answer", "a", "b"))] for f in listed]
    if asked:
        columns.append("asked")
        for row, flip in zip(rows, listed, strict=True):
            row.append(text.first_line(text.printable(asked.get(flip["example"], "")), 48))
    if rows:
        print_table(session.console(), columns, rows, styles={"asked": "dim"})


def render_weights(session: Session, found: dict[str, Any], *, full: bool) -> None:
    """A sentence; by role, or with `full` by layer and role."""
    from .console import print_table

    parts = [f"{found['tensors_changed']:,} of {text.count(found['tensors_total'], 'tensor')} changed"]
    parts += [f"{len(found[key])} {key}" for key in ("added", "removed") if found[key]]
    session.line(f"{session.paint.cyan('weights')}  {', '.join(parts)}.")
    if full and found["layers"]:
        strongest = max((row["rel_l2"] or 0.0 for row in found["layers"]), default=0.0)
        rows = [
            (
                "-" if row["layer"] is None else str(row["layer"]), row["role"], str(row["tensors"]),
                text.number(row["rel_l2"]), text.number(row["max_abs"]), bar(row["rel_l2"], strongest),
            )
            for row in found["layers"]
        ]  # fmt: skip
        print_table(
            session.console(),
            ("layer", "role", "tensors", "rel l2", "max abs", ""),
            rows,
            right=("layer", "tensors", "rel l2", "max abs"),
            styles={"": "cyan"},
        )
    for key in ("added", "removed"):
        for name in found[key] if full else ():
            session.line(f"  {key}  {text.printable(name)}")


def bar(value: float | None, most: float, width: int = 20) -> str:
    """A length for a number."""
    return "█" * max(1, round(width * value / most)) if value and most else ""


def render_config(session: Session, config: dict[str, Any], files: dict[str, list[str]]) -> None:
    """Keys and files that differ; nothing when none does."""
    paint = session.paint
    for key, (old, new) in config["changed"].items():
        session.line(f"{paint.cyan('config')}  {key}: {_short(old)} -> {_short(new)}")
    for word, sign in (("added", "+"), ("removed", "-")):
        for key, value in config[word].items():
            session.line(f"{paint.cyan('config')}  {sign} {key}: {_short(value)}")
    for word, paths in files.items():
        for path in paths:
            session.line(f"{paint.cyan('file')}  {word}  {text.printable(path)}")


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return text.printable(shown if len(shown) <= 60 else shown[:57] + "...")
