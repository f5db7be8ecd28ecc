"""`mlc.toml`: what a registry is set to. Absent file or key means the default; unknown keys are refused with their place.

Reading is cheap where it can be: without a file nothing is validated and pydantic is not imported, and `status` and
`log` never ask for settings at all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..registry.errors import InputNotFound
from ..registry.formats.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from .documents import Document
    from .schemas import SettingsFile

FILE = "mlc.toml"
TEMPLATES = ("minimal", "demo")


@dataclass(frozen=True, slots=True)
class Remote:
    """One other registry: where it lies, and whether what is pushed there is signed."""

    url: str
    sign: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long a run waits for the workers of `--engine` before it gives up on them, in seconds. It stays and can be resumed."""

    start: float = 600.0  # from their turn until all are there: processes start, import and find each other
    queue: float = 86_400.0  # for their turn, where a scheduler has a queue
    silence: float = 300.0  # between two signs of life of a worker; a shared file system may show them a minute late


@dataclass(frozen=True, slots=True)
class Settings:
    """What `mlc.toml` says, after defaults. `root` is the directory that suite and policy paths are relative to."""

    root: Path
    default_branch: str = "main"
    link: Literal["auto", "copy", "hardlink", "reflink"] = "auto"
    cache_bytes: int = 1 << 30
    suites: tuple[str, ...] = ()  # suite files or globs, run on every commit
    seeds: tuple[int, ...] = (0,)
    batch_tokens: int = 8192
    policy_files: tuple[str, ...] | None = None  # None: `policies/*.toml`, and the built-in policy where there is none
    engine: Waiting = field(default_factory=Waiting)
    protected: tuple[str, ...] = ()  # aliases whose moves are judged again and confirmed
    remotes: dict[str, Remote] = field(default_factory=dict)
    limits: Limits = DEFAULT  # what an untrusted file may hold

    @classmethod
    def default(cls, root: Path) -> Settings:
        """What holds without a file."""
        return cls(root=root)

    @classmethod
    def read(cls, root: Path) -> Settings:
        """Read `root`/mlc.toml; the default where there is none. Raises BadRecipe with line and column."""
        path = root / FILE
        if not path.is_file():
            return cls.default(root)
        from . import documents  # with their parsers and pydantic: only where there is a file
        from .schemas import SettingsFile

        document = documents.read(path)

        return _frozen(root, documents.validate(SettingsFile, document), document)

    def suite_files(self) -> list[Path]:
        """The suite files, in the order listed and sorted within a glob. Raises InputNotFound for one that is not there."""
        return _expand(self.root, self.suites, "suite", "edit [eval] suites in mlc.toml")

    def policy_paths(self) -> list[Path] | None:
        """The policy files; None when none is configured and none lies in `policies/` (the built-in policy holds)."""
        if self.policy_files is None:
            return sorted((self.root / "policies").glob("*.toml")) or None
        return _expand(self.root, self.policy_files, "policy file", "edit [policy] files in mlc.toml")

    def is_protected(self, alias: str) -> bool:
        """Whether `alias` (with or without its @) is named in [policy] protected."""
        return alias.removeprefix("@") in {name.removeprefix("@") for name in self.protected}


def load_settings(root: Path) -> Settings:
    """`Settings.read`, by the name that callers outside this floor use."""
    return Settings.read(root)


def template(name: str = "minimal") -> dict[str, str]:
    """The files that `mlc init` writes beside `.mlc`: relative path -> text. Raises KeyError on an unknown template."""
    if name not in TEMPLATES:
        raise KeyError(name)
    here = Path(__file__).parent
    sources = {FILE: f"mlc-{name}.toml", "policies/default.toml": "default.toml"}
    return {target: (here / source).read_text(encoding="utf-8") for target, source in sources.items()}


def _expand(root: Path, patterns: tuple[str, ...], what: str, hint: str) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        if any(mark in pattern for mark in "*?["):
            absolute = Path(pattern).is_absolute()
            start = Path(Path(pattern).anchor) if absolute else root
            matches = sorted(start.glob(str(Path(pattern).relative_to(start)) if absolute else pattern))
        elif (root / pattern).is_file():
            matches = [root / pattern]
        else:
            raise InputNotFound(f"the {what} {pattern} is named in mlc.toml but not there", hint=hint)
        found += [path for path in matches if path not in found]
    return found


def _frozen(root: Path, checked: SettingsFile, document: Document) -> Settings:
    from .documents import did_you_mean

    known = {bound.name for bound in dataclasses.fields(Limits)}
    for key, value in checked.limits.items():
        if key not in known:
            raise document.fault(("limits", key), f"unknown key {key!r}", hint=did_you_mean(key, known))
        if value < 1:
            raise document.fault(("limits", key), f"{key} must be at least 1")
    return Settings(
        root=root,
        default_branch=checked.registry.default_branch,
        link=checked.registry.link,
        cache_bytes=checked.registry.cache_bytes,
        suites=tuple(checked.eval.suites),
        seeds=tuple(checked.eval.seeds),
        batch_tokens=checked.eval.batch_tokens,
        policy_files=None if checked.policy.files is None else tuple(checked.policy.files),
        engine=Waiting(checked.engine.start, checked.engine.queue, checked.engine.silence),
        protected=tuple(checked.policy.protected),
        remotes={name: Remote(remote.url, remote.sign) for name, remote in checked.remote.items()},
        limits=dataclasses.replace(DEFAULT, **checked.limits),
    )
