"""The verdict of an alignment: may vectors of the new version be searched against galleries of older ones? Measured on held-out labels.

Compatible with an older version when its own gallery is searched better by the new version's queries than by its own: M(new, old) over
M(old, old), the lower 95 % bound of the paired gain above zero (BCT's criterion, arXiv 2003.11942). Versions that the old one was
compatible with are asked, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..base import Check, Run
from .ranking import Ranking, compatible, paired_gain, rank, same_label
from .session import vectors
from .texts import Labelled, read_labelled

if TYPE_CHECKING:
    from torch import Tensor

    from ...registry.view import ModelView
    from .align import AlignEmbeddings

KIND = "compat"


@dataclass(frozen=True, slots=True)
class Pair:
    """One older version. `slice`: which numbers of the new vectors are compared, by cosine, with the old ones."""

    commit: str
    snapshot: str
    slice: tuple[int, int]
    top1_old: float  # its own queries in its own gallery
    top1: float  # the new version's queries in its gallery
    map_old: float
    map: float
    gain: float  # in mAP, per query
    lower95: float

    @property
    def compatible(self) -> bool:
        """Searching with the new queries is surely better than searching with the old ones, or as good where those are perfect."""
        return compatible(self.lower95, self.map_old)


def check(op: AlignEmbeddings, before: ModelView, after: ModelView, run: Run) -> Check:
    """Passed when the new version is compatible with the one it was aligned to."""
    data = read_labelled(op.data, op.holdout, run.seed)
    measured = _Held(data, run)
    new, alone = measured.of(after), measured.of(before)
    pairs = []
    for commit in (op.to, *_older(run, op.to)):
        view = run.version(commit)
        pairs.append(measured.pair(commit, view, new))
    own, ceiling = measured.search(new, new), measured.search(alone, alone)
    first = pairs[0]
    values: dict[str, Any] = {
        "labels": len({data.labels[i] for i in data.held}),
        "queries": len(measured.queries),
        "top1": {"old_old": first.top1_old, "new_old": first.top1, "new_new": own.cmc(1), "before_new": ceiling.cmc(1)},
        "map": {"old_old": first.map_old, "new_old": first.map, "new_new": own.mean_precision(), "before_new": ceiling.mean_precision()},
        "compat": {"gain": min(p.gain for p in pairs), "lower95": min(p.lower95 for p in pairs), "pairs": [_plain(p) for p in pairs]},
    }
    run.artifact(KIND, f"{after.snapshot_id}/{data.record.digest}", lambda: json.dumps([p.commit for p in pairs]).encode())
    if first.compatible:
        return Check(True, values)
    numbers = f"top-1 {first.top1:.3f} against {first.top1_old:.3f}, gain in mAP at least {first.lower95:+.3f}"
    hint = "more --steps, more labels, or a larger --old-weight; `--method procrustes` shows what a fixed map reaches"
    return Check(False, values, f"the old gallery is not searched better than before ({numbers})", hint)


class _Held:
    """The held-out texts of a data set, searched: queries and gallery are different texts of the same labels."""

    def __init__(self, data: Labelled, run: Run) -> None:
        self.data, self.run = data, run
        self.queries, self.gallery = data.queries()
        labels = [[(data.labels[i],) for i in side] for side in (self.queries, self.gallery)]
        self.relevant = same_label(*labels)

    def of(self, view: ModelView) -> tuple[Tensor, Tensor]:
        """(query vectors, gallery vectors) of one version."""
        found = vectors(view, self.data, self.run)
        return found[self.queries], found[self.gallery]

    def search(self, asking: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> Ranking:
        """The first version's queries in the second one's gallery, over as many numbers as the gallery has."""
        return rank(asking[0][:, : asked[1].shape[1]], asked[1], self.relevant)

    def pair(self, commit: str, view: ModelView, new: tuple[Tensor, Tensor]) -> Pair:
        old = self.of(view)
        ours, theirs = self.search(new, old), self.search(old, old)
        gain = paired_gain(ours.precision, theirs.precision, seed=self.run.seed)
        return Pair(
            commit=commit,
            snapshot=str(view.snapshot_id),
            slice=(0, old[1].shape[1]),
            top1_old=theirs.cmc(1),
            top1=ours.cmc(1),
            map_old=theirs.mean_precision(),
            map=ours.mean_precision(),
            gain=gain.mean,
            lower95=gain.lower95,
        )


def _older(run: Run, rev: str) -> list[str]:
    """The versions that `rev` was found compatible with when it was made, nearest first."""
    kept = run.kept(rev, KIND)
    return json.loads(kept) if kept is not None else []


def _plain(pair: Pair) -> dict[str, Any]:
    return {**asdict(pair), "slice": list(pair.slice), "compatible": pair.compatible, "metric": "cosine"}
