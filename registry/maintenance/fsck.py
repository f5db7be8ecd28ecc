"""Is everything still what it was? Four levels, each with all below it (RELIABILITY, section 8). Looks, and never repairs.

0 quick      format, HEAD, seal, journal tail, how far the catalog is, refs resolve
1 structure  the whole chain, every commit and record parses, everything named is there in its exact size, catalog equals replay
2 content    the digest of every object
3 semantic   every tensor of every commit rebuilt through its deltas
"""

from __future__ import annotations

from typing import Any

from .. import fs
from ..errors import BadParameter
from .content import check_content, check_tensors
from .ends import check_ends
from .findings import Finding, FsckReport, Notes, Progress
from .structure import check_structure

LEVELS = (0, 1, 2, 3)

__all__ = ["Finding", "FsckReport", "fsck"]


def fsck(repo: Any, level: int = 1, *, sample: tuple[int, int] | None = None, progress: Progress | None = None) -> FsckReport:
    """Check a registry. `sample=(n, t)` limits levels 2 and 3 to the n-th of t parts of the objects, by digest.

    Damage is reported, not raised; what raises is what keeps the check from being made: BadParameter, Locked, DiskFault.
    """
    if level not in LEVELS:
        raise BadParameter(f"there is no level {level}", hint="0 quick, 1 structure, 2 content, 3 every tensor")
    if sample is not None and not 1 <= sample[0] <= sample[1]:
        raise BadParameter(f"there is no part {sample[0]} of {sample[1]}", hint="--sample 1/10 checks the first of ten parts")
    notes = Notes(progress)
    with fs.faults_in_words(repo.path):
        journal_ends = check_ends(repo, notes)
        if level >= 1:
            with repo.locks.shared("objects"):  # no sweep may take away what is being looked at
                check_structure(repo, notes, journal_ends=journal_ends)
                if level >= 2:
                    check_content(repo, notes, sample)
                if level >= 3:
                    check_tensors(repo, notes, sample)
    return FsckReport(level, notes.objects, notes.bytes, tuple(notes.findings))
