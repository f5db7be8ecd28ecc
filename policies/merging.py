"""`merge`: names become commits, the base is looked for in the lineage, and the conductor does the rest.

What a merge reads is pinned: its parameters name commits, never branches that move on, and of a merge file they hold the text. So it can
be run again, and one ingredient can be taken out later (unmerging.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..ops.base import Operation, Plan
from ..ops.merge.chain import Opcm, state_of
from ..ops.merge.config import STACKED, read_config
from ..ops.merge.merge import Merge
from ..ops.merge.pins import pinned
from ..ops.merge.recipe import TOKENIZERS, Recipe
from ..ops.merge.settings import read_words
from ..ops.merge.table import METHODS, unknown
from ..registry.errors import BadParameter, CheckFailed, Incompatible, NotFound, RefMoved, RefNotFound
from ..registry.ids import CommitId, short
from ..registry.lineage import common_bases
from ..registry.records import Commit, Json
from . import lifecycle
from .adapters import RMM, adapter_merge, is_adapter
from .averages import AVERAGES, averaged
from .imports import import_model
from .informed import INFORMED, informed_merge
from .outcome import How, Outcome, Request
from .runs import RunNotFound, Runs
from .soup import SOUP, choose
from .standing import require_accepted

if TYPE_CHECKING:
    from ..registry.repository import Repository

OPCM = "opcm"
NAMES = {"soup_uniform": "soup"}  # other words for rows of the table
STACKING = "passthrough"
UNMERGE = "unmerge"
REFUSED = "it cannot be merged"


def merge(repo: Repository, revs: Sequence[str], options: Mapping[str, Any], **how: Unpack[How]) -> Outcome:
    """Merge `revs` into one version that follows the first of them: on its branch, or on `branch`. Judged like every change.

    `options` are fields of `ops.merge.merge.Merge`; with `config` the versions are those that the file names, and directories among them
    are imported. Without `base` the nearest common ancestor stands for it, where the method needs one. Raises Incompatible for versions
    that share no ancestor or do not fit, GateRefused for a refused ingredient or result, BadParameter, BadRecipe, RefNotFound.
    """
    if options.get("config") is not None:
        return _by_file(repo, revs, dict(options), how)
    if _method(options.get("method")) == STACKING:
        hint = STACKED.format(*revs[:2], *("main", "feature")[len(revs) :])
        raise BadParameter("passthrough stacks blocks of versions, and only a merge file can say which blocks", hint=hint)
    if len(revs) < 2:
        raise BadParameter("a merge needs two versions or more", hint=f"mlc merge {repo.head()} {revs[0] if revs else 'FEATURE'}")
    ids = tuple(_version(repo, rev) for rev in revs)
    if len(set(ids)) == 1:
        return _nothing(repo, ids[0], revs)
    for rev, commit_id in zip(revs, ids, strict=True):
        if ids.count(commit_id) > 1:
            raise BadParameter(
                f"{rev} ({short(commit_id)}) is named twice", hint="name each version once, and say how much it counts: --weights"
            )
    with _called(revs, ids):
        return _merge(repo, revs, ids, options, how)


def _merge(repo: Repository, revs: Sequence[str], ids: tuple[CommitId, ...], options: Mapping[str, Any], how: How) -> Outcome:
    values: dict[str, Any] = {**options, "method": _method(options.get("method"))}
    if values.get("tokenizer") not in (None, *TOKENIZERS):
        values["tokenizer"] = _version(repo, values["tokenizer"])
    if all(is_adapter(repo, commit_id) for commit_id in ids):
        return lifecycle.run(repo, adapter_merge(repo, revs, ids, values), ref=revs[0], **how)
    if values["method"] == RMM:
        raise Incompatible("rmm merges adapters on one base, and a whole model is among these versions", hint="mlc update --adapter lora:8")
    if values["method"] in INFORMED:
        return lifecycle.run(repo, informed_merge(ids, values), ref=revs[0], **how)
    if values["method"] in AVERAGES:
        average, told = averaged(repo, ids, values, Request.of(repo, **how))
        return lifecycle.run(repo, average, ref=revs[0], told=told, **how)
    if values["method"] == OPCM:
        return _chained(repo, revs, ids, values, how)
    found = _base(repo, ids, values) if values["method"] in METHODS else None
    values["base"] = found
    if values["method"] == SOUP:
        values, told = choose(repo, revs, ids, values, Request.of(repo, **how))
        op: Operation = Merge(**values)
        return lifecycle.run(repo, op, ref=revs[0], told=told, **how)
    op = Merge(**values, ingredients=ids)
    return _said(lifecycle.run(repo, op, ref=revs[0], **how), _notes(revs, ids, found))


def resumed(repo: Repository, run: str, **how: Unpack[How]) -> Outcome:
    """Go on with a merge that was stopped or killed: the run of this id, or the `latest` merge. Raises RunNotFound."""
    if run == lifecycle.LATEST:
        runs = [one for one in Runs(repo).list() if one.op.partition(".")[0] == Merge.name and one.branch]
        if not runs:
            raise RunNotFound("there is no unfinished merge to resume", hint="mlc runs")
        run = next((one for one in runs if not one.active), runs[0]).id
    return lifecycle.run(repo, None, resume=run, **how)


def nearest_base(repo: Repository, ids: Sequence[CommitId]) -> CommitId | None:
    """The nearest version that all of `ids` come from, by where their content comes from; None when they share no history."""
    return next(iter(common_bases(ids, lambda commit_id: sources(repo, commit_id))), None)


def sources(repo: Repository, commit_id: CommitId) -> tuple[CommitId, ...]:
    """Where a version's content comes from: its parents, but for one that returned to an older content or left an ingredient out."""
    commit = repo.commit(commit_id)
    if commit.op.name == UNMERGE:
        return tuple(map(CommitId, commit.op.params["ingredients"]))
    back = _returned(repo, commit)
    return commit.parents if back is None else (back,)


def origin(repo: Repository, commit_id: CommitId) -> CommitId:
    """The commit whose content this one returned to by a rollback or a revert; itself when it did not."""
    while (back := _returned(repo, repo.commit(commit_id))) is not None:
        commit_id = back
    return commit_id


def _returned(repo: Repository, commit: Commit) -> CommitId | None:
    back = {"rollback": "to", "revert": "parent", "retract": "parent"}.get(commit.op.name, "")
    found = commit.op.params.get(back)
    same = bool(found) and repo.commit(CommitId(str(found))).snapshot == commit.snapshot
    return CommitId(str(found)) if same else None


# --- options -----------------------------------------------------------------------------------------------


def _method(word: str | None) -> str:
    name = (word or "linear").replace("-", "_")
    name = NAMES.get(name, name)
    if name not in (known := (*METHODS, OPCM, SOUP, *AVERAGES, *INFORMED, RMM)):
        raise unknown(name, known)
    return name


def _version(repo: Repository, rev: str) -> CommitId:
    commit_id = repo.resolve(rev)
    require_accepted(repo, commit_id, REFUSED)
    return commit_id


def _base(repo: Repository, ids: tuple[CommitId, ...], values: Mapping[str, Any]) -> CommitId | None:
    """The base that was named, or the one that the method cannot do without."""
    if values.get("base") is not None:
        return _version(repo, values["base"])
    ends = values["method"] in ("slerp", "nearswap") and len(ids) == 2  # their base is the end at t = 0
    return _needed(repo, ids) if METHODS[values["method"]].base == "required" and not ends else None


def _needed(repo: Repository, ids: Sequence[CommitId]) -> CommitId:
    found = nearest_base(repo, ids)
    if found is None:
        raise Incompatible(
            "these imports share no ancestor: give --base", hint="--base REV, the version that all of them were trained from"
        )
    return found


def _notes(revs: Sequence[str], ids: Sequence[CommitId], base: CommitId | None) -> list[str]:
    behind = [rev for rev, commit_id in zip(revs, ids, strict=True) if commit_id == base]
    return [f"{rev} is the base itself: it adds nothing of its own" for rev in behind]


def _said(outcome: Outcome, notes: Sequence[str]) -> Outcome:
    return dataclasses.replace(outcome, warnings=tuple(dict.fromkeys((*outcome.warnings, *notes)))) if notes else outcome


@contextmanager
def _called(revs: Sequence[str], ids: Sequence[CommitId]) -> Iterator[None]:
    """What is said about a version inside names it as it was typed: operations know only ids."""
    try:
        yield
    except (Incompatible, BadParameter, CheckFailed) as fault:
        for rev, commit_id in zip(revs, ids, strict=True):
            if len(rev) < 4 or not commit_id.startswith(rev):  # no part of the id itself
                fault.message = re.sub(rf"(?<!\(){short(commit_id)}\b", lambda _, name=rev: name, fault.message)
        raise


def _nothing(repo: Repository, commit_id: CommitId, revs: Sequence[str]) -> Outcome:
    commit = repo.commit(commit_id)
    said = f"{' and '.join(revs)} are one version, {short(commit_id)}: nothing was recorded"
    branch = repo.resolve_branch(revs[0])
    return Outcome(commit, commit_id, branch, False, commit.verdict, commit.check, (), (said,))


# --- chains ------------------------------------------------------------------------------------------------


def _chained(repo: Repository, revs: Sequence[str], ids: tuple[CommitId, ...], values: dict[str, Any], how: How) -> Outcome:
    """Fold versions into a running merge. Its base, scale and norms are those of the commit that it is, or of a new chain."""
    extra = _pairs(values)
    link = repo.commit(origin(repo, ids[0]))
    begun = chain_of(link)
    base = CommitId(begun["base"]) if begun else None
    if values.get("base") is not None and base not in (None, given := _version(repo, values["base"])):
        raise BadParameter(f"{revs[0]} is a chain over {short(str(base))}, not over {short(given)}", hint="leave --base out")
    if base is None:
        base = _version(repo, values["base"]) if values.get("base") is not None else _needed(repo, ids)
    alpha = extra.get("alpha", begun["alpha"] if begun else Opcm.__dataclass_fields__["alpha"].default)
    if begun and alpha != begun["alpha"]:
        raise BadParameter(f"{revs[0]} is a chain with alpha {begun['alpha']:g}", hint="leave alpha out, or begin another chain")
    shared = extra.get("shared", bool(begun and begun["shared"]))
    if begun and shared != begun["shared"]:
        raise BadParameter(f"{revs[0]} is a chain with shared={str(not shared).lower()}", hint="leave shared out, or begin another chain")
    if base in ids[1:]:
        raise BadParameter(f"{short(base)} is the base of the chain: there is nothing to absorb", hint="mlc merge main new --method opcm")
    op = Opcm(ids, base, alpha, state_of(link.check) if begun else (), extra.get("deltas", True), shared)
    return lifecycle.run(repo, op, ref=revs[0], **how)


def chain_of(commit: Commit) -> dict[str, Any] | None:
    """Base, alpha and whether it keeps what is shared, of the chain that a commit is a link of; None when it is none."""
    name, params = commit.op.name, commit.op.params
    if name == UNMERGE:
        name, params = params.get("op"), params.get("params") or {}
    told = {"base": params.get("base"), "alpha": params.get("alpha"), "shared": params.get("shared", False)}
    return told if name == Opcm.name and state_of(commit.check) else None


def _pairs(values: Mapping[str, Any]) -> dict[str, Any]:
    """`--set` of a chain: alpha, deltas and shared. Every option that it does not have is refused."""
    for field in dataclasses.fields(Merge):
        if field.name not in ("method", "base", "settings") and values.get(field.name, field.default) != field.default:
            raise BadParameter(f"opcm has no {field.name}", hint="it has --base, --set alpha=0.1, --set deltas=false and --set shared=true")
    truth = {"true": True, "false": False}.__getitem__
    return read_words("opcm", values.get("settings") or (), {"alpha": float, "deltas": truth, "shared": truth})


# --- merge files -------------------------------------------------------------------------------------------


def _by_file(repo: Repository, revs: Sequence[str], values: dict[str, Any], how: How) -> Outcome:
    """Merge what a file in mergekit's YAML says; its models are versions, or directories that are imported on the way."""
    if revs:
        raise BadParameter("the merge file names the versions: none is typed beside it", hint=f"mlc merge --config {values['config']}")
    if values.pop("method", None) is not None:
        raise BadParameter("--method and --config cannot both be given", hint="put merge_method into the file")
    recipe, called = read_config(values["config"]), Path(values["config"]).name
    Merge(**values)  # what contradicts a file is said before anything is imported
    absent = [name for name in recipe.names() if _known(repo, name) is None]
    for name in absent:
        if not Path(name).is_dir():
            raise RefNotFound(f"{values['config']} names {name!r}: no version and no directory", hint="`mlc refs` lists the versions")
    if absent and how.get("dry_run"):
        return Outcome(plan=_import_first(recipe, absent), warnings=())
    brought = {name: _imported(repo, name, how) for name in absent}
    ids = [brought[name][1] if name in brought else _version(repo, name) for name in recipe.names()]
    first = recipe.ingredients()[0]
    ref = brought[first][0] if first in brought else first
    values["config"] = pinned(recipe, ids)
    op = Merge(**values)
    notes = [f"{name} was imported as the branch {branch}" for name, (branch, _) in brought.items()]
    with _called(recipe.names(), ids):
        return _said(lifecycle.run(repo, op, ref=ref, told={"config": called}, **how), notes)


def _known(repo: Repository, name: str) -> CommitId | None:
    try:
        return repo.resolve(name)
    except NotFound:
        return None


def _imported(repo: Repository, name: str, how: How) -> tuple[str, CommitId]:
    """(branch, commit) of a directory, as a root on a branch of its own; the branch that holds it already, when there is one."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).resolve().name).strip("-.") or "model"
    common: dict[str, Any] = {key: value for key, value in how.items() if key in ("author", "config", "progress")}
    for number in range(1, 100):
        branch = stem if number == 1 else f"{stem}-{number}"
        try:
            outcome = import_model(repo, name, branch=branch, message=f"an ingredient: {Path(name).name}", **common)
        except RefMoved:
            continue
        assert outcome.commit_id is not None
        return branch, outcome.commit_id
    raise RefMoved(f"a hundred branches are called {stem}", hint=f"mlc import {name} --branch NAME")


def _import_first(recipe: Recipe, names: Sequence[str]) -> Plan:
    said: dict[str, Json] = {"method": recipe.method, "imports": list(names), "versions": list(recipe.names())}
    return Plan(f"import {len(names)} directories, then merge {len(recipe.names())} versions by {recipe.method}", ("*",), details=said)
