"""The moment something becomes history: one journal record under the write lock, and what is derived from it (steps W6 to W12).

Up to the record a failure leaves nothing visible. After it the event stands, and a failure is a warning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import fs
from .errors import MlcError
from .journal import JournalRecord, utc_now
from .records import Json, RefUpdate
from .recovery import recover

if TYPE_CHECKING:
    from .repository import Repository


def new_txid() -> str:
    """A fresh transaction id: 32 hex digits."""
    return os.urandom(16).hex()


def publish(
    repo: Repository,
    body: dict[str, Json],
    *,
    refs: Sequence[RefUpdate],
    author: str,
    txid: str | None = None,
    guard: Callable[[], None] | None = None,
    retry: bool = False,
) -> JournalRecord:
    """Append one record under the write lock, refs compared and swapped; then seal, mirror and catalog.

    `retry`: an earlier attempt may have written the record already; then that one is returned. The catalog has a lock of its own
    and comes after the write lock is free: how long that one is held must not depend on how many rows a commit has.
    """
    if body["kind"] in ("commit", "refs", "accept") or refs:
        body = {**body, "refs": [update.to_json() for update in refs]}
    with fs.faults_in_words(repo.path):
        repo.refs.all()  # read before the lock is taken: under it only the news is
        with repo.locks.exclusive("write"):
            recover(repo)
            if retry and txid and (found := _written(repo, txid, body)) is not None:
                return found
            repo.refs.check(refs)
            if guard is not None:
                guard()
            record = repo.journal.append(body, txid=txid or new_txid(), author=author, time=utc_now())
            with warned(repo, "the seal of the journal"):
                repo.journal.seal()
            with warned(repo, "the mirror of the refs"):
                repo.refs.mirror()
    with warned(repo, "the catalog"):
        repo.catalog.apply(repo, [record])
    return record


@contextlib.contextmanager
def warned(repo: Repository, what: str) -> Iterator[None]:
    """The record stands: what fails after it is said as a warning, and done by the next writer or reader."""
    try:
        yield
    except (OSError, MlcError) as fault:
        repo.warnings.append(f"committed, but {what} is behind ({fault}); the next write or `mlc reindex` brings it up to date")


def _written(repo: Repository, txid: str, body: dict[str, Json]) -> JournalRecord | None:
    """The record of the same event from an earlier attempt. A transaction makes one commit; other events are told by their content."""
    if body["kind"] == "commit":
        return repo.journal.find(txid, "commit")
    storage = {"pack", "packs"}
    event = {key: value for key, value in body.items() if key not in storage}
    for record in repo.journal.with_text(f'"txid":"{txid}"'):
        if record.txid == txid and {key: value for key, value in record.body.items() if key not in storage} == event:
            return record
    return None
