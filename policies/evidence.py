"""Evidence of an unlearning: a folder that somebody else can check, with nothing in it that was to be forgotten.

Everything is derived from the commit, the journal and the keys that are stored, so the same registry gives the same bytes. The commit
record is in it as it is: its digest is the commit id. `manifest.json` names every other file by SHA-256 in canonical JSON; a detached
signature over that one file covers the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..registry import fs
from ..registry.delta.dtypes import byte_size
from ..registry.errors import BadParameter, CorruptRecord, MlcError
from ..registry.ids import CommitId, blob_digest, record_digest, short
from ..registry.keys import REGISTRY
from ..registry.records import Commit, Json, canonical
from .evidence_text import readme
from .impact import Impact, impact
from .standing import standing
from .traces import FORGET_ITEMS, PSEUDONYM, Sought, from_file, item_key, unlearns

if TYPE_CHECKING:
    from ..registry.repository import Repository

MANIFEST = "manifest.json"
KIND = "mlc.evidence.v1"
ITEMS = "items.jsonl"
PATHS = ("_set", "data", "facts")  # parameters whose names end so hold paths


# --- writing ---------------------------------------------------------------------------------------------


def require_free(directory: Path) -> None:
    """Raise BadParameter unless `directory` can be made or is empty: evidence is never mixed with other files."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise BadParameter(f"{directory} is not a directory", hint="name a new directory for the evidence")
    if directory.is_dir() and any(directory.iterdir()):
        raise BadParameter(f"{directory} is not empty: evidence is not mixed with other files", hint=f"--evidence {directory}-2")


def write_evidence(repo: Repository, commit_id: CommitId, directory: Path, *, forget_set: Path | None = None) -> Path:
    """Write the folder of an unlearning, also of one that the gate refused, at once or not at all; returns where it is.

    `forget_set`, when it is still the file that was read, lets the list of carriers name records; otherwise it rests on the commit's
    own keyed digest. Raises BadParameter for another kind of commit or a directory in use, DiskFull, DiskFault.
    """
    directory = Path(directory).absolute()
    require_free(directory)
    files = evidence_files(repo, commit_id, forget_set)
    fresh = directory.parent / f".{directory.name}.{os.urandom(4).hex()}.tmp"
    try:
        with fs.faults_in_words(directory.parent):
            directory.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir(mode=0o700)
            for name, data in files.items():
                fs.write_new(fresh / name, data)
            fs.fsync_dir(fresh)
            fs.rename(fresh, directory)  # over an empty directory, too
            fs.fsync_dir(directory.parent)
    except MlcError as fault:
        fs.remove_tree(fresh)
        said = f"{short(commit_id)} is recorded, but its evidence could not be written: {fault.message}"
        raise fs.DiskFault(said, hint=f"mlc show {short(commit_id)} --evidence DIR") from fault
    return directory


def evidence_files(repo: Repository, commit_id: CommitId, forget_set: Path | None = None) -> dict[str, bytes]:
    """Every file of the folder by name. Raises BadParameter when the commit is no unlearning."""
    commit = repo.commit(commit_id)
    if not unlearns(commit):
        raise BadParameter(
            f"{short(commit_id)} is no unlearning but {commit.op.name}: there is nothing to give evidence of", hint="mlc log"
        )
    outcome = standing(repo, commit_id).outcome
    found = impact(repo, _request(repo, commit, forget_set))
    purge = _purge(repo, commit, found)
    files = {
        "commit.json": repo.commit_bytes(commit_id),
        "impact.json": canonical(found.to_json()),
        ITEMS: _items(repo, commit),
        "measures.json": canonical(measures(commit)),
        "method.json": canonical(method(commit)),
        "purge.json": canonical(purge),
        "README.md": readme(commit_id, commit, outcome, measures(commit), method(commit), found, purge).encode(),
    }
    manifest = {
        "kind": KIND,
        "commit": {
            "id": commit_id, "parents": list(commit.parents), "snapshot": commit.snapshot, "time": commit.time, "outcome": outcome,
        },
        "journal": dict(zip(("seq", "hash"), repo.journal.head(), strict=True)),
        "tool": {"mlc": __version__},
        "files": [{"path": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in sorted(files.items())],
    }  # fmt: skip
    return {**files, MANIFEST: canonical(manifest)}


def measures(commit: Commit) -> dict[str, Json]:
    """What the operation measured of itself, before beside after; what suites measured; what the gate said. Pure."""
    sides: dict[str, dict[str, Json]] = {"before": {}, "after": {}, "other": {}}
    for key, value in commit.check.items():
        stem, _, side = key.rpartition("_")
        if side in ("before", "after"):
            sides[side][stem] = value
        else:
            sides["other"][key] = value
    return {**sides, "suites": commit.metrics, "verdict": commit.verdict.to_json()}


def method(commit: Commit) -> dict[str, Json]:
    """What was run on what: parameters with paths reduced to base names, seeds, environment, inputs by digest. Pure."""
    params = {k: Path(v).name if isinstance(v, str) and k.endswith(PATHS) else v for k, v in commit.op.params.items()}
    return {
        "operation": commit.op.name,
        "version": commit.op.version,
        "params": params,
        "seeds": dict(commit.seeds),
        "environment": commit.environment,
        "inputs": [record.to_json() for record in commit.inputs],
        "artifacts": [record.to_json() for record in commit.artifacts],
    }


def _request(repo: Repository, commit: Commit, forget_set: Path | None) -> Sought:
    """What to look for. The plain digest of a forget set is not told: texts could be tried against it."""
    said = next((record for record in commit.inputs if record.role == "forget"), None)
    if said is None:
        raise BadParameter("the commit does not say which set was forgotten", hint="mlc show")
    key = item_key(repo, commit)
    if forget_set is not None and key is not None and key[1] is not None and forget_set.is_file():
        wanted = from_file(forget_set)
        if wanted.payload is not None and repo.keys.matches(key[1], wanted.payload, said.digest):
            return Sought(said.name, said.digest, wanted.records, wanted.payload, said.digest)
    return Sought(said.name, said.digest, keyed=said.digest)


def _items(repo: Repository, commit: Commit) -> bytes:
    return b"".join(repo.blob(a.digest) for a in commit.artifacts if a.kind == FORGET_ITEMS and repo.objects.has(a.digest))


def _purge(repo: Repository, commit: Commit, found: Impact) -> dict[str, Json]:
    """What a purge would have to take and has not taken: carriers, tensors that only they have, keys."""
    kept = {entry.digest for entry in repo.snapshot(commit.snapshot).tensors}
    only: dict[str, int] = {}
    carriers = [c.id for c in found.commits if c.mark.left]
    for carrier in carriers:
        for entry in repo.snapshot(repo.commit(carrier).snapshot).tensors:
            if entry.digest not in kept and repo.objects.has(entry.digest):
                only[entry.digest] = byte_size(entry.dtype, entry.shape)
    key, own = item_key(repo, commit), repo.keys.key_id(REGISTRY)
    keys = [{"scope": key[1], "id": key[0]}] if key is not None and key[1] is not None else []
    keys += [{"scope": REGISTRY, "id": own}] if own is not None else []
    return {
        "state": "not purged",
        "commits": list(carriers),
        "objects": {"count": len(only), "bytes": sum(only.values())},
        "keys": keys,
    }


# --- checking --------------------------------------------------------------------------------------------


def verify_evidence(directory: Path, repo: Repository | None = None) -> list[str]:
    """Sentences about what is wrong with a folder; [] when nothing is. With `repo`, it is held against that registry, too.

    A folder that was changed together with its manifest is noticed where the commit id binds the content (the record, the numbers, the
    items); for the rest sign the manifest.
    """
    try:
        manifest = json.loads((Path(directory) / MANIFEST).read_bytes())
        listed = {str(file["path"]): file for file in manifest["files"]}
        commit_id = CommitId(manifest["commit"]["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{MANIFEST} is missing or cannot be read"]
    wrong = [] if canonical(manifest) == (Path(directory) / MANIFEST).read_bytes() else [f"{MANIFEST} is not in canonical form"]
    present = {path.relative_to(directory).as_posix(): path for path in Path(directory).rglob("*")}
    wrong += [f"{name} is not named by {MANIFEST}" for name in sorted(present.keys() - listed.keys() - {MANIFEST})]
    for name, file in sorted(listed.items()):
        path = present.get(name)
        if path is None or path.is_symlink() or not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != file.get("sha256"):
            wrong.append(f"{name} was changed")
    wrong += _bound(Path(directory), commit_id) if "commit.json" in present else ["commit.json is missing"]
    return list(dict.fromkeys(wrong + (_in_registry(manifest, commit_id, repo) if repo is not None else [])))


def _bound(directory: Path, commit_id: CommitId) -> list[str]:
    """What the commit id itself vouches for."""
    data = (directory / "commit.json").read_bytes()
    if record_digest("mlc.commit.v1", data) != commit_id:
        return ["commit.json is not the record of the commit that the manifest names"]
    commit = Commit.from_json(json.loads(data))
    expected = {"measures.json": canonical(measures(commit)), "method.json": canonical(method(commit))}
    wrong = [f"{name} does not follow from commit.json" for name, said in expected.items() if _read(directory / name) != said]
    kept = [artifact.digest for artifact in commit.artifacts if artifact.kind == FORGET_ITEMS]
    if kept and blob_digest(_read(directory / ITEMS)) not in kept:
        wrong.append(f"{ITEMS} is not what commit.json names")
    return wrong


def _in_registry(manifest: dict[str, Any], commit_id: CommitId, repo: Repository) -> list[str]:
    said = manifest.get("journal") or {}
    wrong = [] if repo.journaled(commit_id) else [f"the registry does not know commit {short(commit_id)}"]
    if repo.journal.hash_of(said.get("seq", 0)) != said.get("hash"):
        wrong.append("the registry's journal is not the one that the manifest was made from")
    return wrong


def recognised(repo: Repository, directory: Path, forget_set: Path) -> tuple[int, int]:
    """(records of `forget_set` that `items.jsonl` names, how many it names). Needs the request key. Raises CorruptRecord, BadInputFile."""
    named = set(PSEUDONYM.findall(_read(Path(directory) / ITEMS).decode("utf-8", "replace")))
    scopes = {repo.keys.key_id(scope): scope for scope in repo.keys.scopes()}
    here = {scopes[key] for key in {text.split(":")[1] for text in named} if key in scopes}
    if named and not here:
        raise CorruptRecord("the key that the items were named with is not in this registry", hint="ls .mlc/keys")
    records = from_file(Path(forget_set)).records
    found = sum(any(repo.keys.pseudonym(scope, form) in named for scope in here for form in forms) for forms in records)
    return found, len(named)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
