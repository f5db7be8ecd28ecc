"""A dozen escape codes: what light commands need of colour, without importing rich."""

from __future__ import annotations

_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


class Paint:
    """`paint.red("text")`: the text in red, or just the text where colours are off."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def _wrap(self, name: str, text: str) -> str:
        return f"\x1b[{_CODES[name]}m{text}\x1b[0m" if self.on and text else text

    def bold(self, text: str) -> str:
        return self._wrap("bold", text)

    def dim(self, text: str) -> str:
        return self._wrap("dim", text)

    def red(self, text: str) -> str:
        return self._wrap("red", text)

    def green(self, text: str) -> str:
        return self._wrap("green", text)

    def yellow(self, text: str) -> str:
        return self._wrap("yellow", text)

    def blue(self, text: str) -> str:
        return self._wrap("blue", text)

    def magenta(self, text: str) -> str:
        return self._wrap("magenta", text)

    def cyan(self, text: str) -> str:
        return self._wrap("cyan", text)
