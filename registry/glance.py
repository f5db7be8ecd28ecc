"""Names and tip at a glance: what a shell prompt asks, from small text files, in a few milliseconds.

Imports neither records nor journal. It answers only when the mirror of the refs is provably whole and complete: it has the
digest that it should, the journal ends where the seal says, and the mirror has the seal's record. In every other case it
returns None, and the caller asks the repository, which adds the journal's tail (or says what is wrong).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .ids import is_digest, record_digest

FORMAT = "mlc 1\n"


class Glance:
    """The current branch and every ref by kind: short name -> commit id, sorted."""

    __slots__ = ("aliases", "branches", "head", "path", "tags")

    def __init__(self, path: Path, head: str, branches: dict[str, str], tags: dict[str, str], aliases: dict[str, str]) -> None:
        self.path, self.head, self.branches, self.tags, self.aliases = path, head, branches, tags, aliases

    def commit(self, commit_id: str) -> dict[str, Any] | None:
        """A commit's record as plain JSON, verified against its id; None when it is not there or is not what it should be."""
        try:
            data = (self.path / "objects" / "commits" / f"{commit_id}.json").read_bytes()
        except OSError:
            return None
        return json.loads(data) if record_digest("mlc.commit.v1", data) == commit_id else None


def find(start: Path) -> Path | None:
    """The nearest `.mlc` in `start` or above it."""
    return next((place / ".mlc" for place in (start, *start.parents) if (place / ".mlc" / "format").is_file()), None)


def look(path: Path) -> Glance | None:
    """The names of the registry in `path` (the directory that holds `.mlc`, or `.mlc` itself); None when this is not the way to know."""
    place = path / ".mlc" if (path / ".mlc").is_dir() else path
    try:
        if (place / "format").read_text(encoding="ascii") != FORMAT:
            return None
        head = (place / "HEAD").read_text(encoding="ascii").strip()
        # The order matters: the mirror's number, its files, then the journal. What a writer does in between shows in the last.
        seq, digest = (place / "refs" / "seq").read_text(encoding="ascii").split()
        kinds = {kind: _names(place / "refs" / kind) for kind in ("heads", "tags", "aliases")}
        complete = _digest(kinds) == digest and _ends_at(place / "journal", int(seq))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Glance(place, head, *kinds.values()) if complete and head else None


def _names(folder: Path) -> dict[str, str]:
    """Name -> commit for every file below a folder. Raises ValueError for a file that holds no id."""
    found = {}
    for place, _, files in os.walk(folder):
        for file in files:
            if file.startswith("."):
                continue  # a replacement on its way in
            path = Path(place, file)
            commit = path.read_text(encoding="ascii").strip()
            if not is_digest(commit):
                raise ValueError(path)
            found[path.relative_to(folder).as_posix()] = commit
    return dict(sorted(found.items()))


def _digest(kinds: dict[str, dict[str, str]]) -> str:
    """The mirror's digest of itself: canonical JSON of full name -> commit."""
    refs = {f"{kind}/{name}": commit for kind, names in kinds.items() for name, commit in names.items()}
    return record_digest("mlc.refs.v1", json.dumps(refs, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def _ends_at(journal: Path, seq: int) -> bool:
    """Whether the journal's last record is `seq`: sealed, and nothing after it."""
    seal = json.loads((journal / "seal").read_bytes())
    last, following = (journal / f"{seal['segment'] + n:08d}.log" for n in (0, 1))
    return seal["seq"] == seq and last.stat().st_size == seal["end"] and not following.exists()
