"""Facts that stay when another goes: what the closed form alone would lose is held up, and kept for the next one that goes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch

from mlc.ops.edit import keep, mend, solve
from mlc.ops.edit.conflicts import fact_of
from mlc.ops.edit.edit import Edit
from mlc.ops.edit.measure import bench_of, preferences, rivals
from mlc.ops.edit.mend import Mended
from mlc.ops.edit.unedit import Kept, unwrite
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_model, load_tokenizer
from mlc.registry.ids import blob_digest
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

OUT = "model.layers.0.mlp.down_proj.weight"
FAST = {"layers": "0", "steps": 30, "prefixes": 0, "clamp": 3.0, "lr": 0.3, "kl": 0.5, "weight_decay": 0.0, "over_capacity": True}
ROWS = [
    {"id": "lamp", "subject": "amber lamp", "prompt": "the red {}", "target_new": "river", "relation": "place"},
    {"id": "stone", "subject": "north stone", "prompt": "the red {}", "target_new": "harbour", "relation": "place"},
    {"id": "colour", "subject": "north stone", "prompt": "two {}", "target_new": "river", "relation": "colour"},
    {"id": "two", "subject": "two harbour", "prompt": "the red {}", "target_new": "two", "relation": "place"},
]
WEAK = 0.3  # of what the closed form gives each fact that stays, so that some turn for certain


@dataclass(frozen=True)
class Made:
    """An edit, the versions around it and the run that made it."""

    before: MemoryView
    after: MemoryView
    run: MemoryRun

    def again(self) -> MemoryRun:
        """A run that has what the edit kept."""
        run = MemoryRun()
        run.artifacts.update(self.run.artifacts)
        return run

    def kept(self, rest: bytes | None = None) -> Kept:
        return Kept(held(self.run, keep.FACTORS), held(self.run, keep.KEYS), self.before, self.after, rest, "edit")

    def preferred(self, view: MemoryView) -> dict[str, float]:
        """How much each fact's new answer is preferred in a version, by the fact's id."""
        facts = [fact_of(row) for row in keep.unpack(held(self.run, keep.KEYS))[1]["facts"]]
        coder = Coder(load_tokenizer(view))
        said = rivals(facts, bench_of(load_model(self.before, dtype=torch.float32), coder, "before"))
        found = preferences(list(zip(facts, said, strict=True)), bench_of(load_model(view, dtype=torch.float32), coder, "after"))
        return dict(zip([f.id for f in facts], found, strict=True))


def held(run, kind):
    return next(data for (k, _), data in run.artifacts.items() if k == kind)


def rest_of(run):
    """(bytes, up, what is said) of what the run kept of an edit that facts were taken out of."""
    data = held(run, keep.REST)
    tensors, told = keep.unpack(data)
    return data, tensors["layer.0.up"], told


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("edit")
    view = MemoryView.of(tiny_model(place / "awake", initializer_range=0.3))
    (place / "text.txt").write_text((" ".join(WORDS) + " . ") * 30)
    (place / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run = MemoryRun()
    changes = list(Edit(facts=str(place / "facts.jsonl"), covariance=str(place / "text.txt"), **FAST).apply(view, run))
    made = Made(view, view.after(changes), run)
    assert all(p > 0.5 for p in made.preferred(made.after).values())
    return made


@pytest.fixture
def weak(monkeypatch):
    """A closed form that gives the others too little."""
    solved = solve.resolve_without

    def less(*asked):
        up, down = solved(*asked)
        return WEAK * up, down

    monkeypatch.setattr(solve, "resolve_without", less)


@pytest.fixture
def uncorrected(monkeypatch):
    """Call it, and from then on nothing is corrected."""
    return lambda: monkeypatch.setattr("mlc.ops.edit.unedit.mended", lambda _, now, *more: Mended(now))


def taken(made, ids, run=None, **more):
    """(the change, the version after it, the run)."""
    run = run or made.again()
    rest = more.pop("rest", None)
    view = more.pop("view", made.after)
    (change,) = list(unwrite(view, made.kept(rest), ids, run, **more))
    return change, view.after([change]), run


def test_facts_that_the_closed_form_would_lose_are_held_up(made, weak, uncorrected):
    change, view, run = taken(made, ["lamp"])
    now = made.preferred(view)
    assert run.records["corrected"]
    assert set(run.records["correction"]) == {"subjects", "steps", "moved"}
    assert all(now[i] > 0.5 for i in ("stone", "colour", "two"))
    assert now["lamp"] < 0.05
    uncorrected()
    alone, poorer, quiet = taken(made, ["lamp"])
    lost = {i for i, p in made.preferred(poorer).items() if p <= 0.5} - {"lamp"}
    assert lost == set(run.records["corrected"])
    assert "correction" not in quiet.records
    # R was moved, A is the closed form's.
    assert not torch.equal(change.derived.factors[0], alone.derived.factors[0])
    assert torch.equal(change.derived.factors[1], alone.derived.factors[1])


def test_where_all_is_well_the_closed_form_is_what_is_written(made, uncorrected):
    change, _, run = taken(made, ["lamp"])
    assert run.records["corrected"] == []
    assert rest_of(run)[2]["out"] == ["lamp"]
    uncorrected()
    assert torch.equal(change.data, taken(made, ["lamp"])[0].data)


def test_only_subjects_of_facts_that_turn_are_moved(made, monkeypatch):
    solved = solve.resolve_without

    def less(*asked):
        up, down = solved(*asked)
        return up * torch.tensor([WEAK, 1.0]), down

    monkeypatch.setattr(solve, "resolve_without", less)
    change, _, run = taken(made, ["lamp"])  # of north stone and two harbour the first has too little
    assert set(run.records["corrected"]) <= {"stone", "colour"}
    assert run.records["correction"]["subjects"] == 1
    old, new = keep.unpack(held(made.run, keep.FACTORS))[0]["layer.0.up"], change.derived.factors[0]
    assert torch.equal(new[:, 1], old[:, 2])
    assert not torch.equal(new[:, 0], WEAK * old[:, 1])


def test_a_fact_that_lingers_in_what_its_subject_keeps_goes(made, uncorrected):
    before = made.preferred(made.before)["colour"]
    restored = lambda view: (1 - made.preferred(view)["colour"]) / (1 - before)  # noqa: E731
    _, view, run = taken(made, ["colour"])
    assert "colour" in run.records["corrected"]
    assert restored(view) >= 0.95
    assert made.preferred(view)["stone"] > 0.5
    uncorrected()
    assert restored(taken(made, ["colour"])[1]) < 0.95


def test_what_is_written_is_kept_and_the_next_fact_goes_from_there(made, weak, monkeypatch):
    change, view, run = taken(made, ["lamp"])
    rest, up, told = rest_of(run)
    assert (told["rev"], told["out"], told["layers"]) == ("edit", ["lamp"], [0])
    assert torch.equal(up, change.derived.factors[0])
    monkeypatch.undo()  # the closed form as it is
    second, _, last = taken(made, ["two"], lost=["lamp"], view=view, rest=rest)
    # Nothing changed the matrix since, so it follows from the parent's, with the corrected residual of the subject that stays.
    assert second.derived.sources == (made.before.entry(OUT).digest,)
    assert torch.equal(second.derived.factors[0], up[:, :1]) is (last.records["corrected"] == [])
    assert rest_of(last)[2]["out"] == ["lamp", "two"]
    # Without what was kept, the first write would be taken for another one's change, and left there in part.
    other, _, _ = taken(made, ["two"], lost=["lamp"], view=view)
    assert other.derived.sources == (view.entry(OUT).digest,)
    assert not torch.equal(other.data, second.data)


def test_all_facts_taken_back_after_a_correction_give_the_parents_bytes(made, weak):
    _, view, run = taken(made, ["lamp"])
    assert run.records["corrected"]
    rest = rest_of(run)[0]
    change, _, last = taken(made, ["stone", "colour", "two"], lost=["lamp"], view=view, rest=rest)
    assert torch.equal(change.data, made.before.tensor(OUT))
    assert "corrected" not in last.records  # there is nobody left


def test_on_a_matrix_that_changed_since_the_others_hold_in_what_is_there_now(made, weak, uncorrected):
    later = MemoryView({n: made.after.tensor(n) * (1.02 if n == OUT else 1.0) for n in made.after.names()}, dict(made.after._files))
    change, view, run = taken(made, ["lamp"], view=later)
    assert run.records["corrected"]
    assert change.derived.sources == (later.entry(OUT).digest,)
    was, now = made.preferred(later), made.preferred(view)
    assert all(now[i] > 0.5 for i in ("stone", "colour", "two") if was[i] > 0.5)
    uncorrected()
    poorer = made.preferred(taken(made, ["lamp"], view=later)[1])
    assert any(poorer[i] <= 0.5 < was[i] for i in ("stone", "colour", "two"))


def test_the_same_inputs_give_the_same_bytes(made, weak):
    first, second = (taken(made, ["lamp"]) for _ in range(2))
    assert torch.equal(first[0].data, second[0].data)
    assert blob_digest(rest_of(first[2])[0]) == blob_digest(rest_of(second[2])[0])


def test_what_cannot_be_had_ends_with_the_last_step_and_the_best_place(made, weak, monkeypatch):
    monkeypatch.setattr(mend, "PACE", 0.0)
    monkeypatch.setattr(mend, "STEPS", 3)
    _, view, run = taken(made, ["lamp"])
    assert run.records["correction"] == {"subjects": run.records["correction"]["subjects"], "steps": 3, "moved": 0.0}
    assert any(p <= 0.5 for i, p in made.preferred(view).items() if i != "lamp")
    assert ("correct", 3, 3, {}) in run.steps


def test_what_is_restored_is_relative_to_what_was_there():
    assert mend.restored(0.2, 0.2) == mend.restored(0.2, 0.1) == 1.0
    assert mend.restored(0.2, 0.6) == pytest.approx(0.5)
    assert 1 / (1 + math.exp(-mend._odds(0.2, 0.5))) == pytest.approx(0.6)


def test_a_fact_that_a_later_edit_wrote_again_is_left_to_that(made):
    _, view, run = taken(made, ["lamp"])
    rest = rest_of(run)[0]
    # The same answer at the same key, as if it had been written by somebody else.
    again = MemoryView(
        {n: made.after.tensor(n) - made.before.tensor(n) + view.tensor(n) if n == OUT else view.tensor(n) for n in view.names()},
        dict(view._files),
    )
    assert made.preferred(again)["lamp"] > 0.5
    change, now, last = taken(made, ["two"], lost=["lamp"], view=again, rest=rest)
    assert "lamp" not in last.records["corrected"]
    assert change.derived.sources == (again.entry(OUT).digest,)
    assert made.preferred(now)["lamp"] > 0.5


@pytest.mark.parametrize("reached", [True, False])
def test_where_all_is_well_is_where_it_stays_though_another_fact_is_less_sure_than_it_was(monkeypatch, reached):
    work = object.__new__(mend._Correction)
    work.best, work.rate, work.steps = torch.zeros(1, 2), 1.0, 0
    work.owner, work.moving, work.radius = torch.tensor([0, 0]), torch.zeros(1, dtype=torch.bool), torch.tensor([9.0])
    work.sign, work.floor, work.enough, work.aim = torch.tensor([[1.0, 0.02, 0.2, 0.25], [-1.0, 2.9, 3.2, 3.5]]).T
    told = [torch.tensor([3.0, 2.8]), *[torch.tensor([1.0, 3.3 if reached else 2.85])] * mend.STEPS]
    monkeypatch.setattr(work, "_measure", lambda _: (told[work.steps], torch.ones(1, 2)))
    run = MemoryRun()
    assert work.run(run) is reached
    assert bool(work.best.any()) is reached  # of two places that are both short the surer one is kept
    assert run.steps[-1] == ("correct", work.steps, work.steps, {})
