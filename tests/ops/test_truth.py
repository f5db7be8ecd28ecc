"""Truth ratios, probabilities and model utility: by hand, against plain forward passes, and on TOFU's own files."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mlc.ops.evaluate.predictions import from_arrow
from mlc.ops.evaluate.runner import evaluate
from mlc.ops.evaluate.suite import load_suite
from mlc.ops.evaluate.truth import Answered, probability, ratio_metrics, truth_ratio
from mlc.ops.evaluate.utility import PER_PART, harmonic_mean, model_utility
from mlc.registry.errors import BadInputFile, BadRecipe
from mlc.tests.factories import tiny_model
from mlc.tests.ops.suites import loaded, suite, token_logprobs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loaded(tiny_model(tmp_path_factory.mktemp("models") / "llama"))


ROWS = [
    {
        "id": "one",
        "prompt": "the river is",
        "answer": "north of two",
        "paraphrased_answer": "two north",
        "perturbed_answer": ["south", "red of one"],
    },
    {"id": "two", "prompt": "a lamp", "answer": "speaks", "perturbed_answer": ["sells", "opens near the stone"]},
    {"id": "three", "prompt": "one", "answer": "blue", "paraphrased_answer": "blue", "perturbed_answer": "red"},
]


# --- formulas --------------------------------------------------------------------------------------------


def test_the_truth_ratio_of_four_answers_by_hand():
    answered = Answered(math.log(0.5), math.log(0.4), (math.log(0.1), math.log(0.2)), -1.0)
    ratio = math.sqrt(0.1 * 0.2) / 0.4  # geometric mean of the wrong ones over the paraphrase
    assert truth_ratio(answered) == pytest.approx(ratio)
    assert ratio_metrics([ratio]) == {"truth_ratio": pytest.approx(1 - ratio), "truth_ratio_forget": pytest.approx(ratio)}
    assert ratio_metrics([4.0]) == {"truth_ratio": 0.0, "truth_ratio_forget": 0.25}
    assert probability(answered, options=False) == pytest.approx(0.5)
    assert probability(answered, options=True) == pytest.approx(0.5 / 0.8)


def test_a_paraphrase_as_likely_as_the_wrong_answers_is_what_never_seeing_a_fact_looks_like():
    ratio = truth_ratio(Answered(-1.0, -2.0, (-2.0, -2.0), -1.0))
    assert ratio_metrics([ratio]) == {"truth_ratio": 0.0, "truth_ratio_forget": 1.0}


def test_what_has_no_number_leaves_no_number():
    assert truth_ratio(Answered(-1.0, -1.0, (), -1.0)) is None
    assert truth_ratio(Answered(-1.0, math.nan, (-1.0,), -1.0)) is None
    assert probability(Answered(-math.inf, -1.0, (-1.0,), -1.0), options=True) is None
    assert ratio_metrics([0.5, None]) == {"truth_ratio": None, "truth_ratio_forget": None}


def test_ratios_far_beyond_a_float_keep_their_order_and_stay_finite():
    far = [truth_ratio(Answered(-1.0, x, (y,), -1.0)) for x, y in ((-1e5, -1.0), (-1.0, -1e5))]
    assert all(map(math.isfinite, far))
    assert far[0] > 1e300
    assert 0 < far[1] < 1e-300
    assert ratio_metrics(far)["truth_ratio_forget"] == pytest.approx(0.0)


def test_utility_is_the_harmonic_mean_and_one_zero_makes_it_zero():
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.3] * 9) == pytest.approx(0.3)
    assert harmonic_mean([0.9] * 8 + [0.0]) == 0.0
    assert harmonic_mean([0.9, None]) is None
    assert harmonic_mean([]) is None
    parts = {name: dict.fromkeys((*PER_PART, "accuracy"), 0.25) for name in ("retain", "authors", "world")}
    assert model_utility(parts) == pytest.approx(0.25)


# --- scoring ---------------------------------------------------------------------------------------------


def _by_hand(given, row):
    """(per-token nats by answer text) of one row, each in a forward pass of its own."""
    count = len(row["prompt"].split())
    wrong = row["perturbed_answer"] if isinstance(row["perturbed_answer"], list) else [row["perturbed_answer"]]
    texts = [row["answer"], row.get("paraphrased_answer", row["answer"]), *wrong]
    values = [token_logprobs(given, f"{row['prompt']} {text}", count) for text in texts]
    return [sum(v) / len(v) for v in values], sum(values[0])


def test_a_truth_suite_equals_forward_passes_of_each_answer(tmp_path, llama):
    result = evaluate(None, suite(tmp_path, "truth", ROWS), **llama)
    hand = [_by_hand(llama, row) for row in ROWS]
    ratios = [math.exp(sum(means[2:]) / len(means[2:]) - means[1]) for means, _ in hand]
    rows = from_arrow(result.rows)
    assert [row.score for row in rows] == pytest.approx(ratios, rel=1e-5)
    assert [row.logprob for row in rows] == pytest.approx([total for _, total in hand], abs=1e-5)
    assert [row.correct for row in rows] == [means[0] > max(means[2:]) for means, _ in hand]
    assert result.metrics == {
        "accuracy": pytest.approx(sum(row.correct for row in rows) / 3),
        "probability": pytest.approx(sum(math.exp(means[0]) for means, _ in hand) / 3, rel=1e-5),
        "truth_ratio": pytest.approx(sum(max(0, 1 - r) for r in ratios) / 3, rel=1e-4),
        "truth_ratio_forget": pytest.approx(sum(min(r, 1 / r) for r in ratios) / 3, rel=1e-5),
    }


def test_with_options_the_probability_is_the_answers_share(tmp_path, llama):
    result = evaluate(None, suite(tmp_path, "truth", ROWS, "options = true"), **llama)
    shares = []
    for row in ROWS:
        means, _ = _by_hand(llama, row)
        kept = [math.exp(x) for x in (means[0], *means[2:])]
        shares.append(kept[0] / sum(kept))
    assert result.metrics["probability"] == pytest.approx(sum(shares) / 3, rel=1e-5)


def test_neither_order_nor_batches_change_a_number(tmp_path, llama):
    first = evaluate(None, suite(tmp_path / "a", "truth", ROWS, "rouge = true\nmax_tokens = 5"), **llama)
    for n, order in enumerate(itertools.permutations(ROWS)):
        other = suite(tmp_path / str(n), "truth", list(order), "rouge = true\nmax_tokens = 5")
        result = evaluate(None, other, batch_tokens=1 + 40 * n, **llama)
        assert result.metrics == {key: pytest.approx(value, rel=1e-5) for key, value in first.metrics.items()}
        scores = {row.example: row.score for row in from_arrow(result.rows)}
        assert scores == {row.example: pytest.approx(row.score, rel=1e-5) for row in from_arrow(first.rows)}


def test_a_row_without_wrong_answers_has_a_probability_and_no_truth_ratio(tmp_path, llama):
    rows = [*ROWS, {"id": "plain", "prompt": "the stone", "answer": "opens"}]
    result = evaluate(None, suite(tmp_path, "truth", rows), **llama)
    assert [result.metrics[key] for key in ("accuracy", "truth_ratio", "truth_ratio_forget")] == [None] * 3
    assert 0 < result.metrics["probability"] < 1
    plain = from_arrow(result.rows)[-1]
    assert (plain.correct, plain.score) == (None, None)
    with pytest.raises(BadInputFile, match="line 4: `options` needs wrong answers"):
        suite(tmp_path / "o", "truth", rows, "options = true").examples()


def test_a_broken_model_yields_no_number_and_nothing_right(tmp_path, llama):
    broken = tiny_model(tmp_path / "broken")
    given = loaded(broken)
    with torch.no_grad():
        given["model"].model.norm.weight.fill_(math.nan)
    result = evaluate(None, suite(tmp_path, "truth", ROWS, "rouge = true\nmax_tokens = 2"), **given)
    assert {key: value for key, value in result.metrics.items() if key != "rouge_l"} == {
        "accuracy": 0.0, "probability": None, "truth_ratio": None, "truth_ratio_forget": None,
    }  # fmt: skip
    assert [row.score for row in from_arrow(result.rows)] == [None] * 3


# --- utility ---------------------------------------------------------------------------------------------


def _parts(directory, rouge="rouge = true\nmax_tokens = 4\n"):
    suite(directory, "truth", ROWS, rouge, name="retain")
    suite(directory, "truth", ROWS[:2], rouge + "options = true", name="world")
    path = directory / "utility.toml"
    path.write_text('name = "utility"\nkind = "utility"\nparts = ["retain.toml", "world.toml"]\n')
    return path


def test_a_utility_suite_sums_up_its_parts(tmp_path, llama):
    whole = load_suite(_parts(tmp_path))
    result = evaluate(None, whole, **llama)
    parts = {part.name: evaluate(None, part, **llama).metrics for part in whole.parts}
    assert result.metrics == {"utility": model_utility(parts)}
    assert {row.example: row.score for row in from_arrow(result.rows)} == {
        f"{name}.{key}": parts[name][key] for name in ("retain", "world") for key in PER_PART
    }
    assert (result.n, [row.correct for row in from_arrow(result.rows)]) == (6, [None] * 6)
    assert whole.record().bytes == sum(len(part.payload) for part in whole.parts)


def test_its_digest_follows_its_parts(tmp_path):
    path = _parts(tmp_path)
    before = load_suite(path).digest
    assert load_suite(path).digest == before
    data = tmp_path / "world.jsonl"
    data.write_text(data.read_text().replace("opens", "sells"))
    assert load_suite(path).digest != before


def test_a_part_that_yields_too_little_is_refused_and_so_are_data_of_its_own(tmp_path):
    with pytest.raises(BadRecipe, match=r"retain.toml yields no probability, ROUGE-L and truth ratio \(line 3\)"):
        load_suite(_parts(tmp_path, rouge=""))
    path = _parts(tmp_path)
    path.write_text(path.read_text() + 'data = "x.jsonl"')
    with pytest.raises(BadRecipe, match="takes no 'data'"):
        load_suite(path)
    path.write_text('name = "u"\nkind = "utility"\nparts = []')
    with pytest.raises(BadRecipe, match="'parts' must be a list of texts"):
        load_suite(path)


# --- in rules ----------------------------------------------------------------------------------------------


def test_rules_may_ask_for_any_of_these_numbers(repo, tmp_path):
    from mlc.policies import lifecycle
    from mlc.registry.errors import GateRefused
    from mlc.tests.policies.operations import Scale

    lifecycle.import_model(repo, tiny_model(tmp_path / "model"), author="t")
    _parts(repo.root / "suites")
    suite(repo.root / "suites", "generate", [{"prompt": "the river", "reference": "is red"}], "max_tokens = 3\n", name="written")
    (repo.root / "mlc.toml").write_text('[eval]\nsuites = ["suites/*.toml"]\n')
    rules = {"suite.retain.truth_ratio_forget": "min", "suite.utility.utility": "min", "suite.written.rouge_l": "min", "flips.ks_p": "min"}
    text = "".join(f'[[rule]]\nid = "r{n}"\nmetric = "{metric}"\n{side} = 0.0\n\n' for n, (metric, side) in enumerate(rules.items()))
    (repo.root / "policies").mkdir(exist_ok=True)
    policy = repo.root / "policies" / "rules.toml"
    policy.write_text(text)
    made = lifecycle.run(repo, Scale(factor=1.01), author="t")
    assert made.commit.metrics["retain"]["probability"] > 0
    assert set(made.commit.metrics) == {"retain", "world", "utility", "written"}
    policy.write_text(text.replace("min = 0.0", "min = 1.1"))
    with pytest.raises(GateRefused, match=r"truth ratio forget of retain is .* under 1\.1"):
        lifecycle.run(repo, Scale(factor=1.02), author="t")
    assert repo.branches()["main"] == made.commit_id


# --- real files ------------------------------------------------------------------------------------------


def _tofu(material, directory):
    """The suites of a TOFU report; the shipped copy has no perturbed retain set, so another split's file stands for it."""
    written = "rouge = true\nmax_tokens = 12\n"
    for name, data, more in (
        ("forget", "forget01_perturbed", written),
        ("retain", "forget05_perturbed", written),
        ("retain90", "retain90", ""),
        ("real_authors", "real_authors_perturbed", written + "options = true\n"),
        ("world_facts", "world_facts_perturbed", written + "options = true\n"),
    ):
        source = material / "data" / "tofu" / f"{data}.jsonl"
        text = f'name = "{name}"\nkind = "truth"\ndata = "{source}"\nfields = {{ prompt = "question" }}\n{more}'
        (directory / f"{name}.toml").write_text(text)
    (directory / "utility.toml").write_text(
        'name = "utility"\nkind = "utility"\nparts = ["retain.toml", "real_authors.toml", "world_facts.toml"]\n'
    )
    (directory / "written.toml").write_text(
        f'name = "written"\nkind = "generate"\ndata = "{material}/data/tofu/forget01.jsonl"\n'
        'fields = { prompt = "question", reference = "answer" }\nmax_tokens = 40\nstop = ["\\n"]\n'
    )
    return {name: load_suite(directory / f"{name}.toml") for name in ("forget", "retain90", "utility", "written")}


def test_tofu_loads_and_scores_end_to_end(material, tmp_path):
    from mlc.ops.evaluate.ks import forget_quality

    suites = _tofu(material, tmp_path)
    assert len(suites["forget"].examples()) == 40
    assert len(suites["utility"].examples()) == 200 + 100 + 117
    ratios = {}
    for name in ("stories260k", "stories260k-oz"):
        given = loaded(material / "models" / name)
        found = evaluate(None, suites["forget"], limit=20, **given)
        assert set(found.metrics) == {"accuracy", "probability", "truth_ratio", "truth_ratio_forget", "rouge_l"}
        assert all(0 <= value <= 1 for value in found.metrics.values())
        ratios[name] = [row.score for row in from_arrow(found.rows)]
        assert all(map(math.isfinite, ratios[name]))
    quality = forget_quality(*ratios.values())
    assert 0 < quality.p <= 1
    assert quality.exact
    utility = evaluate(None, suites["utility"], limit=12, **given)
    assert utility.n == 9
    assert 0 <= utility.metrics["utility"] < 1
    retain = evaluate(None, suites["retain90"], limit=20, **given).metrics
    assert 0 < retain["probability"] < 1
    assert retain["truth_ratio"] is None
    written = evaluate(None, suites["written"], limit=6, **given).metrics
    assert all(0 <= value <= 1 for value in written.values())
