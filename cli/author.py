"""Who makes a change when nobody said: git's own answer, read from its file, else the login name."""

from __future__ import annotations

import configparser
import getpass
from pathlib import Path


def author(home: Path) -> str:
    """`Name <email>` of git's user section, the part of it that is there, or the login name; never a host name."""
    for place in (home / ".gitconfig", home / ".config" / "git" / "config"):
        found = _git_user(place)
        if found:
            return found
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "unknown"


def _git_user(place: Path) -> str | None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    try:
        parser.read(place, encoding="utf-8")
        name, email = (parser.get("user", key, fallback=None) for key in ("name", "email"))
    except (configparser.Error, OSError, UnicodeDecodeError):  # git's grammar is wider than this parser's
        return None
    name, email = (value.strip().strip('"') if value else "" for value in (name, email))
    return f"{name} <{email}>" if name and email else name or email or None
