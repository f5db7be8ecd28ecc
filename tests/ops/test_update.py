"""The operation `update`: it learns, it repeats itself to the bit, it resumes, and it says what is wrong."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from mlc.ops.base import SetTensor
from mlc.ops.engine.local import curve, mean_loss
from mlc.ops.models import load_core_tokenizer, load_model
from mlc.ops.update.objective import divergence
from mlc.ops.update.precision import choose_precision
from mlc.ops.update.train import Update
from mlc.registry.errors import BadInputFile, BadParameter, CheckFailed, Incompatible, InputNotFound, StalePlan, VocabularyMismatch
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView

SMALL = {"steps": 12, "batch": 4, "seq_len": 12, "lr": 1e-2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), layers=3))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A language in which every word decides the next one, mostly."""
    generator = random.Random(0)
    words = [generator.choice(WORDS)]
    for _ in range(1500):
        words.append(WORDS[(WORDS.index(words[-1]) * 7 + 3) % len(WORDS)] if generator.random() < 0.9 else generator.choice(WORDS))
    path = tmp_path_factory.mktemp("text") / "new.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def update(text, **more):
    return Update(**{"data": str(text), **SMALL, **more})


def result(op, view, run=None):
    return view.after(op.apply(view, run or MemoryRun()), adapter=op.output_kind() == "adapter")


# --- it learns ---


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3"])
def test_the_loss_on_text_that_was_held_out_falls(family, text, tmp_path):
    view, run = MemoryView.of(tiny_model(tmp_path, family)), MemoryRun()
    op = update(text, steps=30)
    check = op.check(view, result(op, view, run), run)
    assert check.passed
    assert check.values["measured_on"] == "held-out rows"
    assert check.values["loss_after"] < check.values["loss_before"] - 0.2
    assert check.values["perplexity_after"] == pytest.approx(math.exp(check.values["loss_after"]))


@pytest.mark.parametrize("more", [{}, {"expand": 1}, {"replay": ("self:0.5",)}, {"grad_accum": 2}, {"expand": 1, "where": "importance"}])
def test_what_is_recorded_says_what_ran(llama, text, more):
    run = MemoryRun(seed=3)
    op = update(text, **more)
    result(op, llama, run)
    facts = run.records["training"]
    assert facts["lr"] == 1e-2
    assert facts["precision"] == "fp32"
    assert facts["threads"] == 1
    assert facts["tokens"] == 12 * 4 * 12 * op.grad_accum
    assert facts["method"] == op.method
    assert [step for step, _ in facts["curve"]] == list(range(1, 13))
    assert [(r.role, r.name) for r in run.inputs] == [("data", "new.txt")]
    progress = [(done, total) for phase, done, total, _ in run.steps if phase == "train"]
    assert progress == [(i, 12) for i in range(1, 13)]


def test_expansion_trains_the_new_block_and_leaves_every_old_tensor_as_it_was(llama, text):
    run, op = MemoryRun(), update(text, expand=1, where="1")
    after = result(op, llama, run)
    check = op.check(llama, after, run)
    assert check.passed
    assert check.values["expansion"] == {"old_tensors_unchanged": 29, "new_tensors": 9}
    assert run.records["insertion"]["max_logit_difference"] == 0.0
    assert after.config["num_hidden_layers"] == 4
    assert after.tensor("model.layers.2.self_attn.o_proj.weight").abs().max() > 0


def test_an_adapter_is_all_that_an_adapter_run_yields(llama, text):
    op = update(text, adapter="lora:2")
    adapter = result(op, llama)
    assert op.output_kind() == "adapter"
    assert all(n.startswith("base_model.model.") for n in adapter.names())
    assert [e.path for e in adapter.files()] == ["adapter_config.json"]
    assert any(adapter.tensor(n).abs().max() > 0 for n in adapter.names() if "lora_B" in n)


def test_a_bf16_model_stays_bf16_and_moves(text, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, dtype="bfloat16"))
    after = result(update(text), view)
    assert {after.entry(n).dtype for n in after.names()} == {"BF16"}
    assert after.entry("model.embed_tokens.weight").digest != view.entry("model.embed_tokens.weight").digest


def test_bf16_autocast_trains_with_fp32_weights(llama, text):
    run = MemoryRun()
    after = result(update(text, precision="bf16"), llama, run)
    assert run.records["training"]["precision"] == "bf16"
    assert {after.entry(n).dtype for n in after.names()} == {"F32"}
    assert after.digests() != result(update(text, precision="fp32"), llama).digests()


def test_auto_precision_is_fp32_for_a_small_model_on_a_cpu():
    if torch.cuda.is_available():
        pytest.skip("speaks of machines without a GPU")
    assert choose_precision("auto", {"hidden_size": 64}) == "fp32"
    assert choose_precision("bf16", {"hidden_size": 64}) == "bf16"


# --- it repeats itself ---


@pytest.mark.parametrize("more", [{"replay": ("self:0.5",)}, {"expand": 1}, {"adapter": "lora:2"}])
def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(llama, text, more):
    one, again, other = (result(update(text, **more), llama, MemoryRun(seed=s)) for s in (0, 0, 1))
    assert one.digests() == again.digests()
    assert one.digests() != other.digests()


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"replay": ("self:0.5",)}),
        ("gpt2", {"grad_accum": 2}),  # with dropout: the generator's state must come back as well
        ("llama", {"expand": 1}),
        ("llama", {"adapter": "lora:2"}),
    ],
)
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(family, more, text, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, family))
    op = update(text, save_every=4, **more)
    whole = result(op, view, MemoryRun()).digests()
    run = MemoryRun(die_after=10)
    with pytest.raises(Killed):
        result(op, view, run)
    assert run.state[0] == 8
    run.die_after, run.steps = None, []
    assert result(op, view, run).digests() == whole
    assert [done for phase, done, _, _ in run.steps if phase == "train"] == [9, 10, 11, 12]
    assert len(run.records["training"]["curve"]) == 12


def test_a_run_is_not_resumed_on_other_data(llama, text, tmp_path):
    path = tmp_path / "new.txt"
    path.write_text(text.read_text())
    run = MemoryRun(die_after=6)
    with pytest.raises(Killed):
        result(update(path, save_every=4), llama, run)
    path.write_text(text.read_text()[::-1])
    run.die_after = None
    with pytest.raises(StalePlan, match="data of this run has changed"):
        result(update(path, save_every=4), llama, run)


def test_training_leaves_the_global_generator_and_thread_count_alone(llama, text):
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    result(update(text, replay=("self:0.5",)), llama, MemoryRun(threads=2 if threads == 1 else 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


# --- replay ---


def test_text_from_the_parent_is_sampled_once_and_kept(llama, text):
    run, op = MemoryRun(), update(text, replay=("self:0.5",))
    after = result(op, llama, run)
    assert run.computed == 3  # and which documents there were, and what was read
    (_, _), (kind, key), (documents, _) = sorted(run.artifacts, reverse=True)
    assert documents == "documents"
    assert kind == "self-replay"
    assert key == f"{llama.snapshot_id}/0/56/12"  # seed, 24 rows to train on and 32 to measure, their length
    check = op.check(llama, after, run)
    assert run.computed == 3
    assert set(check.values["replay"]) == {"self"}


def test_replay_keeps_more_of_the_old_than_none(llama, text):
    run = MemoryRun()
    with_replay = update(text, steps=40, replay=("self:0.5",))
    forgotten = {}
    for op in (with_replay, update(text, steps=40)):
        after = result(op, llama, run)
        values = with_replay.check(llama, after, run).values["replay"]["self"]
        forgotten[op.replay] = values["loss_after"] - values["loss_before"]
    assert forgotten["self:0.5",] < 0.6 * forgotten[()]


def test_old_text_from_a_file_is_an_input_of_its_own(llama, text, tmp_path):
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps({"text": f"{a} {b} {a}"}) + "\n" for a in WORDS for b in WORDS[:5]))
    run, op = MemoryRun(), update(text, replay=(f"{old}:0.25", "self:0.25"))
    check = op.check(llama, result(op, llama, run), run)
    assert [(r.role, r.name) for r in run.inputs] == [("data", "new.txt"), ("replay", "old.jsonl")]
    assert set(check.values["replay"]) == {"old.jsonl", "self"}


def test_the_divergence_of_a_distribution_from_itself_is_zero_and_from_another_is_not():
    one, other = torch.randn(3, 5).log_softmax(-1), torch.randn(3, 5).log_softmax(-1)
    assert divergence(one, one).item() == pytest.approx(0, abs=1e-6)
    assert divergence(one, other).item() == pytest.approx((one.exp() * (one - other)).sum().item(), rel=1e-5)


# --- what is said when it goes wrong ---


def test_a_loss_that_is_no_number_stops_the_run(llama, text):
    run = MemoryRun()
    with pytest.raises(CheckFailed, match=r"no longer a number at step (\d+) of 12; .* is kept, and nothing was committed") as caught:
        result(update(text, lr=1e30, clip=0.0, warmup=0.0), llama, run)
    assert f"mlc update --resume test --slow {run.state[0] + 1}:0.25" in caught.value.hint
    assert "--lr" in caught.value.hint


def test_a_check_that_measures_no_gain_fails_with_both_numbers(llama, text):
    op = update(text)
    check = op.check(llama, llama, MemoryRun())
    assert not check.passed
    assert "did not fall" in check.reason
    assert check.hint is not None


def test_a_model_that_computes_no_numbers_fails_the_check_and_can_be_recorded(llama, text):
    broken = llama.after([SetTensor("model.norm.weight", torch.full((16,), math.nan))])
    check = update(text).check(llama, broken, MemoryRun())
    assert not check.passed
    assert "not a number after" in check.reason
    assert check.values["loss_after"] is None
    assert check.values["perplexity_after"] is None


def test_without_a_held_out_part_training_rows_are_measured_and_that_is_said(llama, text, tmp_path):
    op = update(text, holdout=0.0)
    assert op.check(llama, llama, MemoryRun()).values["measured_on"] == "training rows"
    small = tmp_path / "small.txt"
    small.write_text(" ".join(WORDS * 2 + WORDS[:4]))
    run = MemoryRun()
    result(update(small, steps=1), llama, run)
    assert run.notes == ["the data is too small to hold a part out: the check measures rows that were trained on"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 0}, "--steps"),
        ({"batch": 0}, "--batch"),
        ({"grad_accum": 0}, "--grad-accum"),
        ({"seq_len": 1}, "--seq-len"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": math.nan}, "--lr"),
        ({"holdout": 0.9}, "--holdout"),
        ({"warmup": 1.0}, "--warmup"),
        ({"decay": "slow"}, "--decay"),
        ({"precision": "fp8"}, "--precision"),
        ({"expand": -1}, "--expand"),
        ({"expand": 1, "adapter": "lora:2"}, "cannot be combined"),
        ({"expand": 1, "where": "top"}, "--where"),
        ({"expand": 2, "where": "1"}, "--where"),
        ({"replay": ("self",)}, "--replay"),
        ({"replay": ("self:1",)}, "--replay"),
        ({"replay": ("old.txt:0.5", "self:0.5")}, "nothing is left"),
        ({"replay": ("self:0.2", "self:0.2")}, "given twice"),
        ({"clip": -1.0}, "--clip"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"save_every": -1}, "--save-every"),
        ({"data": ""}, "--data"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(text, more, words):
    with pytest.raises(BadParameter) as caught:
        update(text, **more)
    assert words in caught.value.message
    assert caught.value.hint


def test_rows_longer_than_the_context_are_refused_by_plan_and_run(llama, text):
    op = update(text, seq_len=65)
    for attempt in (lambda: op.plan(llama), lambda: result(op, llama)):
        with pytest.raises(BadParameter, match="longer than the model's context of 64"):
            attempt()


def test_rows_fit_a_short_context_when_no_length_is_asked_for(llama, text):
    run, op = MemoryRun(), update(text, seq_len=None, steps=1)
    result(op, llama, run)
    assert run.records["training"]["seq_len"] == op.plan(llama).details["seq_len"] == 64


def test_missing_and_empty_data_are_refused_by_the_plan(llama, tmp_path):
    with pytest.raises(InputNotFound):
        update(tmp_path / "no.txt").plan(llama)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(BadInputFile):
        update(tmp_path / "empty.txt").plan(llama)


def test_models_that_do_not_predict_the_next_token_are_refused(text, tmp_path):
    with pytest.raises(Incompatible, match="this is a BertForSequenceClassification"):
        result(update(text), MemoryView.of(tiny_model(tmp_path, "bert")))
    with pytest.raises(Incompatible, match="stored and compared, not run"):
        result(update(text), MemoryView({"w": torch.zeros(2)}, {}))


def test_a_tokenizer_that_does_not_fit_is_refused(llama, text):
    files = {e.path: llama.file(e.path) for e in llama.files()}
    files["tokenizer.json"] = files["tokenizer.json"].replace(b'"w36": 62', b'"w36": 9062')
    assert b"9062" in files["tokenizer.json"]
    with pytest.raises(VocabularyMismatch, match="up to 9062"):
        result(update(text), MemoryView({n: llama.tensor(n) for n in llama.names()}, files))


# --- plans, curves ---


def test_a_plan_counts_without_reading_a_tensor(llama, text):
    llama.reads.clear()
    full, expand, lora = (update(text, **m).plan(llama) for m in ({}, {"expand": 1, "where": "1"}, {"adapter": "lora:2"}))
    assert llama.reads == []
    total = sum(math.prod(llama.entry(n).shape) for n in llama.names())
    assert full.trainable == total
    assert full.touches == llama.names()
    block = sum(math.prod(llama.entry(n).shape) for n in llama.names() if "layers.1." in n)
    assert expand.trainable == block
    assert {n.split(".")[2] for n in expand.touches} == {"2", "3"}
    written = [c for c in update(text, adapter="lora:2", steps=1).apply(llama, MemoryRun()) if isinstance(c, SetTensor)]
    assert lora.trainable == sum(c.data.numel() for c in written)
    assert full.details["tokens"] == 12 * 4 * 12
    assert full.memory > lora.memory > 0


def test_a_loss_curve_keeps_at_most_a_hundred_points():
    assert curve([2.0, 1.0]) == ((1, 2.0), (2, 1.0))
    long = curve([float(i) for i in range(1234)])
    assert len(long) <= 100
    assert long[0] == (13, 6.0)
    assert long[-1][0] == 1234
    assert curve([]) == ()


@pytest.mark.material
@pytest.mark.slow
def test_a_real_model_learns_a_book_and_self_replay_keeps_its_stories(material):
    view = MemoryView.of(material / "models" / "stories260k")
    story = (material / "data" / "tinystories" / "sample.txt").read_text()
    core = load_core_tokenizer(view)
    ids = (core.encode(part.strip(), add_special_tokens=False).ids for part in story.split("<|endoftext|>") if part.strip())
    stories = [torch.tensor([[1, *i]]) for i in ids]

    def old_loss(v):
        module = load_model(v)
        return sum(mean_loss(module, s) for s in stories) / len(stories)

    growth = {}
    for replay in ((), ("self:0.5",)):
        op = Update(data=str(material / "data" / "oz" / "oz-train.txt"), steps=60, replay=replay)
        run = MemoryRun()
        after = result(op, view, run)
        check = op.check(view, after, run)
        assert check.values["perplexity_after"] < 0.5 * check.values["perplexity_before"]
        growth[replay] = math.exp(old_loss(after) - old_loss(view))
    assert growth[()] > 1.25  # the default gate refuses from 1.2 on
    assert growth["self:0.5",] < 1.15
