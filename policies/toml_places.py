"""Where each key of a TOML file stands: line and column by key path. tomllib parses, and does not say."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable

KeyPath = tuple[str | int, ...]


class TomlPlaces:
    """Finds where keys stand in text that tomllib has already accepted, so it may trust the syntax."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self.places: dict[KeyPath, tuple[int, int]] = {}
        self.counts: dict[KeyPath, int] = {}  # tables seen so far in each array of tables

    def scan(self) -> dict[KeyPath, tuple[int, int]]:
        """Key path -> (line, column), both from 1; a table's place is that of its header."""
        table: KeyPath = ()
        while self._skip(" \t\n"):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
        return self.places

    def _skip(self, blanks: str) -> bool:
        """Pass blanks and comments; False at the end of the text."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in blanks:
                self.at += 1
            else:
                return True
        return False

    def _mark(self, path: KeyPath, at: int) -> None:
        line = bisect.bisect_right(self.starts, at)
        self.places.setdefault(path, (line, at - self.starts[line - 1] + 1))

    def _header(self) -> KeyPath:
        array = self.text.startswith("[[", self.at)
        self.at += 2 if array else 1
        self._skip(" \t")
        start, keys = self.at, self._keys()
        self.at = self.text.index("]", self.at) + (2 if array else 1)
        for end in range(1, len(keys)):
            self._mark(self._inside(keys[:end]), start)
        path = (*self._inside(keys[:-1]), keys[-1])
        if array:
            self.counts[path] = self.counts.get(path, 0) + 1
        self._mark(path, start)
        path = self._inside(keys)
        self._mark(path, start)
        return path

    def _inside(self, keys: Iterable[str]) -> KeyPath:
        """The path of a table, with the index of the newest element at each array of tables on the way."""
        path: KeyPath = ()
        for key in keys:
            path = (*path, key)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def _keys(self) -> list[str]:
        keys = []
        while True:
            if self.text[self.at] in "\"'":
                keys.append(self._string())
            else:
                found = re.compile(r"[A-Za-z0-9_-]+").match(self.text, self.at)
                assert found is not None  # tomllib accepted it
                keys.append(found[0])
                self.at = found.end()
            self._skip(" \t")
            if self.text[self.at] != ".":
                return keys
            self.at += 1
            self._skip(" \t")

    def _pair(self, table: KeyPath) -> None:
        start, path = self.at, table
        for key in self._keys():
            path = (*path, key)
            self._mark(path, start)
        self.at += 1  # the equals sign
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(" \t\n")
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first in "[{":
            self.at += 1
            index = 0
            while self._skip(" \t\n,") and self.text[self.at] != ("]" if first == "[" else "}"):
                if first == "[":
                    self._mark((*path, index), self.at)
                    self._value((*path, index))
                    index += 1
                else:
                    self._pair(path)
            self.at += 1
        else:
            found = re.compile(r"[^,\]}#\n]*").match(self.text, self.at)
            assert found is not None
            self.at = found.end()

    def _string(self) -> str:
        quote = self.text[self.at]
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        body = r"(?:\\.|[^\\])*?" if quote == '"' else r".*?"
        end = mark + (f"(?!{quote})" if len(mark) == 3 else "")  # a long string may end in quotes of its own
        found = re.compile(f"{mark}({body}){end}", re.DOTALL).match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return found[1]
