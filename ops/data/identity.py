"""Which documents a corpus held, as short keyed digests: so that a record can be looked for later, and nothing else can be read.

A document's identity is its normal form: Unicode NFC, white space collapsed. JSONL rows count whole (prompt and answer joined), a
running text by its lines. The digests are cut to eight bytes: a record that was not there meets one of a million documents once in 10^13.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...registry.errors import CorruptRecord
from .corpus import Corpus

KIND = "documents"  # of the artifact that an update leaves, under the digest of its corpus
DIGITS = 16  # of each digest, in hex

_HEADER = "mlc documents 1"
Pseudonym = Callable[[bytes], str]  # data -> hmac:<key id>:<hex>


def normal_form(text: str) -> bytes:
    """What two records must share to be the same."""
    return " ".join(unicodedata.normalize("NFC", text).split()).encode()


def identities(corpus: Corpus) -> Iterator[bytes]:
    """The normal form of every document; of every line that is not empty where the corpus is one running text."""
    for document in corpus.documents:
        for part in document.split("\n") if corpus.running else (document,):
            if normal := normal_form(part):
                yield normal


def documents(forms: Iterable[bytes], pseudonym: Pseudonym) -> bytes:
    """The artifact: one line `mlc documents 1 <key id> <count>`, then the sorted distinct digests, eight bytes each."""
    key = ""
    found: set[bytes] = set()
    for form in forms:
        _, key, digest = pseudonym(form).split(":")
        found.add(bytes.fromhex(digest[:DIGITS]))
    return f"{_HEADER} {key or '-'} {len(found)}\n".encode() + b"".join(sorted(found))


@dataclass(frozen=True, slots=True)
class Documents:
    """A parsed artifact: the key's id and the digests in hex."""

    key: str
    digests: frozenset[str]

    @classmethod
    def parse(cls, data: bytes) -> Documents:
        """The inverse of `documents`. Raises CorruptRecord."""
        head, _, body = data.partition(b"\n")
        words = head.decode("ascii", "replace").split(" ")
        if " ".join(words[:3]) != _HEADER or len(words) != 5 or len(body) != 8 * int(words[4] if words[4].isdigit() else -1):
            raise CorruptRecord("an artifact that should list documents does not", hint="mlc fsck --level 2")
        return cls(words[3], frozenset(body[place : place + 8].hex() for place in range(0, len(body), 8)))

    def has(self, pseudonym: str) -> bool:
        """Whether the record that this digest stands for was among them. Another key's digests are never found."""
        _, key, digest = pseudonym.split(":")
        return key == self.key and digest[:DIGITS] in self.digests
