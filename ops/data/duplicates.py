"""Documents that a corpus holds more than once: exactly (by the digest of their normal form) and nearly (by MinHash).

Near means that the sets of five-word pieces agree in at least 0.8 (Jaccard). Candidates come from MinHash signatures in bands (Broder 1997;
Leskovec et al., Mining of Massive Datasets, chapter 3), and every candidate is verified on the sets themselves, so that only a missed pair
is left to chance: under two in a hundred at 0.8, and fewer above. No random state: the same corpus gives the same answer.
"""

from __future__ import annotations

import random
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...registry.ids import blob_digest
from .corpus import Corpus, read_corpus

if TYPE_CHECKING:
    import numpy as np

WAYS = ("none", "exact", "near")
THRESHOLD = 0.8  # Jaccard
PIECE = 5  # words
BANDS, BAND = 18, 7  # 126 hash functions: a pair at 0.8 shares a band with probability 0.986, one at 0.5 with 0.13
LEAST = 8  # words: shorter paragraphs of a running text (a name, an exit) come again by nature
LARGE = 64 << 20  # bytes: near duplicates of a larger corpus are looked for only when asked
_ODD = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Places of the units that are copies of an earlier one. `near` holds no exact ones; None: they were not looked for."""

    units: int
    unit: str  # what was compared: "documents", or "paragraphs" of a running text
    exact: tuple[int, ...]
    near: tuple[int, ...] | None

    def extra(self, way: str) -> frozenset[int]:
        """What `way` leaves out."""
        return frozenset(() if way == "none" else self.exact if way == "exact" else (*self.exact, *(self.near or ())))

    def to_json(self, way: str) -> dict[str, Any]:
        """The record of what was found and what became of it."""
        near = None if self.near is None else len(self.near)
        return {"units": self.units, "unit": self.unit, "exact": len(self.exact), "near": near, "dropped": len(self.extra(way))}


def read_thinned(path: str, way: str) -> Corpus:
    """The corpus in `path` without what `way` leaves out. Raises what `read_corpus` raises."""
    corpus = read_corpus(path)
    extra = frozenset() if way == "none" else found_in(path, corpus, way).extra(way)
    if not extra:
        return corpus
    kept = tuple(text for place, text in enumerate(units(corpus)) if place not in extra)
    return replace(corpus, documents=("\n\n".join(kept),) if corpus.running else kept)


def found_in(path: str, corpus: Corpus, way: str) -> Duplicates:
    """The duplicates of the corpus that was read from `path`; near ones of a large corpus only where `way` drops them."""
    return _remembered(path, corpus.record.digest, way == "near" or corpus.record.bytes <= LARGE)


@lru_cache(maxsize=8)
def _remembered(path: str, digest: str, near: bool) -> Duplicates:
    """A run asks several times; the digest says that the file is still the same."""
    return duplicates(read_corpus(path), near=near)


def units(corpus: Corpus) -> tuple[str, ...]:
    """What is compared: documents; of a running text its paragraphs, which blank lines part."""
    if not corpus.running:
        return corpus.documents
    return tuple(part for part in corpus.documents[0].replace("\r\n", "\n").split("\n\n") if part.strip())


def normal(text: str) -> str:
    """The form that is compared: NFKC, lower case, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def duplicates(corpus: Corpus, *, near: bool = True) -> Duplicates:
    """Every unit that equals an earlier one, exactly or (with `near`) nearly. An earlier duplicate is nobody's original."""
    found = units(corpus)
    seen: set[str] = set()
    exact: list[int] = []
    left: list[tuple[int, list[str]]] = []
    for place, text in enumerate(found):
        form = normal(text)
        words = form.split()
        if corpus.running and len(words) < LEAST:
            continue
        digest = blob_digest(form.encode())
        if digest in seen:
            exact.append(place)
            continue
        seen.add(digest)
        left.append((place, words))
    alike = tuple(_near(left)) if near else None
    return Duplicates(len(found), "paragraphs" if corpus.running else "documents", tuple(exact), alike)


# --- near ------------------------------------------------------------------------------------------------


def _near(left: list[tuple[int, list[str]]]) -> list[int]:
    """Places whose pieces agree with those of an earlier one that stays."""

    codes: dict[str, int] = {}
    kept: dict[int, np.ndarray] = {}
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
    gone: list[int] = []
    for place, words in left:
        pieces = _pieces(words, codes)
        bands = _bands(pieces)
        candidates = sorted({other for bucket, key in zip(buckets, bands, strict=True) for other in bucket.get(key, ())})
        if any(jaccard(pieces, kept[other]) >= THRESHOLD for other in candidates):
            gone.append(place)
            continue
        kept[place] = pieces
        for bucket, key in zip(buckets, bands, strict=True):
            bucket.setdefault(key, []).append(place)
    return gone


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared pieces over all pieces of two sorted sets uint64 [n]."""
    import numpy as np

    if min(len(a), len(b)) < THRESHOLD * max(len(a), len(b)):  # the sizes alone rule it out
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _pieces(words: list[str], codes: dict[str, int]) -> np.ndarray:
    """The set of PIECE words in a row, hashed: uint64, sorted. A shorter text is one piece."""
    import numpy as np

    for word in words:
        if word not in codes:
            codes[word] = int(blob_digest(word.encode())[:16], 16)
    row = np.array([codes[word] for word in words], dtype=np.uint64)
    span = min(PIECE, len(row))
    mixed = np.zeros(len(row) - span + 1, dtype=np.uint64)
    for offset in range(span):  # a polynomial in an odd number, modulo 2^64: order counts
        mixed = mixed * np.uint64(_ODD) + row[offset : len(row) - span + 1 + offset]
    return np.unique(mixed)


def _bands(pieces: np.ndarray) -> list[bytes]:
    """The MinHash signature in BANDS keys of BAND minima each."""
    import numpy as np

    factors, shifts = _functions()
    lowest = np.full(BANDS * BAND, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(pieces), 4096):  # bounds memory for long documents
        part = _mixed(pieces[start : start + 4096])
        lowest = np.minimum(lowest, (factors[:, None] * part + shifts[:, None]).min(axis=1))
    return [lowest[band * BAND : (band + 1) * BAND].tobytes() for band in range(BANDS)]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Bits spread over the whole word (the finaliser of splitmix64), so that a multiplication alone orders them well."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1)
def _functions() -> tuple[np.ndarray, np.ndarray]:
    """x -> a x + b modulo 2^64 with odd a: BANDS x BAND functions, the same ones everywhere."""
    import numpy as np

    draw = random.Random("mlc.minhash.v1")
    count = BANDS * BAND
    factors = np.array([draw.getrandbits(64) | 1 for _ in range(count)], dtype=np.uint64)
    return factors, np.array([draw.getrandbits(64) for _ in range(count)], dtype=np.uint64)
