"""The catalog is derived: here it is derived again, beside the old one, and put in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..records import Json


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """How far the new catalog is, what it holds, and how many objects could not be read for it."""

    applied_seq: int
    commits: int
    evaluations: int
    predictions: int
    unreadable: int

    def to_json(self) -> dict[str, Json]:
        """Plain JSON."""
        return {slot: getattr(self, slot) for slot in ReindexReport.__slots__}


def reindex(repo: Any) -> ReindexReport:
    """Rebuild the catalog from objects and journal, evaluations included; the rows are identical. Raises CatalogFault or IntegrityError."""
    repo.catalog.rebuild(repo)
    query = """
        select applied_seq, (select count(*) from commits), (select count(*) from measurements), (select count(*) from predictions),
               unreadable
        from meta"""
    return ReindexReport(*repo.catalog.query(repo, query).rows[0])
