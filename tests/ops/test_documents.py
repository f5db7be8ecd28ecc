"""Documents that share a row: each is read, trained on and measured as if it stood alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mlc.kernels.select import top_k_masks
from mlc.ops.data import Marks, Mixture, Source, pack, read_corpus
from mlc.ops.data.mixing import Batch
from mlc.ops.data.selection import distances, features, nearest_fill
from mlc.ops.engine.documents import logits_of, positions, reads_apart
from mlc.ops.engine.local import language_loss, mean_loss, token_losses
from mlc.ops.models import load_core_tokenizer, load_model
from mlc.ops.unlearn.importance import unpack
from mlc.ops.unlearn.mask import unpack as unpack_masks
from mlc.ops.update import rows as update_rows
from mlc.ops.update.auto import _losses, _measured
from mlc.ops.update.importance import Text, angles, measure, texts
from mlc.ops.update.layout import known_blocks
from mlc.ops.update.objective import UpdateLoss
from mlc.ops.update.pathwise import path_importance, walked
from mlc.ops.update.protect import SCORED, fisher, normalised, protection
from mlc.ops.update.rows import evenly, prepare, read_apart
from mlc.ops.update.session import objective_of
from mlc.ops.update.train import Update
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

FIRST, SECOND = [1, 7, 9, 2], [1, 12, 8, 30, 5, 2]  # BOS, words, EOS


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sentences.jsonl"
    rows = [{"text": f"{a} is {WORDS[(n * 5 + 2) % len(WORDS)]}"} for n, a in enumerate(WORDS)] * 4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- reading ---------------------------------------------------------------------------------------------


def test_positions_begin_anew_where_a_document_does_and_go_on_where_a_row_continues_one():
    ids = torch.tensor([[1, 5, 6, 1, 7, 8], [4, 5, 1, 7, 1, 8], [1, 5, 1, 6, 1, 7]])
    assert positions(ids, (1, 1, None)).tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert positions(ids[:, :3], (1, None, None)) is None  # nothing begins inside a row


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3"])
def test_a_document_in_a_row_is_read_as_if_it_stood_alone(family, tmp_path):
    module = load_model(MemoryView.of(tiny_model(tmp_path, family)), dtype=torch.float32).eval()
    row, alone = torch.tensor([[*FIRST, *SECOND]]), torch.tensor([SECOND])
    assert reads_apart(module, 1)
    with torch.no_grad():
        wanted = module(input_ids=alone).logits
        apart, joined = logits_of(module, row, (1,))[:, len(FIRST) :], logits_of(module, row, (None,))[:, len(FIRST) :]
    torch.testing.assert_close(apart, wanted, rtol=1e-5, atol=1e-6)
    assert (joined - wanted).abs().max() > 1e-4  # what stands before it is seen


class ReadsOn(nn.Module):
    """Carries a state from token to token, whatever the positions say."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 8)

    def forward(self, input_ids, position_ids=None, use_cache=False):
        return SimpleNamespace(logits=self.table(input_ids).cumsum(1))


class Without(ReadsOn):
    """Knows no positions."""

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=self.table(input_ids))


@pytest.mark.parametrize("kind", [ReadsOn, Without])
def test_a_model_that_cannot_read_them_apart_is_found_out_and_left_in_its_mode(kind):
    module = kind().train()
    assert not reads_apart(module, 4)
    assert module.training


# --- rows ------------------------------------------------------------------------------------------------


def test_documents_can_be_told_apart_unless_one_holds_the_mark_itself(llama, sentences, tmp_path):
    core = load_core_tokenizer(llama)
    assert pack(read_corpus(sentences), core, Marks(1, 2), 16).begin == 1
    assert pack(read_corpus(sentences), core, Marks(None, 2), 16).begin == 2  # as GPT-2 has it: one mark for both ends
    assert pack(read_corpus(sentences), core, Marks(None, None), 16).begin is None
    word = core.token_to_id(WORDS[0])
    assert pack(read_corpus(sentences), core, Marks(word, None), 16).begin is None
    text = tmp_path / "running.txt"
    text.write_text(" ".join(WORDS * 4), encoding="utf-8")
    assert pack(read_corpus(text), core, Marks(1, 2), 16).begin is None


# --- in an update ----------------------------------------------------------------------------------------


def test_the_loss_of_a_row_is_that_of_its_documents_alone(llama):
    module = load_model(llama, dtype=torch.float32).eval()
    row = torch.tensor([[*FIRST, *SECOND]])
    parts = [token_losses(module(input_ids=ids).logits, ids) for ids in (torch.tensor([FIRST]), torch.tensor([SECOND]))]
    border = -module(input_ids=torch.tensor([FIRST])).logits[0, -1].log_softmax(-1)[1]  # BOS behind EOS is predicted as ever
    wanted = (sum(part.sum() for part in parts) + border) / (row.shape[1] - 1)
    found = UpdateLoss(begins={0: 1})(module, Batch(row, (0,)))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert mean_loss(module, row, begin=1) == pytest.approx(wanted.item(), rel=1e-5)
    assert abs(mean_loss(module, row) - wanted.item()) > 1e-5


def test_rows_of_other_sources_are_read_as_they_are(llama):
    module = load_model(llama, dtype=torch.float32).eval()
    rows = torch.tensor([[*FIRST, *SECOND], [*SECOND, *FIRST]])
    both = UpdateLoss(begins={1: 1})(module, Batch(rows, (0, 1)))
    each = [mean_loss(module, rows[:1]), mean_loss(module, rows[1:], begin=1)]
    assert both.item() == pytest.approx(sum(each) / 2, rel=1e-5)


def test_an_update_on_documents_reads_them_apart_and_on_running_text_nothing_changes(llama, sentences, tmp_path):
    text = tmp_path / "running.txt"
    text.write_text(" ".join(WORDS * 20), encoding="utf-8")
    op = Update(data=str(sentences), batch=2, seq_len=16, replay=(f"{text}:0.5",), mix=(f"{_other(tmp_path)}:1",))
    rows = prepare(op, llama, MemoryRun())
    assert rows.beginnings() == {0: 1, 2: 1}  # data and mix, not the old text
    assert isinstance(objective_of(op, llama, MemoryRun(), rows), UpdateLoss)
    plain = Update(data=str(text), batch=2, seq_len=16)
    assert objective_of(plain, llama, MemoryRun(), prepare(plain, llama, MemoryRun())) is language_loss


def _other(place):
    path = place / "other.jsonl"
    path.write_text("".join(json.dumps({"text": f"the {word} was {word}"}) + "\n" for word in WORDS * 3), encoding="utf-8")
    return path


def test_an_architecture_that_reads_on_is_trained_as_before_and_that_is_said(llama, sentences, monkeypatch):
    op, run = Update(data=str(sentences), batch=2, seq_len=16, steps=2), MemoryRun()
    rows = prepare(op, llama, run)
    monkeypatch.setattr(update_rows, "reads_apart", lambda module, begin: False)
    assert read_apart(rows, load_model(llama, dtype=torch.float32), run).begins == {}
    assert any("reads the documents of one row as one text" in note for note in run.notes)


def test_an_update_on_documents_learns_and_is_measured_in_the_same_way(llama, sentences):
    op, run = Update(data=str(sentences), batch=4, seq_len=16, steps=30, lr=1e-2), MemoryRun()
    after = llama.after(op.apply(llama, run))
    check = op.check(llama, after, run)
    assert check.passed
    module = load_model(after, dtype=torch.float32)
    held = prepare(op, llama, MemoryRun()).held
    assert check.values["loss_after"] == pytest.approx(mean_loss(module, held, begin=1), abs=1e-6)


def test_a_mixture_of_sources_hands_on_where_each_row_came_from():
    rows = torch.arange(8).reshape(4, 2)
    batch = Mixture([Source("a", rows, 0.5), Source("b", rows, 0.5)], batch=4, seed=0).at(0)
    assert batch.source == (0, 0, 1, 1)


# --- what is measured before training -----------------------------------------------------------------------


def gradient(module, rows, begin=1):
    """Of the loss that training has on these rows, by name."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(UpdateLoss(begins={0: begin})(module, Batch(rows, (0,) * len(rows))), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fisher_information_is_of_the_gradient_that_training_has(family, tmp_path):
    module = load_model(MemoryView.of(tiny_model(tmp_path, family)), dtype=torch.float32).eval()
    rows = torch.tensor([[*FIRST, *SECOND], [*SECOND, *FIRST]])  # parted in other places
    wanted = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    for row in rows.split(1):
        for name, value in gradient(module, row).items():
            wanted[name] += value.square() / len(rows)
    found, joined = fisher(module, rows, MemoryRun(), 1), fisher(module, rows, MemoryRun())
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-9)
    assert any((joined[n] - v).abs().max() > 0.01 * v.abs().max() for n, v in found.items())


def test_path_importance_walks_along_the_gradient_that_training_has(llama):
    module = load_model(llama, dtype=torch.float32).eval()
    row = torch.tensor([[*FIRST, *SECOND]])
    wanted = gradient(module, row)
    worth, _ = walked(module, row, None, 1, steps=1, rate=1e-3, sgd=True)
    for name, value in worth.items():
        torch.testing.assert_close(value, 1e-3 * wanted[name].square(), rtol=1e-2, atol=1e-8)


def test_the_angles_of_a_row_are_those_of_its_documents_alone(llama):
    family, blocks = known_blocks(llama)
    module = load_model(llama, dtype=torch.float32)
    row, running = torch.tensor([[*FIRST, *SECOND]]), torch.tensor([[1, 7, 9, 12, 8, 30, 5, 4, 6, 10]])
    alone = [angles(module, family, blocks, torch.tensor([document])) for document in (FIRST, SECOND)]
    wanted = [(len(FIRST) * a + len(SECOND) * b) / row.shape[1] for a, b in zip(*alone, strict=True)]
    both = Text(torch.cat([running, row]), (None, 1)).turned(module, family, blocks, "mean")
    beside = angles(module, family, blocks, running)
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(beside, wanted, strict=True)], abs=1e-6)
    assert angles(module, family, blocks, row) != pytest.approx(wanted, abs=1e-4)


def told(kind, sentences, view, **more):
    """(the run after `protection` has measured on the documents, its rows, the module, the artifact of this kind and its key)."""
    op, run = Update(data=str(sentences), batch=4, seq_len=16, steps=4, lr=1e-2, **more), MemoryRun()
    module = load_model(view, dtype=torch.float32)
    rows = read_apart(prepare(op, view, run), module, run)
    protection(op, view, run, rows, module, 1e-2)
    [(key, data)] = [(key, data) for (found, key), data in run.artifacts.items() if found == kind]
    return rows, module, key, data


def test_what_is_protected_was_measured_on_documents_apart(llama, sentences, tmp_path):
    old = (f"{_other(tmp_path)}:0.5",)
    rows, module, key, data = told("fisher", sentences, llama, protect="ewc", replay=old)
    read = evenly(rows.mixture.sources[1].rows, 128)
    wanted = normalised(fisher(module, read, MemoryRun(), 1))
    assert all(torch.equal(value, wanted[n].to(torch.bfloat16)) for n, value in unpack(data).items())
    assert key.endswith("-apart")  # what an older version measured on the same rows is another thing
    _, module, key, data = told("path-importance", sentences, llama, protect="hle", replay=old)
    wanted = normalised(path_importance(module, read, begin=1))
    assert all(torch.equal(value, wanted[n].to(torch.bfloat16)) for n, value in unpack(data).items())
    assert key.endswith("-apart")
    running = tmp_path / "running.txt"
    running.write_text(" ".join(WORDS * 20), encoding="utf-8")
    assert not told("fisher", sentences, llama, protect="ewc", replay=(f"{running}:0.5",))[2].endswith("-apart")  # old text is running


def test_the_weights_that_spu_chooses_are_those_that_training_pulls_at(llama, sentences):
    rows, module, key, data = told("mask", sentences, llama, protect="spu")
    read = evenly(rows.mixture.sources[0].rows, int(SCORED * 16))
    module.requires_grad_(True)
    slopes = gradient(module, read)
    masks, _ = unpack_masks(data, {n: p.shape for n, p in module.named_parameters() if "gate_proj" in n or "up_proj" in n})
    assert masks
    for name, mask in masks.items():
        wanted = top_k_masks([slopes[name].abs()], int(0.1 * mask.numel()))[0]
        assert (mask != wanted).float().mean() < 0.01  # the same but for ties in rounding
    assert "-apart/" in key


def test_blocks_are_measured_on_documents_apart(llama, sentences, tmp_path):
    op = Update(data=str(sentences), batch=4, seq_len=16, tune=1, replay=(f"{_other(tmp_path)}:0.5",))
    family, blocks = known_blocks(llama)
    module = load_model(llama, dtype=torch.float32)
    new, old, _ = texts(op, llama, MemoryRun())
    found = measure(op, llama, MemoryRun())
    assert found.new == pytest.approx(angles(module, family, blocks, new.rows, begins=(1,) * len(new.rows)), abs=1e-6)
    assert found.old == pytest.approx(angles(module, family, blocks, old.rows, begins=(1,) * len(old.rows)), abs=1e-6)
    assert found.new != pytest.approx(angles(module, family, blocks, new.rows), abs=1e-5)


def test_rows_are_selected_by_gradients_of_documents_apart(llama, sentences, tmp_path):
    op, run = Update(data=str(sentences), batch=2, seq_len=16, select="tarot:4", select_for=str(_other(tmp_path))), MemoryRun()
    chosen = prepare(op, llama, run).mixture.sources[0].origin
    core, module = load_core_tokenizer(llama), load_model(llama, dtype=torch.float32)
    ours = pack(read_corpus(sentences), core, Marks(1, 2), 16, holdout=op.holdout, least=2).train
    theirs = pack(read_corpus(op.select_for), core, Marks(1, 2), 16).train
    aims = evenly(theirs, 128)

    def picked(begin):
        return tuple(nearest_fill(distances(features(module, ours, 0, begin=begin), features(module, aims, 0, begin=begin)), 4))

    assert chosen == picked(1) != picked(None)
    [key] = [key for kind, key in run.artifacts if kind == "selection"]
    assert key.endswith("/apart")


def test_trials_measure_each_old_text_as_it_is_read(llama, sentences):
    module = load_model(llama, dtype=torch.float32)
    apart, joined = torch.tensor([[*FIRST, *SECOND]] * 3), torch.tensor([[1, 7, 9, 12, 8, 30, 5, 4, 6, 10]] * 3)
    parts = _measured([(joined, None), (apart, 1)], 5)
    found = _losses(module, parts)
    assert found == pytest.approx([mean_loss(module, joined[:1])] * 3 + [mean_loss(module, apart[:1], begin=1)] * 2, abs=1e-6)
    assert len(_losses(module, _measured([(joined, None), (apart, 1)], 3))) == 3
