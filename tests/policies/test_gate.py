"""The gate: numbers in, a verdict and sentences out."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc.ops.evaluate.flips import Counts, FlipReport, report
from mlc.policies.documents import parse_toml
from mlc.policies.facts import Comparison, Facts, QueryResult, SuiteFacts, read_recorded
from mlc.policies.gate import binomial_worse, failures, judge, summary, waive
from mlc.policies.rules.load import BUILT_IN, load_files, load_rules
from mlc.registry.errors import BadRecipe
from mlc.registry.records import RuleOutcome, Waiver


def rules_of(*texts: str):
    return load_rules(parse_toml("".join(f'[[rule]]\nid = "r{i}"\n{text}\n' for i, text in enumerate(texts)), "p.toml"))


def flips(n: int, right: int, negative: int, positive: int) -> FlipReport:
    return report(Counts(right - negative, negative, positive, n - right - positive, negative + positive))


def suite(name: str = "facts", kind: str = "cloze", *, chance: float = 0.0, **pair) -> SuiteFacts:
    found = flips(**pair)
    compared = Comparison({"accuracy": found.acc_a}, found)
    return SuiteFacts(name, kind, found.n, {"accuracy": found.acc_b}, chance, {"parent": compared})


def text(name: str, before: float | None, after: float | None) -> SuiteFacts:
    return SuiteFacts(name, "perplexity", 5, {"perplexity": after}, 0.0, {"parent": Comparison({"perplexity": before})})


def only(rule: str, facts: Facts) -> RuleOutcome:
    outcomes = judge(rules_of(rule), facts).rules
    assert len(outcomes) == 1, outcomes
    return outcomes[0]


FLIP_RULE = 'metric = "flips.nfr_upper95"\nmax = 0.02\nmin_examples = 200'
DROP_RULE = 'metric = "suite.*.accuracy"\ndrop_max = 0.0\ntest = "mcnemar"'


# --- sentences and outcomes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "facts", "result", "sentence"),
    [
        (
            FLIP_RULE,
            Facts("update", suites=(suite("blimp", n=2010, right=1400, negative=312, positive=100),)),
            "fail",
            "negative flips on blimp: 312 of 2,010 (15.5 %, upper bound 16.9 %) is over 2 %",
        ),
        (
            FLIP_RULE,
            Facts("update", suites=(suite(n=1000, right=900, negative=10, positive=5),)),
            "pass",
            "negative flips on facts: 10 of 1,000 (1 %, upper bound 1.69 %) is within 2 %",
        ),
        (
            DROP_RULE,
            Facts("update", suites=(suite(n=1000, right=841, negative=130, positive=4),)),
            "fail",
            "accuracy of facts went from 84.1 % to 71.5 % (p 6.1e-34): a fall that chance does not explain at 0.05",
        ),
        (
            DROP_RULE,
            Facts("update", suites=(suite(n=1000, right=527, negative=80, positive=75),)),
            "pass",
            "accuracy of facts went from 52.7 % to 52.2 % (p 0.37): no significant fall",
        ),
        (
            'metric = "suite.*.perplexity"\nratio_max = 1.2',
            Facts("update", suites=(text("tinystories", 5.8, 10.3),)),
            "fail",
            "perplexity of tinystories went from 5.8 to 10.3 (1.78 times), over 1.2 times",
        ),
        (
            'metric = "suite.oz.perplexity"\nmax = 20',
            Facts("update", suites=(text("oz", 5.8, 10.3),)),
            "pass",
            "perplexity of oz is 10.3, within 20",
        ),
        (
            'metric = "check.landed"\nmin = 1',
            Facts("edit", check={"landed": False}),
            "fail",
            "check.landed is 0, under 1",
        ),
        (
            'metric = "check.deep.share"\nmax = 0.5',
            Facts("edit", check={"deep": {"share": 0.25}}),
            "pass",
            "check.deep.share is 0.25, within 0.5",
        ),
        (
            'metric = "delta.rel_l2"\nmax = 0.05\naction = "warn"',
            Facts("update", delta={"rel_l2": 0.061}),
            "warn",
            "the relative weight change is 0.061, over 0.05",
        ),
        (
            'metric = "drift.angle"\nmax = 0.05',
            Facts("update"),
            "skipped",
            "not judged: this commit has no drift.angle",
        ),
        ('sql = "select 1"', Facts("update", queries={"r0": QueryResult(0)}), "pass", "the query returned no row"),
        (
            'sql = "select 1"',
            Facts("update", queries={"r0": QueryResult(2, "('x',)")}),
            "fail",
            "the query returned 2 rows, the first ('x',)",
        ),
        ('sql = "select 1"', Facts("update"), "skipped", "not judged: the query was not run"),
    ],
)
def test_an_outcome_is_a_sentence(rule, facts, result, sentence):
    outcome = only(rule, facts)
    assert (outcome.outcome, outcome.sentence) == (result, sentence)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ['metric = "suite.*.perplexity"\nratio_max = 1.2', 'metric = "suite.*.perplexity"\nmax = 1e9'])
def test_a_number_that_is_not_finite_fails_whatever_the_limit(value, rule):
    outcome = only(rule, Facts("update", suites=(text("oz", 5.0, value),)))
    assert (outcome.outcome, outcome.got) == ("fail", None)
    assert outcome.sentence == "perplexity of oz is not a finite number"


def test_words_and_holes_in_a_check_fail_too():
    assert only('metric = "check.score"\nmax = 1', Facts("edit", check={"score": None})).outcome == "fail"
    assert only('metric = "check.score"\nmax = 1', Facts("edit", check={"score": "good"})).outcome == "fail"


def test_a_parent_without_a_finite_number_cannot_be_compared_with():
    outcome = only('metric = "suite.*.perplexity"\nratio_max = 1.2', Facts("update", suites=(text("oz", None, 5.0),)))
    assert outcome.outcome == "skipped"
    assert "was not a finite number before" in outcome.sentence


def test_a_ratio_to_a_negative_number_means_nothing_and_is_said():
    found = SuiteFacts("facts", "cloze", 9, {"logprob": -3.0}, 0.0, {"parent": Comparison({"logprob": -4.0})})
    outcome = only('metric = "suite.*.logprob"\nratio_max = 1.2', Facts("update", suites=(found,)))
    assert (outcome.outcome, outcome.sentence) == ("fail", "logprob of facts has no ratio: it was -4 before")


# --- what is judged --------------------------------------------------------------------------------------


def test_a_rule_speaks_once_per_suite_that_it_fits_and_globs_may_exclude():
    facts = Facts(
        "update", suites=(suite("a", n=300, right=200, negative=0, positive=0), suite("b", n=300, right=200, negative=90, positive=0))
    )

    everywhere = judge(rules_of(FLIP_RULE), facts)
    assert [(o.suite, o.outcome) for o in everywhere.rules] == [("a", "pass"), ("b", "fail")]
    assert everywhere.outcome == "refused"

    assert judge(rules_of(FLIP_RULE + '\nsuite = ["*", "!b"]'), facts).outcome == "accepted"
    assert judge(rules_of(FLIP_RULE + '\nsuite = "!b"'), facts).outcome == "accepted"
    named = judge(rules_of('metric = "suite.b.accuracy"\ndrop_max = 0.1'), facts)
    assert [(o.suite, o.outcome) for o in named.rules] == [("b", "fail")]


def test_suites_without_right_and_wrong_are_passed_over_in_silence_unless_there_are_no_others():
    facts = Facts("update", suites=(text("oz", 5, 5), suite(n=300, right=200, negative=0, positive=0)))
    assert [o.suite for o in judge(rules_of(FLIP_RULE), facts).rules] == ["facts"]

    alone = only(FLIP_RULE, Facts("update", suites=(text("oz", 5, 5),)))
    assert (alone.outcome, alone.sentence) == ("skipped", "not judged: oz has no right and wrong answers")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts("update"), "no suite was measured"),
        (Facts("update", suites=(text("oz", 5, 5),)), "no suite measured here fits blimp"),
        (Facts("update", suites=(SuiteFacts("blimp", "pairs", 9, {"accuracy": 1.0}),)), "blimp was not measured on parent"),
        (
            Facts("update", suites=(SuiteFacts("blimp", "pairs", 9, {"accuracy": 1.0}),), missing={"parent": "it is gone"}),
            "it is gone",
        ),
    ],
)
def test_a_rule_without_data_is_skipped_and_says_why(facts, reason):
    outcome = only(FLIP_RULE + '\nsuite = "blimp"', facts)
    assert outcome.outcome == "skipped"
    assert reason in outcome.sentence


def test_a_condition_decides_whether_a_rule_applies():
    rule = 'metric = "check.landed"\nmin = 1\nwhen = "op == \'edit\'"'
    assert only(rule, Facts("edit.memit", check={"landed": False})).outcome == "fail"
    skipped = only(rule, Facts("update", check={}))
    assert (skipped.outcome, skipped.sentence) == ("skipped", "not judged: applies only when op == 'edit'")


def test_a_rule_may_compare_with_another_version_than_the_parent():
    champion = Comparison({"perplexity": 2.0})
    facts = Facts("update", suites=(SuiteFacts("oz", "perplexity", 1, {"perplexity": 5.0}, 0.0, {"@champion": champion}),))
    assert only('metric = "suite.*.perplexity"\nratio_max = 1.2\nagainst = "@champion"', facts).outcome == "fail"


def test_slices_are_judged_one_by_one():
    slices = {"island": flips(n=100, right=90, negative=60, positive=0), "verbs": flips(n=100, right=90, negative=0, positive=0)}
    both = flips(n=200, right=180, negative=60, positive=0)
    found = SuiteFacts("blimp", "pairs", 200, {"accuracy": both.acc_b}, 0.5, {"parent": Comparison({"accuracy": 0.9}, both, slices)})

    outcomes = judge(rules_of('metric = "flips.nfr"\nmax = 0.3\nslice = "*"'), Facts("update", suites=(found,))).rules

    assert [(o.suite, o.outcome) for o in outcomes] == [("blimp[island]", "fail"), ("blimp[verbs]", "pass")]
    assert (
        only('metric = "flips.nfr"\nmax = 0.3\nslice = "x*"', Facts("update", suites=(found,))).sentence == "not judged: no slice fits x*"
    )


# --- few examples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_few", "result"), [("warn", "warn"), ("block", "fail"), ("pass", "pass")])
def test_with_too_few_examples_the_rule_does_what_on_few_says(on_few, result):
    facts = Facts("update", suites=(suite(n=12, right=10, negative=0, positive=0),))
    outcome = only(FLIP_RULE + f'\non_few = "{on_few}"', facts)
    assert outcome.outcome == result
    assert outcome.sentence.startswith("negative flips on facts: 12 examples, the rule wants 200: too few")


def test_few_examples_are_enough_to_show_that_a_version_is_over_the_limit():
    facts = Facts("update", suites=(suite(n=12, right=10, negative=9, positive=0),))
    outcome = only(FLIP_RULE, facts)
    assert outcome.outcome == "fail"
    assert "9 of 12" in outcome.sentence


# --- tests of significance -------------------------------------------------------------------------------


def test_alpha_holds_for_all_suites_of_a_rule_together():
    # p of one suite is 0.0287: significant alone, not as the best of three.
    bad = {"n": 300, "right": 200, "negative": 14, "positive": 5}
    fine = {"n": 300, "right": 200, "negative": 0, "positive": 0}

    alone = only(DROP_RULE, Facts("update", suites=(suite("a", **bad),)))
    assert alone.outcome == "fail"
    assert alone.p == pytest.approx(0.0318, abs=1e-4)

    three = judge(rules_of(DROP_RULE), Facts("update", suites=(suite("a", **bad), suite("b", **fine), suite("c", **fine)))).rules
    assert [o.outcome for o in three] == ["pass", "pass", "pass"]
    assert three[0].p == pytest.approx(3 * 0.0318, abs=3e-4)


def test_a_significant_fall_within_what_is_allowed_passes():
    facts = Facts("update", suites=(suite(n=1000, right=900, negative=20, positive=2),))
    assert only(DROP_RULE, facts).outcome == "fail"
    assert only(DROP_RULE.replace("drop_max = 0.0", "drop_max = 0.02"), facts).outcome == "pass"


def test_a_drop_rule_without_a_test_is_plain_arithmetic():
    facts = Facts("update", suites=(suite(n=100, right=90, negative=3, positive=1),))
    assert only('metric = "suite.*.accuracy"\ndrop_max = 0.01', facts).outcome == "fail"
    assert only('metric = "suite.*.accuracy"\ndrop_max = 0.03', facts).outcome == "pass"


def test_the_binomial_test_needs_no_pairs():
    found = SuiteFacts("facts", "cloze", 100, {"accuracy": 0.7}, 0.0, {"parent": Comparison({"accuracy": 0.9})})
    outcome = only('metric = "suite.*.accuracy"\ndrop_max = 0.0\ntest = "binomial"', Facts("update", suites=(found,)))
    assert outcome.outcome == "fail"
    assert outcome.p == pytest.approx(binomial_worse(70, 100, 0.9))
    unpaired = only(DROP_RULE, Facts("update", suites=(found,)))
    assert (unpaired.outcome, unpaired.sentence) == ("skipped", "not judged on facts: facts has no paired answers to test")


@pytest.mark.parametrize(("k", "n", "p"), [(70, 100, 0.9), (0, 10, 0.5), (10, 10, 0.5), (5, 10, 1.0), (3, 10, 0.0), (49_900, 100_000, 0.5)])
def test_the_binomial_tail_agrees_with_scipy(k, n, p):
    stats = pytest.importorskip("scipy.stats")
    assert binomial_worse(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-9, abs=1e-300)


# --- the decision ----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([("block", 0), ("block", 2), ("warn", 0), ("warn", 2)]), max_size=5))
def test_a_candidate_is_refused_exactly_when_a_blocking_rule_fails(drawn):
    rules = rules_of(*(f'metric = "check.x"\nmin = {limit}\naction = "{action}"' for action, limit in drawn))
    verdict = judge(rules, Facts("update", check={"x": 1}))
    assert (verdict.outcome == "refused") == (("block", 2) in drawn)
    assert len(verdict.rules) == len(drawn)


def test_waiving_every_failed_rule_accepts_and_less_does_not():
    verdict = judge(rules_of('metric = "check.x"\nmin = 2', 'metric = "check.x"\nmin = 3'), Facts("update", check={"x": 1}))
    first, second = (Waiver(name, "because", "me", "2030-01-01T00:00:00.000000Z") for name in ("r0", "r1"))

    half = waive(verdict, [first])
    assert (half.outcome, [o.outcome for o in half.rules]) == ("refused", ["waived", "fail"])
    assert summary(half) == "rule r1: check.x is 1, under 3"
    assert summary(verdict) == "rule r0: check.x is 1, under 2 (and 1 more)"

    whole = waive(half, [second])
    assert (whole.outcome, whole.waivers) == ("accepted", (first, second))
    assert failures(whole) == ()


# --- the built-in policy ---------------------------------------------------------------------------------


def built_in(facts: Facts) -> dict[tuple[str, str | None], str]:
    return {(o.rule, o.suite): o.outcome for o in judge(load_files([BUILT_IN])[0], facts).rules}


def test_flips_of_a_model_that_guesses_are_not_held_against_its_update():
    # 8 % of a forced choice flips between two runs of one recipe when the model is near chance.
    near_chance = suite("blimp", "pairs", chance=0.5, n=2010, right=1060, negative=165, positive=150)
    assert built_in(Facts("update", suites=(near_chance,)))["negative-flips", "blimp"] == "skipped"
    assert built_in(Facts("update", suites=(near_chance,)))["tested-accuracy", "blimp"] == "pass"

    knows = suite("blimp", "pairs", chance=0.5, n=2010, right=1700, negative=165, positive=150)
    assert built_in(Facts("update", suites=(knows,)))["negative-flips", "blimp"] == "fail"

    free_answers = suite("facts", "cloze", n=2010, right=1060, negative=165, positive=150)
    assert built_in(Facts("update", suites=(free_answers,)))["negative-flips", "facts"] == "fail"


def test_a_model_near_chance_that_gets_significantly_worse_is_still_refused():
    worse = suite("blimp", "pairs", chance=0.5, n=2010, right=1060, negative=220, positive=150)
    assert built_in(Facts("update", suites=(worse,)))["tested-accuracy", "blimp"] == "fail"


@pytest.mark.parametrize(
    ("chance", "accuracy", "guessed"),
    [(0.5, 0.527, 0.8975), (0.5, 2 / 3, 0.5), (0.25, 0.4, 0.5), (0.0, 0.1, 0.0), (0.5, 0.4, 1.0), (0.5, 1.0, 0.0)],
)
def test_the_share_of_right_answers_that_luck_explains(chance, accuracy, guessed):
    facts = SuiteFacts("x", "choice", 1, {}, chance, {"parent": Comparison({"accuracy": accuracy})})
    assert facts.guessed("parent") == pytest.approx(guessed, abs=1e-4)
    assert facts.guessed("@champion") is None


def test_unlearning_and_editing_have_rules_of_their_own():
    assert built_in(Facts("unlearn.ssd", check={"forget_after": 0.2}))["forget-recall", None] == "fail"
    assert built_in(Facts("unlearn.ssd", check={"forget_after": 0.05}))["forget-recall", None] == "pass"
    assert built_in(Facts("edit.memit", check={"landed": True}))["edit-landed", None] == "pass"
    assert built_in(Facts("update", check={"landed": False}))["edit-landed", None] == "skipped"


def test_a_model_that_answers_with_no_number_is_refused_whatever_its_accuracy():
    broken = SuiteFacts("facts", "cloze", 300, {"accuracy": 0.0, "logprob": None}, 0.0, {"parent": Comparison({"accuracy": 0.0})})
    assert built_in(Facts("update", suites=(broken,)))["finite-answers", "facts"] == "fail"


# --- facts by hand ---------------------------------------------------------------------------------------


def test_facts_written_by_hand_are_judged_like_measured_ones(tmp_path):
    path = tmp_path / "facts.json"
    counts = {"both_right": 800, "negative": 100, "positive": 10, "both_wrong": 90, "churned": 110}
    entry = {"name": "facts", "kind": "cloze", "n": 1000, "after": {"accuracy": 0.81}}
    entry["against"] = {"parent": {"before": {"accuracy": 0.9}, "flips": counts}}
    path.write_text(json.dumps({"op": "update", "suites": [entry], "check": {"landed": True}}))

    facts = read_recorded(path)

    assert facts.suites[0].against["parent"].flips.negative_flips == 100
    assert only(FLIP_RULE, facts).outcome == "fail"


@pytest.mark.parametrize("text", ["[]", '{"op": 1, "x": 2}', '{"op": "update", "suites": [{}]}', "{", ""])
def test_facts_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(BadRecipe, match=r"f\.json holds no facts"):
        read_recorded(tmp_path / "f.json")


# --- noise and numbers of examples -----------------------------------------------------------------------


def with_twin(found: FlipReport, twin: FlipReport | None) -> Facts:
    against = {"parent": Comparison({"accuracy": found.acc_a}, found)} | ({"twin": Comparison({}, twin)} if twin else {})
    return Facts("update", suites=(SuiteFacts("blimp", "pairs", found.n, {"accuracy": found.acc_b}, 0.5, against),))


FLOOR_RULE = 'metric = "flips.nfr_lower95"\nfloor = "twin"\nmax = 0.01'


@pytest.mark.parametrize(("negative", "result"), [(160, "pass"), (260, "fail")])
def test_flips_are_judged_above_what_two_seeds_of_one_recipe_differ_by(negative, result):
    facts = with_twin(flips(2000, 1100, negative, 150), flips(2000, 1100, 150, 130))
    outcome = only(FLOOR_RULE, facts)
    assert outcome.outcome == result
    assert "less the 7 % between two seeds" in outcome.sentence


def test_without_a_second_seed_a_floor_is_not_guessed():
    outcome = only(FLOOR_RULE, with_twin(flips(2000, 1100, 260, 150), None))
    assert outcome.outcome == "skipped"
    assert "seed" in outcome.sentence


BLIND_RULE = DROP_RULE + "\ndetect = 0.01\non_few = 'warn'"


def test_a_test_that_could_not_have_found_the_fall_says_how_many_examples_could():
    outcome = only(BLIND_RULE, Facts("update", suites=(suite(n=2000, right=1600, negative=25, positive=20),)))
    assert outcome.outcome == "warn"
    assert "to find a fall of 1 % with chance 0.95" in outcome.sentence
    assert "examples are needed, not 2,000" in outcome.sentence


def test_a_test_that_would_have_found_the_fall_passes_in_silence():
    outcome = only(BLIND_RULE, Facts("update", suites=(suite(n=2000, right=1600, negative=4, positive=4),)))
    assert outcome.outcome == "pass"
    assert "needed" not in outcome.sentence


def test_too_few_examples_come_with_the_number_that_would_do():
    outcome = only(FLIP_RULE, Facts("update", suites=(suite(n=100, right=90, negative=0, positive=0),)))
    assert outcome.outcome == "warn"
    assert outcome.sentence.endswith("at this rate 149 would be enough")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('metric = "flips.nfr"\nfloor = "twin"\nmin = 0.1', "a floor of noise is taken off"),
        ('metric = "flips.pfr"\nfloor = "twin"\nmax = 0.1', "a floor of noise is taken off"),
        ('metric = "suite.*.accuracy"\ndrop_max = 0.0\ndetect = 0.01', "detect belongs to"),
    ],
)
def test_options_that_mean_nothing_for_a_rule_are_refused(text, complaint):
    with pytest.raises(BadRecipe, match=complaint):
        rules_of(text)


def test_harmless_updates_are_refused_at_most_as_often_as_alpha_and_a_planted_fall_is_found():
    """A small share of `tests/benchmarks/gates.py`: 400 simulated verdicts on each side, bounds three deviations wide."""
    import random

    chance, rule = random.Random(7), rules_of(DROP_RULE)

    def refused(negative: float, positive: float) -> bool:
        draws = [chance.random() for _ in range(2000)]
        b, c = sum(d < negative for d in draws), sum(negative <= d < negative + positive for d in draws)
        return judge(rule, Facts("update", suites=(suite(n=2000, right=1600, negative=b, positive=c),))).outcome == "refused"

    assert sum(refused(0.01, 0.01) for _ in range(400)) <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)
    assert sum(refused(0.012, 0.002) for _ in range(400)) >= 400 * 0.95 - 3 * math.sqrt(400 * 0.05 * 0.95)
