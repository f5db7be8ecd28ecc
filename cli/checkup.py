"""The checks behind `mlc doctor`. Each is a function that returns a sentence, or raises one of our errors."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..registry.errors import MlcError, NotFound
from .context import Session
from .render.text import count, size

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "duckdb", "pyarrow", "typer", "rich", "blake3", "zstandard")
LITTLE_SPACE = 2 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a plain dict."""
        return dataclasses.asdict(self)


def machine() -> Iterator[Finding]:
    """Python, platform and packages; nothing heavy is imported."""
    yield Finding("python", sys.version_info >= (3, 11), platform.python_version(), "mlc needs Python 3.11 or newer")
    known = sys.platform in ("linux", "darwin")
    yield Finding(
        "platform",
        known,
        f"{platform.system()} {platform.machine()}, {count(os.cpu_count() or 1, 'core')}",
        "Linux and macOS are supported",
    )
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, v in found.items() if v is None]
    detail = ", ".join(f"{name} {v}" for name, v in found.items() if v) + (f"; missing: {', '.join(missing)}" if missing else "")
    yield Finding("packages", not missing, detail, f"pip install {' '.join(missing)}" if missing else None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def registry(session: Session) -> Iterator[Finding]:
    """The registry here, if there is one: settings, policy, suites, journal, catalog, space."""
    try:
        repo = session.repo
    except NotFound as fault:
        yield Finding("registry", True, f"none here ({fault.message})", fault.hint)
        return
    yield Finding("registry", True, str(repo.root))
    steps: list[tuple[str, Callable[[], str]]] = [
        ("settings", lambda: f"valid, {count(len(session.settings.suites), 'suite pattern')}"),
        ("policy", lambda: _policy(session)),
        ("suites", lambda: _suites(session)),
        ("journal", lambda: _quick_check(session)),
        ("catalog", lambda: _catalog(session)),
        ("keys", lambda: _keys(session)),
        ("disk", lambda: _space(session)),
    ]
    for name, step in steps:
        yield _tried(name, step)


def _tried(name: str, step: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, step())
    except MlcError as fault:
        return Finding(name, False, fault.message, fault.hint)
    except OSError as fault:
        return Finding(name, False, str(fault.strerror or fault))


def _policy(session: Session) -> str:
    from ..policies.rules.load import load_policy

    rules, records = load_policy(session.settings)
    return f"{count(len(rules), 'rule')} in {', '.join(record.name for record in records) or 'no file'}"


def _suites(session: Session) -> str:
    from ..ops.evaluate.suite import load_suite

    suites = [load_suite(path) for path in session.settings.suite_files()]
    return ", ".join(f"{suite.name} ({suite.kind}, {count(len(suite.examples()), 'example')})" for suite in suites) or "none configured"


def _quick_check(session: Session) -> str:
    from ..registry.maintenance.fsck import fsck

    report = fsck(session.repo, 0)
    if not report.clean:
        raise MlcError(next(f.sentence for f in report.findings if f.severity == "fault"), hint="mlc fsck --level 1")
    return f"{session.repo.journal.head()[0]:,} records"


def _catalog(session: Session) -> str:
    seq, head = session.repo.journal.head()
    applied = session.repo.catalog.applied()[:2]
    if applied != (seq, head):
        raise MlcError(f"stands at record {applied[0]:,}, the journal at {seq:,}", hint="mlc reindex")
    return f"stands at record {seq:,}"


def _keys(session: Session) -> str:
    keys = session.repo.keys
    found = keys.scopes()
    for scope in found:
        keys.key_id(scope)
        if (keys.path / scope).stat().st_mode & 0o077:
            raise MlcError(f"others may read the key of {scope}", hint=f"chmod 600 {keys.path / scope}")
    return (
        f"{count(len(found), 'key')} in .mlc/keys: back them up apart; without them items cannot be matched" if found else "none needed yet"
    )


def _space(session: Session) -> str:
    free = shutil.disk_usage(session.repo.path).free
    if free < LITTLE_SPACE:
        raise MlcError(f"only {size(free)} free", hint="free some space")
    return f"{size(free)} free"
