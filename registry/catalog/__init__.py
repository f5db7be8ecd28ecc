"""The catalog: history as rows in DuckDB, derived from objects and journal. SQL lives in this room and nowhere else."""

from __future__ import annotations

from .catalog import Catalog
from .connection import CatalogFault, Rows

__all__ = ["Catalog", "CatalogFault", "Rows"]
