"""The correction of a write: what it does to the facts, and when drift may count for less."""

from __future__ import annotations

import pytest
import torch

from mlc.ops.data.facts import Fact
from mlc.ops.edit import polish
from mlc.ops.edit.contexts import contexts_of
from mlc.ops.edit.prompts import Prompter, groups_of
from mlc.ops.edit.site import Editable
from mlc.ops.edit.targets import Settings, parts_of
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_tokenizer
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView

FACTS = (
    Fact("a", 1, "amber lamp", "the {} is in", "river", "stone", relation="place"),
    Fact("b", 2, "harbour", "{} was", "red", "blue", relation="colour"),
)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(polish, "STEPS", 20)
    monkeypatch.setattr(polish, "MORE", 15)


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), "llama", layers=3))


class Case:
    """Two facts to be written at block 1 of a tiny model, at a weight of drift that leaves them far."""

    def __init__(self, view, weight=30.0):
        self.model = Editable(view)
        self.groups = groups_of(FACTS, Prompter(Coder(load_tokenizer(view)), 64), ["one two"])
        keys = contexts_of(self.model, 1, self.groups).keys
        self.written = keys / (keys * keys).sum(0)
        self.residual = torch.zeros(self.model.weight(1).shape[0], 2, dtype=torch.float64)
        self.drift = (torch.eye(2, dtype=torch.float64), weight)
        self.rows = torch.arange(40 * 20).remainder(19).view(40, 20)

    def __call__(self, text=True, **settings):
        ordinary = polish.sample(self.model, self.rows) if text else None
        return polish.polish(
            self.model, 1, self.groups, self.residual, self.written, torch.full((2,), 50.0), 0.003,
            Settings(kl=0.0, **settings), self.drift, ordinary=ordinary,
        )  # fmt: skip

    def asked(self, residual):
        """Loss of each fact's new answers, without drift."""
        parts = [(part, polish.reached(self.model, 1, part.batch, self.written)) for part in parts_of(self.model, 1, self.groups, 0.0)]
        return polish._measure(self.model, 1, parts, residual.T.float(), None, None)[1]


def test_facts_that_are_far_are_given_more_room_while_ordinary_text_hardly_notices(view, monkeypatch):
    case = Case(view)
    stays = case(text=False)
    assert stays.turns == 0
    monkeypatch.setattr(polish, "NOTICED", 1e9)
    monkeypatch.setattr(polish, "FAR", case.asked(stays.residual).max().item() - 0.005)
    eased = case()
    assert eased.turns == 1
    assert bool((case.asked(eased.residual) < polish.FAR).any())


def test_more_room_that_brings_no_fact_nearer_is_not_taken(view, monkeypatch):
    monkeypatch.setattr(polish, "NOTICED", 1e9)
    monkeypatch.setattr(polish, "FAR", 0.0)  # every fact is far, before and after
    case = Case(view)
    found = case()
    assert found.turns == 0
    assert torch.equal(found.residual, case(text=False).residual)


def test_more_room_that_text_notices_too_much_of_is_not_taken(view, monkeypatch):
    case = Case(view)
    stays = case(text=False)
    monkeypatch.setattr(polish, "FAR", case.asked(stays.residual).max().item() - 0.005)
    text = polish.sample(case.model, case.rows)
    before = polish.noticed(case.model, 1, text, case.written, stays.residual.T.float())
    monkeypatch.setattr(polish, "NOTICED", before * 1.0001 + 1e-9)
    found = case()
    assert found.turns == 0
    assert torch.equal(found.residual, stays.residual)


@pytest.mark.parametrize(("noticed", "far"), [(-1.0, polish.FAR), (1e9, 1e9)], ids=["ordinary text notices", "no fact is far"])
def test_otherwise_the_weight_of_drift_stays(view, monkeypatch, noticed, far):
    monkeypatch.setattr(polish, "NOTICED", noticed)
    monkeypatch.setattr(polish, "FAR", far)
    case = Case(view)
    found = case()
    assert found.turns == 0
    assert torch.equal(found.residual, case(text=False).residual)


def test_what_ordinary_text_notices_is_the_divergence_of_the_written_model(view):
    case, model = Case(view), Editable(view)
    change = torch.linspace(-1, 1, case.residual.numel()).view(2, -1)
    text = polish.sample(case.model, case.rows)
    found = polish.noticed(case.model, 1, text, case.written, change)
    model.weight(1).add_(change.T @ case.written.T.float())
    with torch.no_grad():
        before, now = (m.module(input_ids=text.ids).logits.log_softmax(-1) for m in (case.model, model))
    assert found == pytest.approx((now.exp() * (now - before)).sum(-1).mean().item(), rel=1e-4)
    assert len(text.ids) == min(polish.ROWS, len(case.rows))
    assert found > 0
    assert polish.noticed(case.model, 1, text, case.written, 0 * change) == pytest.approx(0, abs=1e-6)
    # Of a model that was written into since, what it said before is still what is compared with.
    assert polish.noticed(model, 1, text, case.written, 0 * change) == pytest.approx(found, rel=1e-4)
