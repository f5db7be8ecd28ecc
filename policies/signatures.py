"""Signatures under names. A name is one line of the journal that points at the signature's bytes.

`reindex` needs nothing of it and loses nothing; `fsck` looks for the bytes as it does for those of commits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..registry.errors import BadParameter, Incompatible, NotFound, RefMoved
from ..registry.ids import CommitId, Digest, short
from ..registry.records import Json
from .outcome import Progress

if TYPE_CHECKING:
    from ..registry.repository import Repository

KIND = "signature"  # of the journal's records
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


_PLACES = ("kind", "name", "signature", "pack", "packs", "undoes", "redoes")  # of a record, beside the facts


@dataclass(frozen=True, slots=True)
class Named:
    """A signature under its name, as the journal tells it."""

    name: str
    signature: Digest
    facts: dict[
        str, Json
    ]  # bytes, full_bytes, bits, density, layers, strength, robust, clean, base, tensors, statistics, author, time, ...

    @property
    def strength(self) -> float:
        """The strength that it was made for."""
        return self.facts["strength"]

    def to_json(self) -> dict[str, Json]:
        """One flat object."""
        return {"name": self.name, "signature": self.signature, **self.facts}


def signatures(repo: Repository) -> dict[str, Named]:
    """Every named signature, sorted by name; of several under one name the newest. A name that was forgotten is not among them."""
    found: dict[str, Named | None] = {}
    for record in repo.journal.with_text(f'"kind":"{KIND}"'):
        body = record.body
        if body.get("kind") == KIND and body["name"] not in found:
            facts = {key: value for key, value in body.items() if key not in _PLACES}
            named = Named(body["name"], body["signature"], {**facts, "author": record.author, "time": record.time})
            found[body["name"]] = None if body.get("forgotten") else named
    return {name: named for name, named in sorted(found.items()) if named is not None}


def find(repo: Repository, name: str) -> Named:
    """The signature of this name. Raises NotFound."""
    known = signatures(repo)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? `mlc patch list` lists them all" if close else "`mlc patch list` lists them"
        raise NotFound(f"there is no patch {name!r}", hint=hint, candidates=close)
    return known[name]


def origins(repo: Repository) -> dict[str, CommitId]:
    """Digest of a signature -> the robust version that it was taken from; also of those whose names are forgotten."""
    found: dict[str, CommitId] = {}
    for record in repo.journal.with_text(f'"kind":"{KIND}"'):
        if record.body.get("kind") == KIND and "robust" in record.body:
            found.setdefault(record.body["signature"], CommitId(record.body["robust"]))
    return found


def require_free(repo: Repository, name: str) -> None:
    """Raise BadParameter for what cannot be a name, RefMoved for one that is taken."""
    if not NAME.fullmatch(name):
        raise BadParameter(f"a patch cannot be called {name!r:.80}", hint="letters, digits, '.', '_' and '-', for example: --name fog")
    if (taken := signatures(repo).get(name)) is not None:
        hint = f"choose another name, or take this one away: mlc patch forget {name}"
        raise RefMoved(f"the name {name} is taken by signature {short(taken.signature)}", hint=hint)


def forget(repo: Repository, names: Sequence[str], *, author: str = "unknown") -> list[Named]:
    """Take names away; returns what they stood for. Nothing else goes: the signatures' bytes stay, and versions that carry them.

    One record per name, which `undo` takes back. Raises NotFound for an unknown name, BadParameter for one that is given twice; then
    nothing is forgotten.
    """
    if len(set(names)) != len(names):
        raise BadParameter("a name is given twice", hint="mlc patch list")
    gone = [find(repo, name) for name in names]
    for named in gone:
        facts = {key: value for key, value in named.facts.items() if key not in ("author", "time")}
        repo.record({"kind": KIND, "name": named.name, "signature": named.signature, **facts, "forgotten": True}, author=author)
    return gone


def extract(
    repo: Repository,
    robust: str,
    clean: str,
    *,
    name: str,
    base: str | None = None,
    bits: str = "8",
    density: float | None = None,
    layers: str = "all",
    strength: float = 1.0,
    force: bool = False,
    message: str = "",
    author: str = "unknown",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> tuple[Named, list[str]]:
    """Take the signature of `robust` against `clean` and keep it under a name; returns it, and sentences worth knowing.

    `base` is the version that both come from; without it the merge base. Raises BadParameter, Incompatible (no common origin, other
    architecture), RefMoved for a name that is taken by another signature, unless `force`.
    """
    from ..ops.patch.extract import extract as take
    from ..ops.patch.extract import kind_of
    from ..ops.patch.signature import decode

    if not NAME.fullmatch(name):
        raise BadParameter(f"a patch cannot be called {name!r:.80}", hint="letters, digits, '.', '_' and '-', for example: --name fog")
    kind = kind_of(bits, density, layers, strength)
    robust_id, clean_id = repo.resolve(robust), repo.resolve(clean)
    origin, said = _origin(repo, robust_id, clean_id, base)
    views = (repo.view(robust_id), repo.view(clean_id), repo.view(origin))
    data = take(*views, kind, (lambda done, total: progress("extract", done, total)) if progress else None)
    signature = decode(data)
    facts: dict[str, Json] = {
        **{"bytes": len(data), "full_bytes": signature.full_bytes, "bits": kind.bits, "density": kind.density, "layers": kind.layers},
        **{"strength": kind.strength, "robust": robust_id, "clean": clean_id, "base": origin, "projected": origin != clean_id},
        **{"tensors": len(signature.tensors), "statistics": len(signature.statistics), "architecture": signature.architecture},
        **({"message": message} if message else {}),
    }
    taken = signatures(repo).get(name)
    if taken is not None and taken.signature == signature.digest:
        return taken, [*said, f"{name} is this very signature already: nothing was recorded"]
    if taken is not None and not force:
        hint = f"choose another name, or give this one away: mlc patch extract {robust} {clean} --name {name} --force"
        raise RefMoved(f"the name {name} is taken by signature {short(taken.signature)}", hint=hint)
    if not dry_run:
        with repo.ingest(author=author, estimate=len(data)) as tx:
            digest = tx.put_blob(data)
            tx.record({"kind": KIND, "name": name, "signature": digest, **facts})
        return find(repo, name), said
    return Named(name, signature.digest, facts), [*said, "nothing was written"]


def _origin(repo: Repository, robust: CommitId, clean: CommitId, base: str | None) -> tuple[CommitId, list[str]]:
    from ..registry.lineage import merge_base, parents_in

    origin = repo.resolve(base) if base is not None else merge_base(robust, clean, parents_in(repo))
    if origin is None:
        raise Incompatible("these imports share no ancestor, so what both come from is not known", hint="give --base REV")
    if repo.commit(robust).snapshot == repo.commit(clean).snapshot:
        raise BadParameter(
            "the robust version holds exactly the clean weights: there is no signature", hint="mlc patch extract ROBUST CLEAN"
        )
    if repo.commit(origin).snapshot == repo.commit(robust).snapshot:
        raise BadParameter("the clean version follows from the robust one", hint="give the version that both come from: --base REV")
    if repo.commit(origin).snapshot == repo.commit(clean).snapshot:
        return clean, [
            "the robust version was trained from the clean one: nothing is projected out, the signature is all of the difference"
        ]
    return origin, []


def describe(repo: Repository, name: str) -> dict[str, Any]:
    """Everything about one signature; per tensor its shape."""
    from ..ops.patch.signature import decode

    named = find(repo, name)
    signature = decode(repo.blob(named.signature))
    return {
        **named.to_json(),
        "changes": [{"name": n, "shape": list(shape), "how": "added"} for n, shape in signature.tensors.items()]
        + [{"name": n, "shape": list(v.shape), "how": "shifted"} for n, v in signature.statistics.items()],
    }
