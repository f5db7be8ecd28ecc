"""What a check found: one record per finding, and the report that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..errors import MlcError
from ..records import Json, Record

Progress = Callable[..., None]  # progress(phase, done, total)


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """One thing that is not as it should be. A `fault` is damage; a `remark` is left over or behind, harmless, and repaired in passing."""

    level: int
    kind: str  # format, head, seal, journal, ref, mirror, commit, object, pack, index, catalog, scratch
    severity: Literal["fault", "remark"]
    object: str  # a digest, commit, pack or file name within .mlc
    sentence: str


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What was checked and what was found. `objects` and `bytes` count what was read at the level asked for (stored bytes)."""

    level: int
    objects: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """No damage. Remarks do not count against it."""
        return not any(finding.severity == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Json]:
        """The document of `mlc fsck --json`."""
        found = [finding.to_json() for finding in self.findings]
        return {"level": self.level, "objects": self.objects, "bytes": self.bytes, "findings": found, "clean": self.clean}


@dataclass
class Notes:
    """Findings in the order they were made, each once; and the count of what was read."""

    progress: Progress | None = None
    findings: dict[Finding, None] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0

    def fault(self, level: int, kind: str, name: str, sentence: str) -> None:
        """Note damage."""
        self.findings[Finding(level, kind, "fault", name, sentence)] = None

    def error(self, level: int, kind: str, name: str, fault: MlcError) -> None:
        """Note damage that somebody else put into words."""
        self.fault(level, kind, name, fault.message)

    def remark(self, level: int, kind: str, name: str, sentence: str) -> None:
        """Note something harmless."""
        self.findings[Finding(level, kind, "remark", name, sentence)] = None

    def step(self, phase: str, done: int, total: int) -> None:
        """Tell whoever waits how far the check is."""
        if self.progress is not None:
            self.progress(phase, done, total)
