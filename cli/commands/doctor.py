"""`mlc doctor`: one line per thing that can be wrong, with the way out."""

from __future__ import annotations

from typing import Any

from ...registry.errors import MlcError
from ..context import Session


def run(session: Session) -> None:
    """Check this machine and this registry for trouble."""
    from ..checkup import machine, registry

    checks = [check.to_json() for check in (*machine(), *registry(session))]
    document = {"checks": checks, "ok": all(check["ok"] for check in checks)}
    session.show(document, lambda: _render(session, checks))
    if not document["ok"]:
        failed = [check["name"] for check in checks if not check["ok"]]
        raise MlcError(f"Trouble with {', '.join(failed)}.", hint=next((c["hint"] for c in checks if not c["ok"] and c["hint"]), None))
    session.hint("mlc status")


def _render(session: Session, checks: list[dict[str, Any]]) -> None:
    width = max(len(check["name"]) for check in checks)
    for check in checks:
        mark = session.paint.green("✓") if check["ok"] else session.paint.red("✗")
        session.line(f"{mark} {check['name'].ljust(width)}  {check['detail']}")
