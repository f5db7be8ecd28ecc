"""The order test: ranks and p-values against known ones, uniform under the null, and a toy run whose order can be read back."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from mlc.ops.data.mixing import Mixture, Source
from mlc.ops.data.stream import read_stream, write_stream
from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.engine.documents import logits_of
from mlc.ops.engine.local import language_loss, token_losses
from mlc.ops.evaluate.provenance import correlation, course, lower_tail, order_test, ranks, require_same_tokenizer, row_losses, trained_rows
from mlc.ops.models import load_model
from mlc.ops.update.train import Update
from mlc.registry.errors import BadInputFile, BadParameter, CheckFailed, Incompatible
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

# --- the statistic ---


def test_ties_share_the_mean_of_their_ranks():
    assert ranks([3.0, 1.0, 3.0, 2.0, 3.0]) == [4.0, 1.0, 4.0, 2.0, 4.0]
    assert ranks([5.0, 5.0]) == [1.5, 1.5]


def test_rho_and_p_are_those_of_the_textbooks():
    # Spearman with ties, by hand: ranks (1, 2.5, 2.5, 4, 5) and (1, 3, 2, 4.5, 4.5).
    rho = correlation(ranks([1, 2, 2, 3, 4]), ranks([10, 30, 20, 40, 40]))
    assert rho == pytest.approx((1 * 1 + 2.5 * 3 + 2.5 * 2 + 4 * 4.5 + 5 * 4.5 - 45) / 9.5)
    # r = -0.6, n = 10: t = -2.1213 with 8 degrees of freedom, one-sided p 0.03335.
    assert lower_tail(-0.6, 10) == pytest.approx(0.033343, abs=2e-5)
    assert lower_tail(0.6, 10) == pytest.approx(1 - 0.033343, abs=2e-5)
    assert lower_tail(0.0, 10) == pytest.approx(0.5)
    assert (lower_tail(-1.0, 10), lower_tail(1.0, 10)) == (0.0, 1.0)


def test_it_agrees_with_scipy_where_there_is_one():
    stats = pytest.importorskip("scipy.stats")
    generator = random.Random(0)
    x = [generator.randrange(12) for _ in range(60)]
    y = [v * 0.05 + generator.gauss(0, 1) for v in x]
    found, known = order_test(x, [-v for v in y], permutations=99), stats.spearmanr(x, [-v for v in y], alternative="less")
    assert found.rho == pytest.approx(known.statistic, abs=1e-12)
    assert found.p == pytest.approx(known.pvalue, rel=1e-9)


def test_p_is_uniform_over_random_orders():
    generator = random.Random(1)
    differences = [generator.expovariate(1) for _ in range(80)]
    found = []
    for _ in range(200):
        steps = list(range(80))
        generator.shuffle(steps)
        found.append(order_test([s // 4 for s in steps], differences, permutations=1).p)
    found.sort()
    gap = max(max(abs(p - i / 200), abs(p - (i + 1) / 200)) for i, p in enumerate(found))
    assert gap < 1.63 / math.sqrt(200)  # Kolmogorov and Smirnov, p > 0.01


def test_both_p_values_agree_and_the_permutations_have_a_floor():
    generator = random.Random(2)
    differences = [generator.gauss(0, 1) - 0.01 * step for step in range(100)]
    found = order_test(range(100), differences, permutations=4999)
    assert found.p == pytest.approx(found.p_permutation, rel=0.5, abs=2e-3)
    sure = order_test(range(100), [-float(step) for step in range(100)], permutations=999)
    assert sure.rho == -1
    assert sure.p_permutation == 1 / 1000
    assert order_test(range(100), differences, permutations=500) == order_test(range(100), differences, permutations=500)


def test_nothing_is_told_from_equal_losses_or_from_a_handful_of_rows():
    same = order_test(range(50), [0.0] * 50)
    assert (same.rho, same.p, same.p_permutation) == (0.0, 1.0, 1.0)
    assert order_test([3] * 50, [float(i) for i in range(50)]).p == 1.0
    with pytest.raises(BadParameter, match="too few"):
        order_test(range(19), [0.0] * 19)


def test_the_course_is_cut_into_tenths_in_the_order_of_the_run():
    parts = course([step // 2 for step in range(40)], [float(step) for step in range(40)])
    assert [part["rows"] for part in parts] == [4] * 10
    assert (parts[0]["first_step"], parts[-1]["last_step"], parts[0]["difference"]) == (1, 20, 1.5)


# --- a toy: random sequences, read once ---

ROWS, LENGTH, VOCABULARY = 1000, 20, 200


def trained(rows, seed, *, steps=100, lr=3e-3, module=None):
    """A small Llama after one epoch of `rows` in the order of `seed`, rate held to the end; and what it read."""
    import transformers as tf

    if module is None:
        torch.manual_seed(0)
        config = tf.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        module = tf.LlamaForCausalLM(config)
    feed = Mixture([Source("data", rows, 1.0)], batch=10, seed=seed)
    settings = TrainSettings(steps=steps, lr=lr, warmup=5, decay="constant", save_every=0, seed=seed)
    LocalEngine().train(module, feed, settings, MemoryRun(), objective=language_loss)
    return module, read_stream(write_stream(feed, steps))


def losses(module, rows):
    from mlc.ops.engine.local import token_losses

    with torch.no_grad():
        return token_losses(module(input_ids=rows, use_cache=False).logits, rows).double().mean(1).tolist()


def test_the_order_of_a_run_is_found_in_its_model_and_in_no_other():
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    own, stream = trained(rows, 0)
    twin, other = trained(rows, 1)
    steps = stream.last_seen(0)
    assert sorted(steps) == list(range(ROWS))
    assert other.order != stream.order
    times = [steps[row] for row in range(ROWS)]
    difference = [a - b for a, b in zip(losses(own, rows), losses(twin, rows), strict=True)]
    assert order_test(times, difference, permutations=99).p < 1e-6
    alone = order_test(times, losses(own, rows), permutations=99)
    assert alone.p < 1e-3  # also without a reference
    assert order_test(times, losses(twin, rows), permutations=99).p > 0.01


# --- rows of a commit ---


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama")))


@pytest.fixture
def text(tmp_path):
    generator = random.Random(0)
    path = tmp_path / "new.txt"
    path.write_text(" ".join(generator.choice(WORDS) for _ in range(1500)))
    return path


def ran(view, op):
    run = MemoryRun()
    after = view.after(op.apply(view, run))
    return after, read_stream(next(data for (kind, _), data in run.artifacts.items() if kind == "stream"))


@pytest.mark.parametrize("more", [{}, {"holdout": 0.2, "steps": 60}])
def test_the_rows_of_a_run_are_made_again_from_its_file(view, text, more):
    op = Update(**{"data": str(text), "steps": 20, "batch": 4, "seq_len": 12, **more})
    after, stream = ran(view, op)
    found = trained_rows(op, view, stream, str(text))
    assert len(found.rows) == (stream.sources[0].rows if more else 80)
    assert found.times == (1 if not more else 3)
    assert list(found.steps) == sorted(found.steps)
    assert len(trained_rows(op, view, stream, str(text), limit=30).rows) == 30
    assert len(row_losses(after, found.rows)) == len(found.rows)


def test_documents_of_a_row_are_scored_apart_as_training_read_them(view, tmp_path):
    generator = random.Random(1)
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(generator.choice(WORDS) for _ in range(4))}) + "\n" for _ in range(120)))
    op = Update(data=str(path), steps=10, batch=4, seq_len=12)
    after, stream = ran(view, op)
    found = trained_rows(op, view, stream, str(path))
    assert found.begin is not None
    at = next(i for i, row in enumerate(found.rows.tolist()) if found.begin in row[1:])
    row = found.rows[at : at + 1]
    second = row[0].tolist().index(found.begin, 1)
    other = row.clone()
    other[0, 1 : second - 1] = row[0, 1 : second - 1].flip(0)  # the first document otherwise
    module = load_model(after, dtype=torch.float32).eval()
    losses = [token_losses(logits_of(module, ids, (found.begin,)), ids)[0].tolist() for ids in (row, other)]
    assert row_losses(after, row, begin=found.begin) == pytest.approx([sum(losses[0]) / len(losses[0])], abs=1e-6)
    assert losses[0][second:] == pytest.approx(losses[1][second:], abs=1e-5)
    assert row_losses(after, row) != pytest.approx(row_losses(after, row, begin=found.begin), abs=1e-6)


def test_rows_that_cannot_be_told_are_refused(view, text, tmp_path):
    op = Update(data=str(text), steps=20, batch=4, seq_len=12)
    _, stream = ran(view, op)
    (tmp_path / "other.txt").write_text(text.read_text() + " river")
    with pytest.raises(BadInputFile, match="was not read by that run"):
        trained_rows(op, view, stream, str(tmp_path / "other.txt"))
    with pytest.raises(CheckFailed, match="not those that the run read"):
        trained_rows(Update(data=str(text), holdout=0.2), view, stream, str(text))
    few = Update(data=str(text), steps=2, batch=4, seq_len=12)
    with pytest.raises(BadParameter, match="8 rows"):
        trained_rows(few, view, ran(view, few)[1], str(text))


def test_a_version_that_reads_otherwise_is_refused(view, tmp_path):
    other = MemoryView.of(tiny_model(tmp_path))
    require_same_tokenizer(view, other, "other")
    other._files["tokenizer.json"] += b" "
    with pytest.raises(Incompatible, match="another tokenizer"):
        require_same_tokenizer(view, other, "other")
