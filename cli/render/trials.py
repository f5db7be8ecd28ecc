"""The trials of `mlc update --auto`: a row per candidate, beside full tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .style import Paint
from .text import printable

HEAD = f"  {'trial':24}  {'learnt':>7}  {'+-':>5}  {'old text':>9}  {'at par':>7}"


def trial_lines(found: Mapping[str, Any], paint: Paint) -> list[str]:
    """The table, what it cost, and what follows from it."""
    lines = [paint.dim(HEAD)]
    for row in found["rows"]:
        learnt, noise = (f"{row[k]:.0%}" if row[k] is not None else "" for k in ("learnt", "learnt_error"))
        par = f"{row['at_par']:.4f}" if row["at_par"] is not None else ""
        cells = f"  {printable(row['name']):24}  {learnt:>7}  {noise:>5}  {row['old_rise']:>+9.4f}  {par:>7}".rstrip()
        mark = paint.green("chosen") if row["name"] == found["choice"] else "" if row["eligible"] else paint.dim("learns too little")
        lines.append(f"{cells}  {mark}".rstrip())
    share = found["tokens"] / found["budget"]
    lines.append(
        paint.dim(
            f"learnt: share of full tuning's gain on held-out rows, at least {found['keep']:.0%}; old text: rise of its loss in nats."
        )
    )
    lines.append(paint.dim("at par: that rise at full tuning's gain, losses rising with the square of the way: the least is chosen."))
    lines.append(
        paint.dim(
            f"{found['tokens']:,} tokens were trained on ({share:.1%} of {found['budget']:,}) and {found['measured_tokens']:,} measured."
        )
    )
    return lines
