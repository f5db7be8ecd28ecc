"""Records as the JSON that scripts rely on: one shape for --json, for tables and for pages.

Everything here is a pure function from records to plain dicts; the names are a contract and tests pin them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..registry.ids import short

if TYPE_CHECKING:
    from ..registry.records import Commit, Snapshot, TensorDelta, Verdict


def commit_json(
    commit_id: str, commit: Commit, *, branch: str | None = None, delta: Mapping[str, Any] | None = None, verdict: Verdict | None = None
) -> dict[str, Any]:
    """The `commit` object. `verdict` is a later decision (an acceptance) that stands in for the commit's own."""
    verdict = verdict or commit.verdict
    return {
        "id": commit_id,
        "short": short(commit_id),
        "branch": branch,
        "parents": list(commit.parents),
        "snapshot": commit.snapshot,
        "op": commit.op.to_json(),
        "message": commit.message,
        "author": commit.author,
        "time": commit.time,
        "metrics": {suite: dict(values) for suite, values in commit.metrics.items()},
        "verdict": verdict_json(verdict),
        "delta": dict(delta) if delta is not None else None,
        "artifacts": [{"kind": a.kind, "digest": a.digest, "bytes": a.bytes} for a in commit.artifacts],
        "check": dict(commit.check),
        "inputs": [i.to_json() for i in commit.inputs],
        "seeds": dict(commit.seeds),
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Outcome and rules, in the order the policy has them; waivers when there are any."""
    document: dict[str, Any] = {"outcome": verdict.outcome, "rules": [rule.to_json() for rule in verdict.rules]}
    if verdict.against:
        document["against"] = verdict.against
    if verdict.waivers:
        document["waivers"] = [waiver.to_json() for waiver in verdict.waivers]
    return document


def delta_json(deltas: Iterable[TensorDelta], tensors_total: int) -> dict[str, Any]:
    """What a commit changed against its first parent and how that is stored: `codecs` counts the changed tensors by codec."""
    listed = list(deltas)
    return {
        "tensors_changed": len(listed),
        "tensors_total": tensors_total,
        "bytes_logical": sum(delta.bytes_logical for delta in listed),
        "bytes_stored": sum(delta.bytes_stored for delta in listed),
        "codecs": dict(sorted(Counter(delta.codec for delta in listed).items())),
    }


def tensors_json(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Every tensor of a snapshot by name."""
    return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "digest": t.digest} for t in snapshot.tensors]


def updates_json(updates: Sequence[Any]) -> list[dict[str, Any]]:
    """Ref moves: full name, from, to."""
    return [{"name": update.name, "old": update.old, "new": update.new} for update in updates]


def detail_json(commit_id: str, detail: Any) -> dict[str, Any]:
    """The `commit` object from a catalog row: the canonical record, the verdict that holds now, and how it was stored."""
    record = detail.record
    verdict = {key: value for key, value in detail.verdict.items() if value not in (None, [])} | {"rules": detail.verdict["rules"]}
    return {
        "id": commit_id,
        "short": short(commit_id),
        "branch": detail.branch,
        **{key: record[key] for key in ("parents", "snapshot", "op", "message", "author", "time", "metrics")},
        "verdict": verdict,
        "delta": {
            "tensors_changed": detail.tensors_changed,
            "tensors_total": detail.tensors_total,
            "bytes_logical": detail.bytes_logical,
            "bytes_stored": detail.bytes_stored,
            "codecs": detail.codecs,
        },
        "artifacts": [{key: artifact[key] for key in ("kind", "digest", "bytes")} for artifact in record["artifacts"]],
        **{key: record[key] for key in ("check", "inputs", "seeds")},
    }
