"""Operations for tests of the conductor: they change weights by a formula, so nothing has to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mlc.ops.base import Change, Check, Operation, Plan, SetFile, SetTensor, option
from mlc.registry.records import InputRecord, canonical

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


@dataclass(frozen=True, slots=True)
class Scale(Operation):
    """Multiply one tensor by a factor."""

    name: ClassVar[str] = "scale"
    needs_forward: ClassVar[bool] = True

    tensor: str = option(UP, help="which tensor")
    factor: float = option(1.5, help="by how much")
    passes: bool = option(True, help="what the check says")
    told: str = option("*", help="what the plan names")

    def plan(self, view: Any) -> Plan:
        return Plan(f"scale {self.tensor}", (self.told,), bytes_touched=100)

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        run.input(InputRecord("data", "numbers.txt", "ab" * 32, 3))
        run.record("factor", self.factor)
        yield SetTensor(self.tensor, view.tensor(self.tensor) * self.factor)

    def check(self, before: Any, after: Any, run: Any) -> Check:
        import torch

        same = torch.allclose(before.tensor(self.tensor) * self.factor, after.tensor(self.tensor), rtol=0, atol=0, equal_nan=True)
        return Check(self.passes and same, {"landed": same}, "the weights did not obey", "try another factor")


@dataclass(frozen=True, slots=True)
class Steps(Operation):
    """Add one to a tensor per step, saving a state after each; stops like an impatient user at `stop`."""

    name: ClassVar[str] = "steps"
    steps: int = 4
    stop: int = 0

    def plan(self, view: Any) -> Plan:
        return Plan("count", (NORM,), steps=self.steps)

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        import torch

        state = run.load_state()
        step, value = (state[0], state[1]["value"]) if state else (0, view.tensor(NORM))
        stop = Path(run.scratch, "stopped")
        while step < self.steps:
            if self.stop and step == self.stop and not stop.exists():
                stop.touch()
                raise KeyboardInterrupt
            step, value = step + 1, value + torch.ones_like(value)
            run.note(f"step {step}")
            run.save_state(step, {"value": value, "again": value}, {"step": step})
        run.record("resumed_at", state[0] if state else 0)
        yield SetTensor(NORM, value)


@dataclass(frozen=True, slots=True)
class Remembering(Operation):
    """Asks for an artifact, and rewrites a file of the model."""

    name: ClassVar[str] = "remembering"
    text: str = "hello"

    def plan(self, view: Any) -> Plan:
        return Plan("remember", (NORM,))

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        def compute() -> bytes:
            place = Path(run.scratch.parent.parent, "computed")
            place.write_text((place.read_text() if place.exists() else "") + "x")
            return b"a long sum"

        assert run.artifact("sums", "key of the data", compute) == b"a long sum"
        yield SetFile("notes.txt", self.text.encode())


def times_computed(repo: Any) -> int:
    """How often `Remembering` had to compute its artifact."""
    place = repo.path / "runs" / "computed"
    return len(place.read_text()) if place.exists() else 0


@dataclass(frozen=True, slots=True)
class Learn(Operation):
    """Reads a corpus as an update does, and moves one tensor by a formula."""

    name: ClassVar[str] = "update"
    data: str = option(help="a corpus")
    factor: float = 1.1

    def plan(self, view: Any) -> Plan:
        return Plan("learn", (UP,))

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        from functools import partial

        from mlc.ops.data.corpus import read_corpus
        from mlc.ops.data.identity import KIND, documents, identities

        corpus = read_corpus(self.data)
        run.input(corpus.record)
        run.artifact(KIND, corpus.record.digest, lambda: documents(identities(corpus), partial(run.pseudonym, scope="registry")))
        yield SetTensor(UP, view.tensor(UP) * self.factor)


@dataclass(frozen=True, slots=True)
class Forget(Operation):
    """Says what an unlearning says: the forget set by keyed digests only, and what was measured before and after."""

    name: ClassVar[str] = "unlearn"
    forget_set: str = option(help="records")
    after: float = 0.0
    passes: bool = True
    stop: bool = False
    reference: str | None = None
    factor: float = 0.9

    def plan(self, view: Any) -> Plan:
        return Plan("forget", (UP,))

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        from mlc.ops.data.items import read_items

        items = read_items(self.forget_set, "forget")
        run.input(InputRecord("forget", items.name, run.pseudonym(items.payload), items.bytes))
        rows = [canonical({"id": run.pseudonym(i.normal()), "right_before": True, "right_after": False}) for i in items.items]
        run.artifact("forget-items", run.id, lambda: b"".join(row + b"\n" for row in rows))
        if self.reference:
            run.version(self.reference)
        if self.stop and not Path(run.scratch, "stopped").exists():
            Path(run.scratch, "stopped").touch()
            raise KeyboardInterrupt
        yield SetTensor(UP, view.tensor(UP) * self.factor)

    def check(self, before: Any, after: Any, run: Any) -> Check:
        values = {
            "forget_before": 0.975, "forget_after": self.after, "retain_before": 0.99, "retain_after": 0.98, "selected_fraction": 0.3,
            "text_perplexity_before": 2.0, "text_perplexity_after": 2.01, "search": [{"strength": 1.0, "forget": 0.2, "chosen": False}],
        }  # fmt: skip
        return Check(self.passes, values, "the retain set suffered", "--method dense --objective npo")
