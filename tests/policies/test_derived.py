"""An operation that says what its tensors are a function of, from its own lips to an older version taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mlc.ops.base import Change, Operation, Plan, SetTensor
from mlc.policies import lifecycle
from mlc.registry.catalog.queries import commit_deltas
from mlc.registry.delta.derived import Derived, derive
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.maintenance.reindex import reindex
from mlc.registry.repository import Repository
from mlc.tests.policies.operations import UP, Scale


@dataclass(frozen=True, slots=True)
class Mix(Operation):
    """A quarter of the parent and three quarters of another version."""

    name: ClassVar[str] = "mix"
    other: str = ""
    nudge: float = 0.0

    def plan(self, view: Any) -> Plan:
        return Plan("mix", ("*",))

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        other = run.version(self.other)
        for name in view.names():
            derived = Derived("linear", (view.entry(name).digest, other.entry(name).digest), (0.25, 0.75))
            held = {v.entry(name).digest: v.tensor(name) for v in (view, other)}
            data = derive(derived, lambda digest, rows, held=held: held[digest][rows], torch.float32, view.entry(name).shape)
            data.view(-1)[:1] += self.nudge if name == UP else 0
            yield SetTensor(name, data, derived=derived)


def test_a_mix_is_stored_as_what_it_was_made_from_and_taken_back_to_the_bit(repo, root):
    lifecycle.run(repo, Scale(factor=1.01), author="a", branch="side", ref=root)
    mixed = lifecycle.run(repo, Mix("side", nudge=0.5), author="a")

    rows = {row.tensor: row for row in commit_deltas(repo, mixed.commit_id)}
    assert rows[UP].codec == "derived"
    assert rows[UP].base == repo.view(root).entry(UP).digest
    assert rows[UP].bytes < 60
    before, side, after = (repo.view(repo.resolve(rev)).tensor(UP) for rev in (root, "side", mixed.commit_id))
    expected = before * 0.25 + side * 0.75
    expected.view(-1)[0] += 0.5
    assert torch.equal(after, expected)

    back = lifecycle.rollback(repo, root, author="a")
    assert back.commit.snapshot == repo.commit(root).snapshot
    again = lifecycle.rollback(repo, mixed.commit_id, author="a")
    assert again.commit.snapshot == mixed.commit.snapshot
    reindex(repo)
    assert [(row.codec, row.bytes) for row in commit_deltas(repo, mixed.commit_id)] == [(row.codec, row.bytes) for row in rows.values()]
    assert fsck(Repository.open(repo.root), 3).clean
