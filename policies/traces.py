"""What is looked for, and which commits say that they read it or made a model forget it.

A file is looked for by its digest, by keyed digests of forget sets, and record by record in what updates left (`documents`). Only
stored keys are used; none is made. The text of a record is held in memory and said nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..ops.data.corpus import read_corpus
from ..ops.data.identity import KIND, Documents, identities, normal_form
from ..ops.data.items import ROWS, Item, read_items
from ..registry.errors import AmbiguousId, BadInputFile, InputNotFound, NotFound
from ..registry.ids import blob_digest
from ..registry.keys import REGISTRY
from ..registry.records import Commit

if TYPE_CHECKING:
    from ..registry.ids import CommitId
    from ..registry.repository import Repository

Records = frozenset[int]  # by place in what is sought
NOTHING: Records = frozenset()
FORGET_ITEMS = "forget-items"  # the artifact that an unlearning leaves: keyed ids and scores
UNTRAINED = ("suite", "policy", "commit", "forget", "holdout", "select")  # roles of inputs that no weight was moved towards

PSEUDONYM = re.compile(r"hmac:[0-9a-f]{12}:[0-9a-f]{64}")
_DIGEST = re.compile(r"(?:blake3:)?([0-9a-f]{8,64})")


@dataclass(frozen=True, slots=True)
class Sought:
    """One thing to look for. `records` has each record's normal forms; a bare digest stands for one record without a form."""

    name: str
    digest: str
    records: tuple[tuple[bytes, ...], ...] = ((),)
    payload: bytes | None = None
    keyed: str | None = None  # a forget set's own keyed digest, where that is what was given

    @property
    def everything(self) -> Records:
        """All records."""
        return frozenset(range(len(self.records)))


# --- what was asked ----------------------------------------------------------------------------------------


def sought(repo: Repository, words: str) -> Sought:
    """What `--data` names: a file, else a digest. Raises InputNotFound, NotFound or AmbiguousId (3), BadInputFile (2)."""
    if Path(words).exists():
        return from_file(Path(words))
    if PSEUDONYM.fullmatch(words):
        named = [i.name for _, commit in commits(repo) for i in commit.inputs if i.digest == words]
        if not named:
            raise NotFound("no commit names this keyed digest", hint="mlc impact --data FILE looks for records, too")
        return Sought(named[0], words, keyed=words)
    found = _DIGEST.fullmatch(words)
    if found is None:
        raise InputNotFound(f"{words} is neither a file nor a digest", hint="give a file, or at least 8 digits of a file's digest")
    return _by_prefix(repo, found.group(1))


def from_file(path: Path) -> Sought:
    """A file with its records, where it is of a kind that has records. Raises BadInputFile."""
    if path.is_dir():
        raise BadInputFile(f"{path} is a directory, not a data file", path=str(path))
    kind = path.suffix.lower()
    if kind == ".txt":
        forms: Iterable[tuple[bytes, ...]] = ((form,) for form in identities(read_corpus(path)))
    elif kind in (*ROWS, ".toml"):
        items = read_items(path, "retain")  # any role but `forget`: a file may hold a record twice
        return Sought(path.name, items.digest, _distinct(map(_forms, items.items)), items.payload)
    else:
        forms = ((),)
    data = path.read_bytes()
    return Sought(path.name, blob_digest(data), _distinct(forms), data)


def _forms(item: Item) -> tuple[bytes, ...]:
    """How a forget set and how a corpus would name it: a text with a label is only text to a corpus."""
    plain = (normal_form(item.prompt or ""),) if item.kind == "label" else ()
    return (item.normal(), *plain)


def _distinct(forms: Iterable[tuple[bytes, ...]]) -> tuple[tuple[bytes, ...], ...]:
    return tuple(dict.fromkeys(forms))


def _by_prefix(repo: Repository, digits: str) -> Sought:
    named: dict[str, str] = {}
    for _, commit in commits(repo):
        for record in commit.inputs:
            if record.role != "commit" and record.digest.rpartition(":")[2].startswith(digits):
                named.setdefault(record.digest, record.name)
    if not named:
        raise NotFound(f"no commit read anything with digest {digits}", hint="mlc impact --data FILE looks for records, too")
    if len(named) > 1:
        listed = [f"{digest} {name}" for digest, name in sorted(named.items())]
        raise AmbiguousId(f"{digits} fits {len(named)} digests", hint=", ".join(listed[:4]), candidates=listed)
    ((digest, name),) = named.items()
    keyed = digest if PSEUDONYM.fullmatch(digest) else None
    return Sought(name, digest, keyed=keyed)


def commits(repo: Repository) -> Iterator[tuple[CommitId, Commit]]:
    """Every recorded commit, in the order of the journal: parents first."""
    for record in repo.journal.records():
        if record.body["kind"] == "commit":
            yield record.body["commit"], repo.commit(record.body["commit"])


# --- where it is -----------------------------------------------------------------------------------------


def unlearns(commit: Commit) -> bool:
    """Whether a commit was made to forget something."""
    return commit.op.name.partition(".")[0] == "unlearn"


class Traces:
    """Looks one thing up in commits."""

    def __init__(self, repo: Repository, wanted: Sought) -> None:
        self.repo, self.wanted = repo, wanted
        self._documents: dict[str, Records] = {}
        self._under: dict[str, list[tuple[str, ...]]] = {}  # key id -> every record's pseudonyms

    def trained(self, commit: Commit) -> tuple[Records, str]:
        """(records that the commit learned from, how that is known)."""
        if (read := self._read(commit)) is not None:
            return self.wanted.everything, f"read {read} as its data"
        found = NOTHING
        for artifact in commit.artifacts:
            if artifact.kind == KIND:
                found |= self._among(artifact.digest)
        return found, f"its corpus holds {len(found)} of {len(self.wanted.records)} records"

    def forgotten(self, commit: Commit) -> Records:
        """The records that an unlearning was to remove. Nothing where its key is gone: then nobody can tell."""
        if not unlearns(commit):
            return NOTHING
        said = [record.digest for record in commit.inputs if record.role == "forget"]
        if self.wanted.digest in said or self.wanted.keyed in said:
            return self.wanted.everything
        if self.wanted.payload is not None and any(self._stands_for(text, self.wanted.payload) for text in said):
            return self.wanted.everything
        ids = {text for artifact in commit.artifacts if artifact.kind == FORGET_ITEMS for text in self._pseudonyms(artifact.digest)}
        found: set[int] = set()
        for key in {text.split(":")[1] for text in ids}:
            found |= {place for place, names in enumerate(self._named(key)) if not ids.isdisjoint(names)}
        return frozenset(found)

    def _read(self, commit: Commit) -> str | None:
        fits = (r.name for r in commit.inputs if r.role not in UNTRAINED and r.digest == self.wanted.digest)
        return next(fits, None)

    def _among(self, artifact: str) -> Records:
        if artifact not in self._documents:
            listed = Documents.parse(self.repo.blob(artifact)) if self.repo.objects.has(artifact) else None  # type: ignore[arg-type]
            names = self._named(listed.key) if listed is not None else []
            self._documents[artifact] = frozenset(
                place for place, own in enumerate(names) if listed is not None and any(listed.has(name) for name in own)
            )
        return self._documents[artifact]

    def _pseudonyms(self, artifact: str) -> list[str]:
        known = self.repo.objects.has(artifact)  # type: ignore[arg-type]  # a purged one is not there
        return PSEUDONYM.findall(self.repo.blob(artifact).decode("utf-8", "replace")) if known else []  # type: ignore[arg-type]

    # --- keys --------------------------------------------------------------------------------------------

    @cached_property
    def _scopes(self) -> dict[str, str]:
        return {str(self.repo.keys.key_id(scope)): scope for scope in self.repo.keys.scopes()}

    def _named(self, key: str) -> list[tuple[str, ...]]:
        """Every record's pseudonyms under one key; [] when the key is not here."""
        if key not in self._under:
            scope = self._scopes.get(key)
            keys = self.repo.keys
            self._under[key] = [tuple(keys.pseudonym(scope, form) for form in forms) for forms in self.wanted.records] if scope else []
        return self._under[key]

    def _stands_for(self, text: str, payload: bytes) -> bool:
        scope = self._scopes.get(text.split(":")[1]) if PSEUDONYM.fullmatch(text) else None
        return scope is not None and self.repo.keys.matches(scope, payload, text)


def item_key(repo: Repository, commit: Commit) -> tuple[str, str | None] | None:
    """(key id, its scope when the key is stored) of the items that an unlearning names; None when it names none."""
    for text in (record.digest for record in commit.inputs if record.role == "forget"):
        if PSEUDONYM.fullmatch(text):
            key = text.split(":")[1]
            return key, next((scope for scope in repo.keys.scopes() if repo.keys.key_id(scope) == key and scope != REGISTRY), None)
    return None
