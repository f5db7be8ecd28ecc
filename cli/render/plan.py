"""What a --dry-run says."""

from __future__ import annotations

from typing import Any

from ...registry.ids import is_digest, short
from . import text
from .style import Paint

SHOWN = ("importance",)  # told with the table of blocks


def plan_json(plan: Any) -> dict[str, Any]:
    """A plan as JSON: sizes in bytes, time in seconds; None where nothing is known."""
    return {
        "summary": plan.summary,
        "touches": list(plan.touches),
        "bytes_touched": plan.bytes_touched,
        "trainable": plan.trainable,
        "steps": plan.steps,
        "seconds": plan.seconds,
        "memory": plan.memory,
        "details": dict(plan.details),
    }


def plan_lines(plan: dict[str, Any], paint: Paint) -> list[str]:
    """A sentence, then what it costs."""
    from .commit import brief

    shown = plan["touches"][:4]
    more = f" and {len(plan['touches']) - len(shown)} more" if len(plan["touches"]) > len(shown) else ""
    rows = [
        ("tensors", f"{len(plan['touches']):,}: {', '.join(text.printable(t) for t in shown)}{more}" if shown else "none"),
        ("bytes", text.size(plan["bytes_touched"]) if plan["bytes_touched"] else "none new"),
        ("trained", f"{plan['trainable']:,} elements" if plan["trainable"] else ""),
        ("steps", f"{plan['steps']:,}" if plan["steps"] else ""),
        ("time", f"about {text.seconds(plan['seconds'])}" if plan["seconds"] is not None else ""),
        ("memory", f"about {text.size(plan['memory'])}" if plan["memory"] is not None else ""),
        *(
            (key, brief(_ids_cut(value)))
            for key, value in plan["details"].items()
            if key not in ("tensors", "bytes", "steps") and not _table(value) and key not in SHOWN
        ),
    ]
    width = max(len(label) for label, value in rows if value)
    said = text.sentence(plan["summary"][:1].upper() + plan["summary"][1:])
    return [said, *(f"  {paint.dim(label.ljust(width))}  {value}" for label, value in rows if value), "Nothing was written."]


def _ids_cut(value: Any) -> Any:
    """Ids as tables show them; --json has them whole."""
    if isinstance(value, list | tuple):
        return [_ids_cut(item) for item in value]
    return short(value) if isinstance(value, str) and is_digest(value) else value


def _table(value: Any) -> bool:
    """Rows that a verb shows in its own way."""
    return isinstance(value, list | tuple) and any(isinstance(row, dict) for row in value)
