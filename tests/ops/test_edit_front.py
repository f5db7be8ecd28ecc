"""What stands before a subject is read once: cut rows give the losses and the gradients of whole ones, in every family."""

from __future__ import annotations

import pytest
import torch

from mlc.ops.data.facts import Fact
from mlc.ops.edit.front import cut
from mlc.ops.edit.prompts import Batch, Prompter, groups_of
from mlc.ops.edit.site import Editable
from mlc.ops.edit.targets import Part, lost, moving, parts_of
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_tokenizer
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView

FACTS = (
    Fact("a", 1, "amber lamp", "the {} is in", "river", "stone", relation="place", wordings=("near the north river one sells the {} in",)),
    Fact("b", 2, "harbour", "{} was", "red", "blue", relation="colour", wordings=("on the two south {} is",)),
    Fact("c", 3, "amber lamp", "a {} is", "blue north", relation="colour"),
    Fact("d", 4, "north river stone", "the {} speaks", "south", relation="place"),
)
PREFIXES = ("one two", "south stone river of the amber", "in")


@pytest.fixture(params=["llama", "mistral", "qwen3", "gpt2", "neox", "gptj"])
def model(request, tmp_path):
    short = {"sliding_window": 5} if request.param == "mistral" else {}  # fronts are longer than that
    return Editable(MemoryView.of(tiny_model(tmp_path, request.param, layers=4, **short)))


def groups(model):
    return groups_of(FACTS, Prompter(Coder(load_tokenizer(model.view)), 64), PREFIXES)


def losses(model: Editable, parts: list[Part], change: torch.Tensor, count: int) -> torch.Tensor:
    """Per subject, when block 1 gives more by change[:, 0] behind it and block 2 by change[:, 1]."""
    found = torch.zeros(count, dtype=change.dtype)
    for part in parts:
        rows = torch.arange(len(part.owner))
        states = part.states.index_put((rows, part.batch.at), change[part.owner, 0], accumulate=True)
        with moving(model, 2, change[:, 1], part):
            found = found.index_add(0, part.owner[part.batch.rows], lost(model, 1, part, states))
    return found


def tokens(parts: list[Part]) -> int:
    return sum(part.batch.ids.numel() for part in parts)


def test_cut_rows_have_the_losses_and_gradients_of_whole_ones(model):
    asked = groups(model)
    with model.computing(torch.float64):
        whole, tails = parts_of(model, 1, asked, 1.0), parts_of(model, 1, asked, 1.0, tails=True)
        assert 2 * tokens(tails) < tokens(whole)
        size = whole[0].states.norm(dim=2).mean()
        change = size * torch.randn(len(asked), 2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        answers = []
        for parts in (whole, tails):
            given = change.clone().requires_grad_(True)
            found = losses(model, parts, given, len(asked))
            found.sum().backward()
            answers.append((found.detach(), given.grad))
    assert float(answers[0][0].min()) > 0.1
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-11)


def test_rows_that_are_left_keep_their_front(model):
    asked = groups(model)
    change = torch.randn(len(asked), 2, 16, generator=torch.Generator().manual_seed(1))
    parts = parts_of(model, 1, asked, 1.0, tails=True)
    live = torch.tensor([True, False, True])
    left = [part for part in (part.of(live) for part in parts) if part is not None]
    assert tokens(left) < tokens(parts)
    torch.testing.assert_close(losses(model, left, change, 3)[live], losses(model, parts, change, 3)[live], rtol=1e-5, atol=1e-6)
    assert float(losses(model, left, change, 3)[1]) == 0


def test_what_stands_before_is_told_from_padding(model):
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
    batch = Batch(ids, torch.tensor([3, 1]), torch.tensor([4, 1]), torch.tensor([0, 1]), torch.tensor([5, 2]), torch.tensor([7, 8]))
    tail, states, front = cut(model, 1, batch, model.entering(batch, 1))
    assert tail.ids.tolist() == [[9, 10], [12, 13]]
    assert (tail.at.tolist(), tail.places.tolist()) == ([0, 0], [1, 1])
    assert states.shape == (2, 2, 16)
    assert front is not None
    assert front.real.tolist() == [[True] * 4, [False] * 3 + [True]]
    assert front.places.tolist() == [[4, 5], [1, 2]]


def test_rows_that_begin_with_their_subject_have_no_front(model):
    batch = Batch(torch.tensor([[5, 6, 7]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.tensor([2]), torch.tensor([7]))
    tail, states, front = cut(model, 1, batch, model.entering(batch, 1))
    assert front is None
    assert tail.ids.tolist() == batch.ids.tolist()
    torch.testing.assert_close(model.logits(tail, hidden=states, layer=1), model.logits(batch))


def test_a_place_before_the_subjects_last_token_is_kept(model):
    batch = Batch(
        torch.tensor([[5, 6, 7, 8]]), torch.tensor([1]), torch.tensor([2]), torch.tensor([0, 0]), torch.tensor([1, 3]), torch.tensor([7, 8])
    )
    tail, states, front = cut(model, 1, batch, model.entering(batch, 1))
    assert (tail.at.tolist(), tail.places.tolist()) == ([1], [0, 2])
    torch.testing.assert_close(model.logits(tail, hidden=states, layer=1, front=front), model.logits(batch), rtol=1e-4, atol=1e-5)
