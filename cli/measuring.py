"""Which suites two versions can be compared on, measuring what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.errors import InputNotFound
from .context import Session

if TYPE_CHECKING:
    from ..ops.evaluate.suite import Suite
    from ..registry.ids import CommitId


def pairs(session: Session, a: CommitId, b: CommitId, *, only: list[str] | None, measure: bool) -> Iterator[tuple[str, Any, Any]]:
    """(suite name, evaluation row of a, evaluation row of b), in name order.

    Everything stored for both sides with the same suite digest and no limit; with `measure`, also the configured
    suites (or those in `only`, by name or file). Raises InputNotFound for a name in `only` that nothing answers to.
    """
    snapshots = [session.repo.commit(commit).snapshot for commit in (a, b)]
    if measure:
        _measure(session, snapshots, _wanted_suites(session, only))
    found = _stored_pairs(session, snapshots)
    names = [_name(word) for word in only] if only is not None else list(found)
    for name in names:
        if name not in found:
            hint = f"mlc eval REV --suite {name}" if not measure else "name a suite of mlc.toml, or a suite file"
            raise InputNotFound(f"Suite {name} was not measured on both sides.", hint=hint)
    for name in sorted(set(names)):
        yield name, *found[name]


def texts(session: Session, only: list[str] | None) -> dict[str, dict[str, str]]:
    """Suite digest -> example -> what was asked, for suites whose files are at hand: ids alone tell people little."""
    return {suite.digest: {example.id: _asked(example.values) for example in suite.examples()} for suite in _wanted_suites(session, only)}


def _asked(values: dict[str, Any]) -> str:
    return next((str(values[key]) for key in ("prompt", "good", "text") if values.get(key)), "")


def find_suites(session: Session, words: list[str] | None) -> list[Suite]:
    """Suites by file, or by name among the configured ones; all configured ones for None. Raises InputNotFound."""
    from ..ops.evaluate.suite import load_suite

    words_ = words if words is not None else [str(path) for path in session.settings.suite_files()]
    configured: dict[str, Suite] = {}
    if any(not _is_file(word) for word in words_):
        configured = {suite.name: suite for suite in map(load_suite, session.settings.suite_files())}
    suites = []
    for word in words_:
        if _is_file(word):
            suites.append(load_suite(Path(word)))
        elif word in configured:
            suites.append(configured[word])
        else:
            known = f"configured: {', '.join(configured)}" if configured else "mlc eval --suite FILE.toml"
            raise InputNotFound(f"There is no suite {word}: neither a file nor a name in mlc.toml.", hint=known)
    return suites


def _is_file(word: str) -> bool:
    return word.endswith(".toml") or Path(word).is_file()


def _name(word: str) -> str:
    if not _is_file(word):
        return word
    from ..ops.evaluate.suite import load_suite

    return load_suite(Path(word)).name


def _wanted_suites(session: Session, only: list[str] | None) -> list[Suite]:
    """Configured suites, or those asked for that have a file; a bare name may be that of stored rows alone."""
    if only is None:
        return find_suites(session, None)
    known = {suite.name for suite in find_suites(session, None)} if any(not _is_file(word) for word in only) else set()
    return find_suites(session, [word for word in only if _is_file(word) or word in known])


def _measure(session: Session, snapshots: list[Any], suites: list[Suite]) -> None:
    """Run what the catalog does not know yet."""
    from ..policies.measure import Bench
    from ..policies.outcome import Request
    from ..registry.catalog.behaviour import evaluations

    known = [{row.suite_digest for row in evaluations(session.repo, snapshot) if row.limit is None} for snapshot in snapshots]
    if all(suite.digest in side for suite in suites for side in known):
        return
    bench = Bench(session.repo, Request.of(session.repo, author=session.author(), config=session.settings, progress=session.progress))
    for snapshot, side in zip(snapshots, known, strict=True):
        for suite in suites:
            if suite.digest not in side:
                bench.measure(snapshot, suite)


def _stored_pairs(session: Session, snapshots: list[Any]) -> dict[str, tuple[Any, Any]]:
    """Suite name -> the latest whole evaluations of one digest on both sides; of several digests the latest measured."""
    from ..registry.catalog.behaviour import evaluations

    sides = [
        {(row.suite_digest, row.scorer): row for row in reversed(evaluations(session.repo, s)) if row.limit is None} for s in snapshots
    ]
    shared = sorted(sides[0].keys() & sides[1].keys(), key=lambda key: sides[1][key].evaluation)
    return {sides[1][key].suite: (sides[0][key], sides[1][key]) for key in shared}
