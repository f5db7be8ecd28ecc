"""`patch`: a version as a clean one plus the signatures in force. The dataclass is the whole overlay and imports no torch.

Applying, removing and changing a patch are the same operation with another list: the result is made from the clean version each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...registry.errors import BadParameter, StalePlan
from ...registry.ids import Digest, is_digest, short
from ...registry.records import InputRecord
from ..base import Change, Check, Operation, Plan, Run, SetTensor, option

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .signature import Signature

COMBINE = ("norm", "sum")
KIND = "signature"  # of the artifacts that a patched commit keeps
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of an element, of the types that can be patched and trained


def checked_strength(strength: float) -> float:
    """A strength that can be applied. Raises BadParameter."""
    if not 0 <= strength <= 100:  # false for NaN
        raise BadParameter(f"a strength lies between 0 and 100, not at {strength:g}", hint="for example: --strength 1")
    return float(strength)


@dataclass(frozen=True, slots=True)
class Patch(Operation):
    """Lay robustness signatures over a clean version, or take them off."""

    name: ClassVar[str] = "patch"
    version: ClassVar[int] = 1

    names: tuple[str, ...] = option((), help="names of the patches in force")
    signatures: tuple[str, ...] = option((), help="digests of their signatures, in the order of the names")
    strengths: tuple[float, ...] = option((), help="a factor for each of them")
    removed: tuple[str, ...] = option((), help="digests of the signatures that this change takes off")
    clean: str | None = option(None, help="the version without any patch (default: the start)")
    onto: str | None = option(None, help="the snapshot that this was planned for; another one is refused")
    sources: tuple[str, ...] = option((), help="the robust versions that the signatures were taken from: what they learned is in here")
    combine: str = option("sum", help="what several patches come to: norm (as far as the strongest alone) or sum")

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.signatures) == len(self.strengths):
            raise BadParameter("a patch needs a name, a signature and a strength each", hint="mlc patch apply NAME --strength 1")
        if len(set(self.signatures)) != len(self.signatures):
            raise BadParameter("the same signature cannot lie over a version twice", hint="mlc patch list")
        if not self.signatures and not self.removed:
            raise BadParameter("no patch was named", hint="mlc patch list")
        if self.combine not in COMBINE:
            raise BadParameter(f"--combine is norm or sum, not {self.combine!r:.40}", hint="--combine norm")
        for digest in (*self.signatures, *self.removed):
            if not is_digest(digest):
                raise BadParameter(f"{digest!r:.80} is not the digest of a signature", hint="mlc patch list")
        for strength in self.strengths:
            checked_strength(strength)

    # --- the contract ---

    def plan(self, view: ModelView) -> Plan:
        from .overlay import check_fits, touched

        read = [(name, _read(view, digest)) for name, digest in zip(self.names, self.signatures, strict=True)]
        for name, signature in read:
            check_fits(signature, view, f"patch {name}")
        names = touched([s for _, s in read] + [_read(view, digest) for digest in self.removed])
        size = sum(math.prod(view.entry(n).shape) * WIDTHS.get(view.entry(n).dtype, 1) for n in names if view.has(n))
        said = ", ".join(f"{name} at {strength:g}" for name, strength in zip(self.names, self.strengths, strict=True)) or "no patch"
        largest = max((math.prod(view.entry(n).shape) for n in names if view.has(n)), default=0)
        details = {"patches": list(self.names), "signature_bytes": sum(signature.size for _, signature in read)}
        return Plan(f"the clean version with {said}", names, bytes_touched=size, memory=24 * largest, details=details)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .overlay import materialise, touched

        if self.onto is not None and self.onto != view.snapshot_id:
            said = f"this was planned for snapshot {short(self.onto)}, the version now has {short(view.snapshot_id)}"
            raise StalePlan(said, hint="give the command again")
        clean = self._clean(view, run)
        layers = [(self._taken(view, run, at), strength) for at, strength in enumerate(self.strengths)]
        names = touched([s for s, _ in layers] + [_read(view, digest) for digest in self.removed])
        for done, name in enumerate(names, 1):
            yield SetTensor(name, materialise(name, clean.tensor(name), layers, self.combine))
            run.progress("patch", done, len(names))

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        clean = self._clean(before, run)
        changed = [n for n in after.names() if after.entry(n).digest != clean.entry(n).digest]
        patches = [{"name": n, "signature": d, "strength": s} for n, d, s in zip(self.names, self.signatures, self.strengths, strict=True)]
        equal = after.snapshot_id == clean.snapshot_id
        values = {"patches": patches, "clean": self.clean, "clean_snapshot": clean.snapshot_id, "tensors_patched": len(changed)}
        values["equal_to_clean"] = equal
        if len(patches) > 1:
            values["combine"] = self.combine
        if not self.signatures and not equal:
            return Check(False, values, "without patches the clean bytes should be back, and are not", "mlc fsck --level 3")
        return Check(True, values)

    # --- steps ---

    def _clean(self, view: ModelView, run: Run) -> ModelView:
        return view if self.clean is None else run.version(self.clean)

    def _taken(self, view: ModelView, run: Run, at: int) -> Signature:
        """A signature, kept with the commit and named among what it read: `mlc impact --data DIGEST` finds who carries it."""
        from .signature import decode

        digest, name = self.signatures[at], self.names[at]
        data = run.artifact(KIND, digest, lambda: view.objects.blob(Digest(digest)))
        run.input(InputRecord("patch", name, digest, len(data)))
        return decode(data)


def _read(view: ModelView, digest: str) -> Signature:
    from .signature import decode

    return decode(view.objects.blob(Digest(digest)))
