"""Objects by digest: packs on disk, the store that reads them, the writer that fills one. Importing this needs no torch and no numpy."""

from .layout import ObjectInfo
from .store import ObjectStore

__all__ = ["ObjectInfo", "ObjectStore"]
