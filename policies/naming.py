"""Names for commits: branches, tags and aliases set, moved and removed. No name may point at what was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack

from ..registry.errors import BadParameter, RefMoved, RefNotFound
from ..registry.ids import CommitId, RefName, short
from ..registry.lineage import is_ancestor, parents_in
from ..registry.records import RefUpdate, Verdict
from .court import Case, Court
from .gate import summary
from .outcome import How, Request
from .standing import expired, refusal, require_accepted, standing

if TYPE_CHECKING:
    from ..registry.repository import Repository

Kind = Literal["branch", "tag", "alias"]
PREFIX: dict[Kind, str] = {"branch": "heads/", "tag": "tags/", "alias": "aliases/"}


def set_name(repo: Repository, kind: Kind, name: str, rev: str | None = None, *, force: bool = False, **how: Unpack[How]) -> RefUpdate:
    """Point a branch, tag or alias at `rev` (HEAD).

    A refused commit gets no name (GateRefused). A name that exists moves only with `force`, an alias freely: moving is
    what it is for. A protected alias is judged again: the new holder against the old one, by the rules in force now,
    and waivers of the new holder must not have run out. Raises RefMoved for a name that is taken.
    """
    request = Request.of(repo, **how)
    full, old = _place(repo, kind, name)
    new = repo.resolve(rev)
    update = RefUpdate(full, old, new)
    if old == new:
        return update
    require_accepted(repo, new, f"no {kind} may point at it")
    if kind == "alias" and request.config.is_protected(name):
        _judge_again(repo, request, name, old, new)
    elif kind != "alias" and old is not None and not force:
        raise RefMoved(f"the {kind} {name} exists and stands at {short(old)}", hint=f"mlc {kind} {name} {rev or 'HEAD'} --force")
    repo.move_refs([update], reason=kind, author=request.author)
    return update


def remove_name(repo: Repository, kind: Kind, name: str, *, author: str) -> RefUpdate:
    """Remove a name; the commits stay. Raises RefNotFound, BadParameter for the current branch."""
    full, old = _place(repo, kind, name)
    if old is None:
        raise RefNotFound(f"there is no {kind} {name}", hint=f"mlc {kind} lists them")
    if kind == "branch" and name == repo.head():
        raise BadParameter(f"{name} is the current branch", hint="mlc switch OTHER, then remove it")
    update = RefUpdate(full, old, None)
    repo.move_refs([update], reason=kind, author=author)
    return update


def _place(repo: Repository, kind: Kind, name: str) -> tuple[RefName, CommitId | None]:
    from ..registry.refs import check_name

    full = check_name(PREFIX[kind] + name.removeprefix("@" if kind == "alias" else ""))
    return full, repo.refs.read(full)


def _judge_again(repo: Repository, request: Request, alias: str, old: CommitId | None, new: CommitId) -> None:
    """Law: aliases re-check on every move. Going back to what the alias stood for before was judged then."""
    verdict = standing(repo, new)
    if over := expired(verdict):
        said = f"{short(new)} stands on a waiver of {over[0].rule} that ended on {over[0].until}"
        raise refusal(repo, new, verdict, said, f"mlc gate {short(new)}")
    if old is None or is_ancestor(new, old, parents_in(repo)):
        return
    commit = repo.commit(new)
    case = Case(
        commit.op.name,
        repo.snapshot(commit.snapshot),
        old,
        branch=None,
        params=commit.op.params,
        check=commit.check,
        made_on=next(iter(commit.parents), None),
    )
    again: Verdict = Court.open(repo, request).hear(case).verdict
    if again.outcome == "refused":
        said = f"@{alias.removeprefix('@')} stays at {short(old)}: beside it, {short(new)} is refused by {summary(again)}"
        raise refusal(repo, new, again, said, f"mlc diff {short(old)} {short(new)} --flips")
