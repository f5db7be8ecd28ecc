"""Keys for digests that must not be guessed: 32 random bytes per scope in `.mlc/keys`, beside history and never part of it.

A plain digest of a short text can be found again by trying texts. A keyed one cannot, unless one holds the key; and when
the key is destroyed nobody can match it any more. Keys are no objects: no record, pack or export holds one. A backup that
leaves this folder out loses nothing but the power to match items again. Keyed BLAKE3: section 2.3 of the BLAKE3 paper.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from blake3 import blake3

from . import fs
from .errors import BadParameter, CorruptRecord
from .ids import is_digest, record_digest

KEY_BYTES = 32
KEY_ID = 12  # digits of a key's name in an output
REGISTRY = "registry"  # the scope of a key that all commits share

_HEADER = "mlc key 1"
_SCOPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # no separator and no leading dot: always one name in the folder
_GONE = ".destroyed-"  # a key on its way out


def request_scope(run_id: str) -> str:
    """The scope of one run's own key."""
    return f"request-{run_id}"


class Keys:
    """The keys of one registry. Nothing is written, and no folder made, until a key is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._known: dict[str, bytes] = {}

    def pseudonym(self, scope: str, data: bytes) -> str:
        """`hmac:<key id>:<64 hex>`: the digest of `data` under the key of `scope`, which is made when there is none.

        Raises BadParameter for a scope that is no plain name, CorruptRecord, DiskFull or ReadOnlyRegistry.
        """
        key = self._known.get(scope) or self._obtain(scope)
        return f"hmac:{_id(key)}:{blake3(data, key=key).hexdigest()}"

    def matches(self, scope: str, data: bytes, pseudonym: str) -> bool:
        """Whether `pseudonym` stands for `data` under the key of `scope`. Makes no key."""
        return self.has(scope) and self.pseudonym(scope, data) == pseudonym

    def has(self, scope: str) -> bool:
        """Whether there is a key of this scope."""
        return self._place(scope).is_file()

    def key_id(self, scope: str) -> str | None:
        """The name under which outputs know the key of this scope; None when there is no key."""
        return _id(self._read(scope)) if self.has(scope) else None

    def scopes(self) -> list[str]:
        """Every scope that has a key, sorted."""
        try:
            return sorted(name for name in os.listdir(self.path) if _SCOPE.fullmatch(name) and (self.path / name).is_file())
        except FileNotFoundError:
            return []

    def destroy(self, scope: str) -> bool:
        """Remove a key for good: overwritten, then unlinked, durably. False when there was none.

        What the disk itself keeps of old blocks, or a backup, is beyond reach.
        """
        self._known.pop(scope, None)
        place = self._place(scope)
        if not place.is_file():
            return False
        doomed = self.path / f"{_GONE}{secrets.token_hex(4)}"  # out of the way first: a torn key must never be read as one
        with fs.faults_in_words(self.path):
            fs.rename(place, doomed)
            fs.fsync_dir(self.path)
            for path in (doomed, *self.path.glob(f"{_GONE}*")):  # others: of a process that died here
                _erase(path)
            fs.fsync_dir(self.path)
        return True

    # --- files -----------------------------------------------------------------------------------------------

    def _obtain(self, scope: str) -> bytes:
        if not self._place(scope).is_file():
            self._make(scope)
        key = self._known[scope] = self._read(scope)
        return key

    def _make(self, scope: str) -> None:
        """A new key; when another process was quicker, its key stands."""
        place = self._place(scope)
        with fs.faults_in_words(self.path):
            fs.make_dir(self.path)
            fresh = self.path / f".new-{secrets.token_hex(8)}"
            try:
                fs.write_new(fresh, f"{_HEADER}\n{secrets.token_bytes(KEY_BYTES).hex()}\n".encode())
                fs.place_new(fresh, place)
            except FileExistsError:
                pass
            finally:
                fresh.unlink(missing_ok=True)
            fs.fsync_dir(self.path)

    def _read(self, scope: str) -> bytes:
        place = self._place(scope)
        try:
            header, _, text = place.read_text(encoding="ascii", errors="replace").strip().partition("\n")
        except OSError as fault:
            raise CorruptRecord(f"the key of {scope} cannot be read: {fault.strerror}", hint=f"ls -l {self.path}") from fault
        if header != _HEADER or not is_digest(text):
            raise CorruptRecord(f"{place} is not a key", hint="put it back from a backup; without it its items cannot be matched")
        return bytes.fromhex(text)

    def _place(self, scope: str) -> Path:
        if not _SCOPE.fullmatch(scope):
            raise BadParameter(f"{scope!r} cannot name a key", hint="1 to 128 letters, digits, '.', '_' or '-'")
        return self.path / scope


def _id(key: bytes) -> str:
    """A key's name: a digest with a domain of its own, so that it tells nothing about digests made with the key."""
    return record_digest("mlc.key.v1", key)[:KEY_ID]


def _erase(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fs.write(fd, bytes(os.fstat(fd).st_size))
        fs.fsync_file(fd)
    finally:
        os.close(fd)
    fs.remove(path)
