"""From what a person types to a commit: branch, tag, @alias, id prefix, HEAD, and the steps ~n, ^n and @{n}."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import AmbiguousId, RefNotFound
from .ids import MIN_PREFIX, CommitId, RefName, is_digest, short
from .refs import KINDS

if TYPE_CHECKING:
    from .repository import Repository

SHOWN_CANDIDATES = 8
_STEP = re.compile(r"~(?P<up>\d{0,9})|\^(?P<parent>\d{0,9})|@\{(?P<ago>\d{1,9})\}")
_REV = re.compile(rf"(?P<base>@?[^~^@{{}}\s]+)(?P<steps>(?:{re.sub(r'[?]P<[a-z]+>', '', _STEP.pattern)})*)")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class _Base:
    """What a rev begins with: the ref it names, if it names one, and its commit."""

    ref: RefName | None
    commit: CommitId


def resolve(repo: Repository, rev: str | None) -> CommitId:
    """The commit that `rev` denotes; HEAD for None. Raises RefNotFound or AmbiguousId."""
    rev = "HEAD" if rev is None else rev
    match = _REV.fullmatch(rev)
    if match is None:
        raise RefNotFound(f"{rev!r} is not a revision", hint="a branch, tag, @alias, id prefix or HEAD, then ~n, ^n or @{n}")
    base = _base(repo, match["base"])
    ref, commit = base.ref, base.commit
    for step in _STEP.finditer(match["steps"]):
        if step["ago"] is not None:
            commit = _moves_ago(repo, rev, ref, int(step["ago"]))
        elif step["up"] is not None:
            for _ in range(int(step["up"] or 1)):
                commit = _parent(repo, rev, commit, 1)
        elif int(step["parent"] or 1):
            commit = _parent(repo, rev, commit, int(step["parent"] or 1))
        ref = None
    return commit


def resolve_branch(repo: Repository, rev: str | None) -> str | None:
    """The branch that a REF argument denotes (HEAD for None); None for a tag, alias, id or expression."""
    if rev in (None, "HEAD"):
        return repo.head()
    name = str(rev).removeprefix("refs/").removeprefix("heads/")
    return name if f"heads/{name}" in repo.refs.all() else None


def _base(repo: Repository, base: str) -> _Base:
    refs = repo.refs.all()
    if base == "HEAD":
        name = RefName(f"heads/{repo.head()}")
        if name not in refs:
            raise RefNotFound(f"branch {repo.head()!r} has no commit yet", hint=_first_step(repo, refs))
        return _Base(name, refs[name])
    full = base.removeprefix("refs/")
    names = (
        [f"aliases/{base[1:]}"]
        if base.startswith("@")
        else [f"heads/{base}", f"tags/{base}", *([full] if full.partition("/")[0] in KINDS else [])]
    )
    for name in names:
        if name in refs:
            return _Base(RefName(name), refs[RefName(name)])
    return _Base(None, _by_prefix(repo, base, refs))


def _by_prefix(repo: Repository, base: str, refs: dict[RefName, CommitId]) -> CommitId:
    prefix = base.lower()
    if not _HEX.fullmatch(prefix) or len(prefix) > 64:
        raise _unknown(base, refs)
    if len(prefix) < MIN_PREFIX:
        raise RefNotFound(f"no branch or tag is called {base!r}, and an id needs at least {MIN_PREFIX} digits", hint="mlc refs")
    found = [CommitId(name) for name in _commit_files(repo, prefix) if repo.journaled(CommitId(name))]
    if not found:
        raise _unknown(base, refs)
    if len(found) > 1:
        candidates = sorted(found)
        listed = ", ".join(short(commit) for commit in candidates[:SHOWN_CANDIDATES])
        raise AmbiguousId(
            f"{base!r} fits {len(found)} commits: {listed}{', ...' if len(found) > SHOWN_CANDIDATES else ''}",
            hint="type more digits",
            candidates=candidates,
        )
    return found[0]


def _commit_files(repo: Repository, prefix: str) -> list[str]:
    folder = repo.commits_dir
    if is_digest(prefix):
        return [prefix] if (folder / f"{prefix}.json").exists() else []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(".json")]
    return [name[:-5] for name in names if is_digest(name[:-5])]


def _unknown(base: str, refs: dict[RefName, CommitId]) -> RefNotFound:
    typed = [name.partition("/")[2] if not name.startswith("aliases/") else f"@{name.partition('/')[2]}" for name in refs]
    close = difflib.get_close_matches(base, typed, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, close))}? `mlc refs` lists them all"
        if close
        else "`mlc refs` lists branches, tags and aliases; `mlc log --all` lists commits"
    )
    return RefNotFound(f"no branch, tag, alias or commit answers to {base!r}", hint=hint, candidates=close)


def _first_step(repo: Repository, refs: dict[RefName, CommitId]) -> str:
    branches = [name.removeprefix("heads/") for name in refs if name.startswith("heads/")]
    return f"mlc switch {branches[0]}" if branches else "mlc import DIR"


def _parent(repo: Repository, rev: str, commit: CommitId, number: int) -> CommitId:
    parents = repo.commit(commit).parents
    if number > len(parents):
        has = f"{len(parents)} parent{'s' if len(parents) != 1 else ''}" if parents else "no parent"
        raise RefNotFound(f"{rev!r} goes too far: {short(commit)} has {has}", hint=f"mlc log {short(commit)}")
    return parents[number - 1]


def _moves_ago(repo: Repository, rev: str, ref: RefName | None, ago: int) -> CommitId:
    if ref is None:
        raise RefNotFound(f"{rev!r}: @{{n}} follows the name of a branch, tag or alias", hint="mlc refs")
    moves = list(itertools.islice(repo.refs.moves(ref), ago))
    place = moves[-1].old if moves else repo.refs.read(ref)
    if len(moves) < ago or place is None:
        times = "once" if len(moves) == 1 else f"{len(moves)} times"
        raise RefNotFound(f"{rev!r} goes too far: it moved {times} and was nowhere then", hint="`mlc log` shows its commits")
    return place
