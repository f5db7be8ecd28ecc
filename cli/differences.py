"""What lies between two versions: behaviour from stored rows, weights from stored deltas, config and files from their bytes.

Reads only. torch is loaded for one thing: the distance of weights that no stored delta tells.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ops.arch.families import family_of, role_of
from ..ops.evaluate.exact_tests import clopper_pearson, false_discovery, holm, mcnemar_one_sided
from ..ops.evaluate.flips import Counts, report
from ..ops.evaluate.ks import ks_test
from ..ops.evaluate.smooth import TOLERANCES, settled

if TYPE_CHECKING:
    from ..registry.ids import CommitId
    from ..registry.records import Snapshot
    from ..registry.repository import Repository

FLIP_KEYS = (
    *("n", "acc_a", "acc_b", "negative_flips", "positive_flips", "nfr", "pfr", "nfr_upper95", "mcnemar_p", "churn"),
    *("relative_nfr", "backward_trust", "backward_error", "inconsistent", "choice_flip"),
)


# --- behaviour -------------------------------------------------------------------------------------------


def behaviour(repo: Repository, a: Any, b: Any, limit: int | None) -> dict[str, Any]:
    """One suite, from two evaluation rows of the catalog. `limit` bounds the flips listed (None: all, 0: none)."""
    from ..registry.catalog.behaviour import compare

    found = compare(repo, a.evaluation, b.evaluation, limit)
    total = found.total
    both_right = total.right_a - total.negative
    flips = report(Counts(both_right, total.negative, total.positive, total.n - both_right - total.negative - total.positive, total.churn))
    values = dataclasses.asdict(flips)
    document = {key: values[key] for key in FLIP_KEYS}
    document["n"] = total.n or a.n
    if a.kind == "truth":
        document |= _ratios_apart(repo, a.evaluation, b.evaluation)
    document |= _smooth(repo, a, b)
    document["flips"] = [_flip(flip) for flip in found.flips]
    document["metrics"] = {"a": a.metrics, "b": b.metrics}
    document["kind"] = a.kind
    document["suite_digest"] = a.suite_digest
    if len(found.slices) > 1 or any(s.slice is not None for s in found.slices):
        document["slices"] = _slices(found.slices)
    return document


def _smooth(repo: Repository, a: Any, b: Any) -> dict[str, Any]:
    """`similarity`: how the token F1 (ROUGE-1's F) of written texts moved. `likelihood`: how the nats of each right answer or text did.

    Likelihoods are of whole answers, so that two tokenizers may be compared.
    """
    from ..registry.catalog.behaviour import moved

    found = {}
    for name, column in (("similarity", "score"), ("likelihood", "logprob")):
        if column == "score" and a.kind != "generate":
            continue
        moves = moved(repo, a.evaluation, b.evaluation, column, TOLERANCES)
        if moves.n:
            found[name] = settled(moves.n, moves.gain, moves.loss, dict(zip(TOLERANCES, moves.fallen, strict=True))).to_json()
    return found


def _slices(counted: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Each slice by name, the worst first: by its adjusted p that B is worse there, then by its rate of negative flips.

    `p_worse` is exact and one-sided; `p_holm` may be compared with one alpha however many slices there are; `q` is the share of false
    alarms among what is called at it.
    """
    rows = {s.slice or "": s for s in counted}
    p = {name: mcnemar_one_sided(s.negative, s.positive) for name, s in rows.items()}
    adjusted, q = holm(p), false_discovery(p)
    shown = {
        name: {
            "n": s.n,
            "negative_flips": s.negative,
            "positive_flips": s.positive,
            "nfr": s.negative / s.n if s.n else None,
            "nfr_upper95": clopper_pearson(s.negative, s.n) if s.n else None,
            "p_worse": p[name],
            "p_holm": adjusted[name],
            "q": q[name],
        }
        for name, s in rows.items()
    }
    return dict(sorted(shown.items(), key=lambda item: (item[1]["p_holm"], -(item[1]["nfr"] or 0.0), item[0])))


def _ratios_apart(repo: Repository, a: int, b: int) -> dict[str, float | None]:
    """Of a truth suite: how far the two versions' truth ratios lie apart, and how likely chance alone does that."""
    from ..registry.catalog.behaviour import predictions

    sides = [[score for _, _, _, score, *_ in predictions(repo, side) if score is not None] for side in (a, b)]
    if not all(sides):
        return {"ks": None, "ks_p": None}
    found = ks_test(*sides)
    return {"ks": found.statistic, "ks_p": found.p}


def _flip(flip: Any) -> dict[str, Any]:
    """`answer` is the right one: the answer of whichever version had it right."""
    right = flip.answer_a if flip.kind == "negative" else flip.answer_b
    return {"example": flip.example, "answer": right, "a": flip.answer_a, "b": flip.answer_b, "kind": flip.kind}


# --- weights ---------------------------------------------------------------------------------------------


@dataclass
class Group:
    """Changed tensors of one layer and role, summed."""

    tensors: int = 0
    change: float = 0.0  # squared l2 norm of the difference
    size: float = 0.0  # squared l2 norm of A's tensors
    max_abs: float | None = None
    known: bool = True  # every tensor's distance is known

    def add(self, l2: float | None, rel_l2: float | None, max_abs: float | None) -> None:
        """Count one tensor in. A tensor without distance leaves the group's unknown."""
        self.tensors += 1
        if l2 is None or max_abs is None:
            self.known = False
            return
        self.change += l2 * l2
        self.size += (l2 / rel_l2) ** 2 if rel_l2 else 0.0
        self.max_abs = max(self.max_abs or 0.0, max_abs)

    @property
    def rel_l2(self) -> float | None:
        """The relative distance of the whole group; None when a part is unknown or A's tensors are zero."""
        return math.sqrt(self.change / self.size) if self.known and self.size else None


def weights(repo: Repository, a: CommitId, b: CommitId, *, compute: bool, progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Commits a and b: how many tensors differ, and by layer and role how far. Numbers stored with b serve when a is its parent."""
    before, after = (repo.snapshot(repo.commit(c).snapshot) for c in (a, b))
    old, new = ({t.name: t for t in s.tensors} for s in (before, after))
    common = [name for name in new if name in old]
    changed = [name for name in common if new[name].digest != old[name].digest]
    distances = _stored(repo, a, b)
    missing = [name for name in changed if name not in distances]
    if compute and missing:
        distances |= _computed(repo, before, after, missing, progress)
    family = family_of(config_file(repo, after))
    groups: dict[tuple[int | None, str], Group] = {}
    for name in changed:
        groups.setdefault(role_of(family, name), Group()).add(*distances.get(name, (None, None, None)))
    return {
        "tensors_changed": len(changed),
        "tensors_total": len(new),
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "layers": [
            {
                "layer": layer,
                "role": role,
                "rel_l2": group.rel_l2,
                "max_abs": group.max_abs if group.known else None,
                "tensors": group.tensors,
            }
            for (layer, role), group in sorted(groups.items(), key=lambda item: (item[0][0] is None, item[0][0] or 0, item[0][1]))
        ],
    }


Distance = tuple[float | None, float | None, float | None]  # l2, rel_l2, max_abs


def _stored(repo: Repository, a: CommitId, b: CommitId) -> dict[str, Distance]:
    """What the catalog kept when b was made from a."""
    parents = repo.commit(b).parents
    if not parents or parents[0] != a:
        return {}
    from ..registry.catalog.queries import commit_deltas

    return {row.tensor: (row.l2, row.rel_l2, row.max_abs) for row in commit_deltas(repo, b) if row.l2 is not None}


def _computed(repo: Repository, before: Snapshot, after: Snapshot, names: Iterable[str], progress: Any) -> dict[str, Distance]:
    """Distances by reading both tensors, one pair at a time."""
    from ..registry.delta import stats

    old, new = ({t.name: t for t in s.tensors} for s in (before, after))
    found: dict[str, Distance] = {}
    wanted = list(names)
    for done, name in enumerate(wanted):
        x, y = old[name], new[name]
        if (x.dtype, x.shape) == (y.dtype, y.shape):
            values = stats(y.dtype, repo.objects.tensor_bytes(y.digest), repo.objects.tensor_bytes(x.digest))
            found[name] = (values["l2"], values["rel_l2"], values["max_abs"])
        if progress is not None:
            progress("weights", done + 1, len(wanted))
    return found


# --- config and files ------------------------------------------------------------------------------------


def config(repo: Repository, a: CommitId, b: CommitId) -> dict[str, Any]:
    """Top-level keys of config.json: `changed` maps a key to [before, after]."""
    old, new = (config_file(repo, repo.snapshot(repo.commit(c).snapshot)) or {} for c in (a, b))
    return {
        "changed": {key: [old[key], new[key]] for key in sorted(old.keys() & new.keys()) if old[key] != new[key]},
        "added": {key: new[key] for key in sorted(new.keys() - old.keys())},
        "removed": {key: old[key] for key in sorted(old.keys() - new.keys())},
    }


def files(repo: Repository, a: CommitId, b: CommitId) -> dict[str, list[str]]:
    """Files other than weights that differ, by path."""
    old, new = ({f.path: f.digest for f in repo.snapshot(repo.commit(c).snapshot).files if f.kind == "blob"} for c in (a, b))
    return {
        "changed": sorted(path for path in old.keys() & new.keys() if old[path] != new[path]),
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
    }


def config_file(repo: Repository, snapshot: Snapshot) -> dict[str, Any] | None:
    """config.json as data; None where there is none or it is no JSON object."""
    digest = next((f.digest for f in snapshot.files if f.path == "config.json" and f.kind == "blob"), None)
    if digest is None:
        return None
    try:
        parsed = json.loads(repo.blob(digest))
    except ValueError:  # a file is kept whatever it holds
        return None
    return parsed if isinstance(parsed, dict) else None
