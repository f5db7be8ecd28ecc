"""Data for operations: corpora with digests, rows of tokens, mixtures. Every order is a function of the seed."""

from __future__ import annotations

from .corpus import Corpus, read_corpus
from .mixing import Batch, Mixture, Source
from .packing import Marks, Packed, pack

__all__ = ["Batch", "Corpus", "Marks", "Mixture", "Packed", "Source", "pack", "read_corpus"]
