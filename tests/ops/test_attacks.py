"""Attacks on what was forgotten: rounding by hand, relearning that leaves the model alone, leakage on a task's rows."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mlc.ops.data.items import read_items
from mlc.ops.evaluate.leakage import exact_memorisation, extraction_strength, membership, token_stats
from mlc.ops.models import load_model
from mlc.ops.unlearn.attacks import quantisation_attack, quantised, relearn, resistance, round_trip
from mlc.ops.unlearn.task import task_of
from mlc.registry.view import ModelView
from mlc.tests.factories import WORDS, tiny_model

torch.set_num_threads(1)


class Asked:
    """A tiny model with a task and two sets of records on it."""

    def __init__(self, repo, directory, family, forget, other):
        from mlc.policies import lifecycle

        made = lifecycle.import_model(repo, tiny_model(directory / "model", family), author="t")
        view: ModelView = repo.view(made.commit_id)
        self.module = load_model(view, dtype=torch.float32).eval()
        self.task = task_of(view)
        self.forget, self.other = (self.task.rows(_items(directory, n, rows)) for n, rows in (("forget", forget), ("holdout", other)))


def _items(directory, role, rows):
    path = directory / f"{role}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(path, role)


def _pairs(first, count):
    return [{"prompt": f"the {WORDS[first + i % 8]} {WORDS[i // 8]}", "answer": WORDS[(first + 3 * i) % 20]} for i in range(count)]


@pytest.fixture
def asked(repo, tmp_path):
    long = {"text": " ".join(WORDS[i % len(WORDS)] for i in range(100))}  # two rows: the window is 64
    return Asked(repo, tmp_path, "llama", [*_pairs(4, 12), long], _pairs(9, 12))


# --- rounding --------------------------------------------------------------------------------------------


def test_a_round_trip_rounds_to_the_grid_of_each_row():
    matrix = torch.tensor([[127.0, 0.4, -3.6, 1.5], [0.0, 0.0, 0.0, 0.0], [-2.54, 0.011, 0.0, 1.0]])
    assert torch.allclose(round_trip(matrix, 8), torch.tensor([[127.0, 0.0, -4.0, 2.0], [0.0] * 4, [-2.54, 0.02, 0.0, 1.0]]))


def test_four_bits_have_a_scale_for_each_group_and_the_last_may_be_short():
    matrix = torch.tensor([[7.0, 3.4, 70.0, 34.0, 0.7]])
    assert torch.allclose(round_trip(matrix, 4, group=2), torch.tensor([[7.0, 3.0, 70.0, 30.0, 0.7]]))
    assert torch.allclose(round_trip(matrix, 4), torch.tensor([[10.0, 0.0, 70.0, 30.0, 0.0]]))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_weight_is_at_most_half_a_step_away_and_twice_is_once(bits):
    matrix = torch.randn(20, 100, generator=torch.Generator().manual_seed(bits))
    once = round_trip(matrix, bits)
    step = matrix.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((once - matrix).abs() <= 0.5 * step * (1 + 1e-5)).all()
    assert torch.allclose(round_trip(once, bits), once, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_the_copy_is_rounded_and_embeddings_head_norms_and_the_model_stay(tmp_path, family):
    import transformers as tf

    directory = tiny_model(tmp_path / family, family)
    kind = json.loads((directory / "config.json").read_text())["architectures"][0]
    module = getattr(tf, kind).from_pretrained(directory)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    after = dict(quantised(module, 4).named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    kept = ("embed_tokens", "wte", "wpe", "norm", "ln_", "bias", "cls_token", "position_embeddings")
    assert moved == {name for name in before if not any(word in name for word in kept)}


def test_a_gpt2_matrix_is_rounded_along_its_outputs(tmp_path):
    import transformers as tf

    module = tf.GPT2LMHeadModel.from_pretrained(tiny_model(tmp_path / "gpt2", "gpt2"))
    weight = module.transformer.h[0].mlp.c_fc.weight  # [in, out]
    rounded = quantised(module, 8).transformer.h[0].mlp.c_fc.weight
    assert torch.allclose(rounded, round_trip(weight.T, 8).T)


def test_the_attack_says_what_is_recalled_after_each_round_trip(asked):
    found = quantisation_attack(asked.module, asked.task, asked.forget)
    assert set(found) == {"int8", "int4"}
    assert found["int8"] == asked.task.measure(quantised(asked.module, 8), asked.forget).accuracy


# --- relearning ------------------------------------------------------------------------------------------


def test_relearning_brings_the_trained_records_back_and_leaves_the_model_alone(asked):
    before = {name: p.detach().clone() for name, p in asked.module.named_parameters()}
    found = relearn(asked.module, asked.task, asked.forget, steps=24, share=1.0, lr=2e-2, before=1.0, threads=1)
    assert all(torch.equal(p, before[name]) for name, p in asked.module.named_parameters())
    assert (found["curve"][0], found["curve"][-1][0]) == ([0, asked.task.measure(asked.module, asked.forget).accuracy], 24)
    assert found["after"] >= 0.8
    assert found["recovered"] in range(1, 25)
    assert found["rest_after"] is None  # all were trained on
    assert found["records"] == 13
    json.dumps(found)


def test_relearning_twice_with_one_seed_gives_the_same_numbers(asked):
    settings = {"steps": 6, "share": 0.5, "lr": 5e-3}
    first = relearn(asked.module, asked.task, asked.forget, seed=1, **settings)
    assert relearn(asked.module, asked.task, asked.forget, seed=1, **settings) == first
    assert first["records"] == 6
    assert len(first["rest_curve"]) == len(first["curve"])


def test_the_area_is_the_mean_height_and_a_share_is_at_least_one_record(asked):
    found = relearn(asked.module, asked.task, asked.forget, steps=2, share=0.001, lr=1e-9)
    assert (found["records"], found["recovered"]) == (1, None)
    assert found["area"] == pytest.approx(found["after"])  # nothing moved: a flat curve


def test_an_attack_is_by_default_as_fast_as_unlearning_itself(asked):
    from mlc.ops.unlearn.rates import usual_rate

    weights = sum(p.numel() for p in asked.module.parameters())
    assert relearn(asked.module, asked.task, asked.forget, steps=1)["lr"] == usual_rate(weights)


def test_resistance_compares_the_steps_with_those_of_the_retrained_model():
    def found(recovered):
        return {"steps": 20, "recovered": recovered}

    assert resistance(found(9), found(19)) == 0.5
    assert resistance(found(None), found(4)) == 1.0
    assert resistance(found(0), found(None)) == pytest.approx(1 / 21)
    assert resistance(found(None), found(None)) == 1.0


# --- leakage on rows -------------------------------------------------------------------------------------


def test_the_statistics_of_rows_sum_to_the_losses_that_the_task_measures(asked):
    losses = asked.task.measure(asked.module, asked.forget).losses
    stats = token_stats(asked.task, asked.module, asked.forget)
    assert [-sum(s.logprobs) / len(s.logprobs) for s in stats] == pytest.approx(losses, abs=1e-5)
    assert len(stats) == 14  # twelve pairs and a text in two rows


def test_membership_on_rows_knows_four_attacks_and_is_a_half_against_itself(asked):
    same = membership(asked.task, asked.module, asked.forget, asked.forget)
    assert same == {"auc_loss": 0.5, "auc_zlib": 0.5, "auc_mink": 0.5, "auc_minkpp": 0.5}
    other = membership(asked.task, asked.module, asked.forget, asked.other)
    back = membership(asked.task, asked.module, asked.other, asked.forget)
    assert {key: 1 - value for key, value in other.items()} == pytest.approx(back)


def test_what_was_learned_by_heart_can_be_extracted(asked):
    optimizer = torch.optim.AdamW(asked.module.parameters(), lr=2e-2, weight_decay=0.0)
    everything = list(range(len(asked.forget)))
    before = extraction_strength(asked.task, asked.module, asked.forget)
    for _ in range(60):
        optimizer.zero_grad()
        asked.task.losses(asked.module, asked.forget, everything).mean().backward()
        optimizer.step()
    assert before < 0.5 < 0.9 < extraction_strength(asked.task, asked.module, asked.forget)
    assert exact_memorisation(asked.task, asked.module, asked.forget) > 0.9
    assert membership(asked.task, asked.module, asked.forget, asked.other)["auc_loss"] > 0.8


def test_a_classifier_is_asked_by_its_losses_alone(repo, tmp_path):
    draw = torch.Generator().manual_seed(0)
    rows = [{"image": torch.rand(8, 8, generator=draw).tolist(), "label": i % 3} for i in range(12)]
    asked = Asked(repo, tmp_path, "vit", rows[:6], rows[6:])
    found = membership(asked.task, asked.module, asked.forget, asked.other)
    assert list(found) == ["auc_loss"]
    assert 0 <= found["auc_loss"] <= 1
    assert extraction_strength(asked.task, asked.module, asked.forget) is None
    assert exact_memorisation(asked.task, asked.module, asked.forget) is None
    relearned = relearn(asked.module, asked.task, asked.forget, steps=2, share=0.5, lr=1e-3)
    assert math.isfinite(relearned["area"])
