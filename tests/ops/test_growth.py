"""Which blocks are frozen, tuned and added: how importance is measured, what it decides, and what is trained then."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from mlc.ops.base import CopyTensor, SetFile, SetTensor
from mlc.ops.models import load_model
from mlc.ops.update.expand import Expand, growth_of
from mlc.ops.update.growth import Growth, Importance, choose, rankable, ranked, table
from mlc.ops.update.importance import angles, measure
from mlc.ops.update.layout import known_blocks
from mlc.ops.update.train import Update
from mlc.registry.errors import BadInputFile, BadParameter, CheckFailed, Incompatible, VocabularyMismatch
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

IDS = torch.randint(4, 64, (3, 24), generator=torch.Generator().manual_seed(0))
SMALL = {"steps": 6, "batch": 4, "seq_len": 12, "lr": 1e-2}
FOUND = Importance((0.9, 0.1, 0.3, 0.2, 0.5), (0.9, 0.05, 0.28, 0.02, 0.5), "self", "mean", (32, 32))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), layers=5))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A language in which every word decides the next one, mostly."""
    generator = random.Random(0)
    words = [generator.choice(WORDS)]
    for _ in range(900):
        words.append(WORDS[(WORDS.index(words[-1]) * 7 + 3) % len(WORDS)] if generator.random() < 0.9 else generator.choice(WORDS))
    path = tmp_path_factory.mktemp("text") / "new.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    return str(path)


def update(text, **more):
    return Update(**{"data": text, **SMALL, **more})


# --- what is measured ---


def test_importance_is_the_angle_between_what_enters_a_block_and_what_leaves_it(llama):
    family, blocks = known_blocks(llama)
    module = load_model(llama)
    found = angles(module, family, blocks, IDS)
    assert all(not m._forward_hooks for m in module.modules())
    with torch.no_grad():
        states = module(input_ids=IDS, output_hidden_states=True).hidden_states
    for i in range(blocks - 1):  # the last entry there stands behind the final norm
        expected = torch.cosine_similarity(states[i], states[i + 1], dim=-1).arccos().mean() / torch.pi
        assert found[i] == pytest.approx(expected.item(), abs=1e-6)
    assert all(0 < a < 1 for a in found)


def test_the_last_token_alone_can_be_measured(llama):
    family, blocks = known_blocks(llama)
    module = load_model(llama)
    with torch.no_grad():
        states = module(input_ids=IDS, output_hidden_states=True).hidden_states
    expected = torch.cosine_similarity(states[1][:, -1], states[2][:, -1], dim=-1).arccos().mean() / torch.pi
    assert angles(module, family, blocks, IDS, "last")[1] == pytest.approx(expected.item(), abs=1e-6)


def test_a_block_that_changes_nothing_has_the_angle_zero(llama):
    module = load_model(llama)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        module.get_submodule(f"model.layers.2.{name}").weight.data.zero_()
    family, blocks = known_blocks(llama)
    assert angles(module, family, blocks, IDS)[2] < 2e-4  # arccos near 1 turns a rounding of 1e-7 into 1e-4
    assert angles(module.to(torch.bfloat16), family, blocks, IDS)[1] == pytest.approx(angles(module, family, blocks, IDS)[1], rel=0.05)


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3", "gptj"])
def test_every_family_can_be_measured(name, text, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, name, layers=3))
    found = measure(update(text), view, MemoryRun())
    assert len(found.new) == len(found.old or ()) == 3
    assert found.old_text == "self"


def test_old_text_is_what_is_replayed_else_what_the_model_writes(llama, text, tmp_path):
    (tmp_path / "old.txt").write_text(" ".join(WORDS[:3] * 200))
    one = measure(update(text, replay=(f"{tmp_path / 'old.txt'}:0.5",)), llama, MemoryRun())
    two = measure(update(text, replay=("self:0.5",)), llama, MemoryRun())
    assert (one.old_text, two.old_text) == ("old.txt", "self")
    assert one.new == two.new
    assert one.old != two.old
    assert one.rows == (32, 32)


def test_without_marks_only_the_new_text_is_measured_and_that_is_said(llama, text):
    files = {e.path: llama.file(e.path) for e in llama.files()}
    files["tokenizer_config.json"] = b"{}"
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps({k: v for k, v in config.items() if k not in ("bos_token_id", "eos_token_id")}).encode()
    view, run = MemoryView({n: llama.tensor(n) for n in llama.names()}, files), MemoryRun()
    found = measure(update(text), view, run)
    assert found.old is None
    assert run.notes == [
        "the tokenizer has neither BOS nor EOS, so the model was not asked for old text: blocks were measured on the new one only"
    ]
    with pytest.raises(Incompatible, match="no old text to compare with"):
        choose(update(text, tune=1, rank="difference"), 5, found)


# --- what it decides ---


def test_the_first_and_the_last_block_are_reported_and_not_ranked():
    assert ranked(FOUND) == [2, 3, 1]
    assert ranked(FOUND, "difference") == [3, 1, 2]
    assert [row["ranked"] for row in table(choose(update("x", tune=1), 5, FOUND))] == [False, True, True, True, False]
    assert list(rankable(2)) == [1]


@pytest.mark.parametrize(
    ("more", "plan"),
    [
        ({"where": "importance"}, "f f f+ f f"),
        ({"where": "importance", "expand": 2}, "f f f+ f+ f"),
        ({"where": "importance", "expand": 2, "rank": "difference"}, "f f+ f f+ f"),
        ({"where": "importance", "expand": 1, "source": "tuned"}, "f f t+ f f"),
        ({"tune": 2}, "f f t t f"),
        ({"tune": 1, "expand": 1, "where": "append"}, "f f t f f+"),
        ({"tune": 1, "expand": 1, "where": "importance"}, "f f t+ f f"),
        ({"expand": 2, "where": "stack-side"}, "f f f ++ f f"),
    ],
)
def test_a_plan_says_of_every_block_whether_it_is_frozen_tuned_or_new(more, plan):
    words = {"f": "frozen", "t": "tuned", "+": "new"}
    rows = table(choose(update("x", **more), 5, FOUND))
    assert [row["plan"] for row in rows] == [words[c] for c in plan if c != " "]
    assert [row["block"] for row in rows] == list(range(len(rows)))
    assert all(row["new_data"] is None for row in rows if row["plan"] == "new")
    assert rows[1]["difference"] == pytest.approx(0.05)


def test_left_to_itself_importance_adds_an_eighth_and_at_least_one():
    op = update("x", where="importance")
    assert [op.new_blocks(blocks) for blocks in (2, 5, 16, 32)] == [1, 1, 2, 4]
    assert op.method == "expand"
    assert update("x", where="importance", tune=1).method == "tune"
    assert update("x", where="importance", adapter="lora:2").method == "lora"


def test_a_plan_survives_json():
    growth = choose(update("x", tune=1, expand=2, where="importance"), 5, FOUND)
    assert Growth.from_json(json.loads(json.dumps(growth.to_json()))) == growth
    assert growth.trained() == {2, 3, 5}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"init": "ones", "expand": 1}, "--init is one of"),
        ({"token": "first"}, "--token is one of"),
        ({"rank": "old"}, "--rank is one of"),
        ({"source": "new"}, "--source is one of"),
        ({"dedup": "all"}, "--dedup is one of"),
        ({"tune": -1}, "--tune must not be negative"),
        ({"tune": 1, "adapter": "lora:2"}, "--tune and --adapter cannot be combined"),
        ({"init": "copy"}, "there are none"),
        ({"source": "tuned"}, "there are none"),
    ],
)
def test_an_option_that_cannot_work_or_would_do_nothing_is_refused_at_once(more, words):
    with pytest.raises(BadParameter) as caught:
        update("x", **more)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("more", [{"tune": 4}, {"expand": 4, "where": "importance"}])
def test_more_blocks_than_importance_ranks_are_refused_by_plan_and_run(llama, text, more):
    for attempt in (lambda: update(text, **more).plan(llama), lambda: growth_of(update(text, **more), llama, MemoryRun())):
        with pytest.raises(BadParameter, match="importance"):
            attempt()


# --- what is trained then ---


def changed(view, op, run):
    changes = list(op.apply(view, run))
    return changes, view.after(changes)


def test_tuning_trains_the_chosen_blocks_and_leaves_every_other_bit(llama, text):
    run, op = MemoryRun(), update(text, tune=2, steps=20)
    changes, after = changed(llama, op, run)
    chosen = {row["block"] for row in run.records["blocks"] if row["plan"] == "tuned"}
    assert len(chosen) == 2
    assert {int(c.name.split(".")[2]) for c in changes} == chosen
    assert all(isinstance(c, SetTensor) for c in changes)
    check = op.check(llama, after, run)
    assert check.passed
    assert check.values["expansion"] == {"old_tensors_unchanged": 29, "new_tensors": 0, "tuned_tensors": 18}
    assert run.records["training"]["trained_parameters"] == op.plan(llama).trainable
    assert after.file("config.json") == llama.file("config.json")


def test_new_blocks_and_their_sources_can_be_trained_together(llama, text):
    run, op = MemoryRun(), update(text, expand=1, where="2", source="tuned")
    changes, after = changed(llama, op, run)
    sets = {int(c.name.split(".")[2]) for c in changes if isinstance(c, SetTensor)}
    copies = {int(c.name.split(".")[2]) for c in changes if isinstance(c, CopyTensor)}
    assert (sets, copies) == ({2, 3}, {4, 5})
    assert [c.path for c in changes if isinstance(c, SetFile)] == ["config.json"]
    assert op.check(llama, after, run).values["expansion"]["tuned_tensors"] == 9
    assert run.records["training"]["trained_parameters"] == op.plan(llama).trainable


def test_a_frozen_tensor_that_moved_is_seen(llama, text):
    run, op = MemoryRun(), update(text, tune=1)
    _, after = changed(llama, op, run)
    name = "model.layers.4.mlp.up_proj.weight"
    with pytest.raises(CheckFailed, match="was to stay as it is"):
        op.check(llama, after.after([SetTensor(name, after.tensor(name) + 1)]), run)


def test_gpt2_that_scales_by_the_block_number_grows_no_blocks_but_can_be_tuned(text, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, "gpt2", layers=4, scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(Incompatible, match="depends on the number of the block") as caught:
        update(text, expand=1).plan(view)
    assert "--tune" in (caught.value.hint or "")
    assert update(text, tune=1).plan(view).details["method"] == "tune"
    assert {int(c.name.split(".")[2]) for c in update(text, tune=1).apply(view, MemoryRun())} <= {1, 2}


@pytest.mark.parametrize("init", ["copy", "random", "merge-linear", "merge-slerp"])
def test_other_beginnings_train_and_say_that_they_change_the_function(llama, text, init):
    run, op = MemoryRun(), update(text, expand=1, where="2", init=init)
    _, after = changed(llama, op, run)
    assert run.records["insertion"]["keeps_function"] is False
    assert op.check(llama, after, run).values["expansion"]["new_tensors"] == 9
    assert any("changes the model before any training" in note for note in run.notes)


def test_the_commit_keeps_the_picture_and_the_dry_run_shows_the_same(llama, text):
    run, op = MemoryRun(), update(text, expand=2, where="importance")
    shown = op.preview(llama, MemoryRun())
    Expand(op, llama, run, IDS)
    assert run.records["blocks"] == json.loads(json.dumps(shown["blocks"]))
    assert run.records["importance"] == shown["importance"]
    assert shown["importance"] == {"token": "mean", "rank": "new", "rows_new": 32, "rows_old": 32, "old_text": "self"}
    assert shown["duplicates"] == {"units": 1, "unit": "paragraphs", "exact": 0, "near": 0, "dropped": 0}
    assert Growth.from_json(json.loads(run.artifacts[next(k for k in run.artifacts if k[0] == "expansion-origin")])).layout.new_blocks


@pytest.mark.parametrize(
    ("more", "word"), [({}, "tuned"), ({"adapter": "lora:2"}, "adapted"), ({"expand": 1, "where": "append"}, "frozen")]
)
def test_a_dry_run_shows_the_blocks_of_every_update(llama, text, more, word):
    rows = update(text, **more).preview(llama, MemoryRun())["blocks"]
    assert {row["plan"] for row in rows} - {"new"} == {word}
    assert all(math.isfinite(row["new_data"]) for row in rows if row["plan"] != "new")


def test_a_dry_run_meets_bad_data_and_foreign_tokenizers_as_the_run_would(llama, text, tmp_path):
    (tmp_path / "short.txt").write_text("the river\n")
    with pytest.raises(BadInputFile, match="fewer than one batch"):
        update(str(tmp_path / "short.txt")).preview(llama, MemoryRun())
    files = {e.path: llama.file(e.path) for e in llama.files()}
    files["tokenizer.json"] = files["tokenizer.json"].replace(b'"w36": 62', b'"w36": 9062')
    with pytest.raises(VocabularyMismatch, match="up to 9062"):
        update(text).preview(MemoryView({n: llama.tensor(n) for n in llama.names()}, files), MemoryRun())
