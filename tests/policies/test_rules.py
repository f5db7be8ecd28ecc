"""Policy files: what a rule may say, what it reads as, and where a mistake stands."""

from __future__ import annotations

import json

import pytest

from mlc.policies.documents import parse_toml
from mlc.policies.rules.load import BUILT_IN, load_files, load_policy, load_rules
from mlc.policies.schemas import PolicyFile
from mlc.policies.settings import Settings
from mlc.registry.errors import BadRecipe


def rules_of(text: str):
    return load_rules(parse_toml(text, "p.toml"))


def rule(more: str):
    return rules_of(f'[[rule]]\nid = "r"\n{more}')[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            'metric = "flips.nfr_upper95"\nmax = 0.02\nmin_examples = 200\nwhen = "op == \'update\'"',
            "r: negative flips on every suite must be at most 2 % (upper 95 % bound), against the parent; when op == 'update'; "
            "with fewer than 200 examples it warns; otherwise the commit is refused.",
        ),
        (
            'metric = "suite.*.accuracy"\ndrop_max = 0\ntest = "mcnemar"\nsuite = ["*", "!blimp"]\naction = "warn"',
            "r: accuracy of every suite but blimp must not fall below that of the parent by more than chance explains "
            "(mcnemar test, alpha 0.05); otherwise there is a warning.",
        ),
        (
            'metric = "suite.oz.perplexity"\nratio_max = 1.2\nagainst = "@champion"',
            "r: perplexity of oz must be at most 1.2 times that of @champion; otherwise the commit is refused.",
        ),
        ('metric = "check.landed"\nmin = 1', "r: check.landed must be at least 1; otherwise the commit is refused."),
        ('metric = "delta.rel_l2"\nmax = 0.05', "r: the relative weight change must be at most 0.05; otherwise the commit is refused."),
        ('sql = "select 1"', "r: its query must return no row; otherwise the commit is refused."),
        (
            'metric = "flips.nfr"\nmax = 0.1\nslice = "island*"\nsuite = "blimp"',
            "r: negative flips on each slice of blimp must be at most 10 %, against the parent; otherwise the commit is refused.",
        ),
    ],
)
def test_a_rule_reads_as_one_sentence(text, sentence):
    assert rule(text).explain() == sentence


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('metrik = "flips.nfr"\nmax = 1', "line 3, column 1: unknown key 'metrik'", "did you mean 'metric'?"),
        ('metric = "flip.nfr"\nmax = 1', "line 3, column 1: unknown metric 'flip.nfr'", None),
        ('metric = "flips.nfr_uper95"\nmax = 1', "line 3, column 1: unknown metric 'flips.nfr_uper95'", "did you mean 'nfr_upper95'?"),
        ('metric = "delta.rel"\nmax = 1', "line 3, column 1: unknown metric 'delta.rel'", "did you mean 'rel_l2'?"),
        ('metric = "suite.accuracy"\nmax = 1', "line 3, column 1: 'suite.accuracy' names no suite", 'for example "suite.*.accuracy"'),
        ('metric = "flips.nfr"', "rule 'r' has no limit", None),
        ('metric = "flips.nfr"\nmax = 1\nmin = 0', "rule 'r' has max and min", None),
        ("max = 1", "rule 'r' needs a metric or a query, and not both", None),
        ('metric = "flips.nfr"\nsql = "select 1"', "rule 'r' needs a metric or a query, and not both", None),
        ('sql = "select 1"\nmax = 3', "line 4, column 1: an sql rule has no limit", None),
        ('metric = "flips.nfr"\nratio_max = 3', "line 4, column 1: ratio_max compares a suite's metric", None),
        ('metric = "flips.nfr"\nmax = 0.1\ntest = "mcnemar"', "line 5, column 1: a test belongs to drop_max", None),
        (
            'metric = "suite.*.perplexity"\ndrop_max = 0.1\ntest = "mcnemar"',
            "line 5, column 1: mcnemar tests right and wrong answers",
            None,
        ),
        ('metric = "check.x"\nmax = 1\nslice = "a"', "line 5, column 1: slices are judged by", None),
        ('metric = "flips.nfr"\nmax = "2 %"', "line 4, column 1: rule.max: input should be a valid number (found '2 %')", None),
        ('metric = "flips.nfr"\nmax = nan', "line 4, column 1: rule.max: input should be a finite number", None),
        ('metric = "flips.nfr"\nmax = 1\nwhen = "op = 3"', "line 5, column 1: when: not a condition", None),
        ('metric = "flips.nfr"\nmax = 1\naction = "stop"', "line 5, column 1: rule.action: input should be 'block' or 'warn'", None),
        ('metric = "flips.nfr"\nmax = 1\nalpha = 1.5', "line 5, column 1: rule.alpha: input should be less than 1", None),
        ('metric = "flips.nfr"\nmax = 1\nsuite = ["!"]', "line 5, column 1: suite: an empty name", None),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_its_place(text, message, hint):
    with pytest.raises(BadRecipe) as caught:
        rule(text)
    assert message in caught.value.message
    assert hint is None or caught.value.hint == hint


def test_a_rule_without_an_id_and_two_of_one_id_are_refused():
    with pytest.raises(BadRecipe, match="line 1, column 3: the key 'id' is missing"):
        rules_of('[[rule]]\nmetric = "flips.nfr"\nmax = 1')
    one = '[[rule]]\nid = "a"\nmetric = "flips.nfr"\nmax = 1\n'
    with pytest.raises(BadRecipe, match="line 6, column 1: the rule id 'a' is already used in this file"):
        rules_of(one + one)


def test_a_later_file_replaces_a_rule_in_its_place(tmp_path):
    template = '[[rule]]\nid = "{}"\nmetric = "flips.nfr"\nmax = {}\n'
    (tmp_path / "a.toml").write_text(template.format("x", 0.1) + template.format("y", 0.1))
    (tmp_path / "b.toml").write_text(template.format("x", 0.5))

    rules, records = load_files([tmp_path / "a.toml", tmp_path / "b.toml"])

    assert [(r.id, r.max) for r in rules] == [("x", 0.5), ("y", 0.1)]
    assert [(r.role, r.name, r.bytes) for r in records] == [
        ("policy", path.name, path.stat().st_size) for path in (tmp_path / "a.toml", tmp_path / "b.toml")
    ]


def test_the_built_in_policy_holds_where_there_is_no_file_and_nothing_where_none_is_wanted(tmp_path):
    rules, records = load_policy(Settings.default(tmp_path))
    assert [rule.id for rule in rules] == [
        "negative-flips",
        "tested-accuracy",
        "perplexity",
        "finite-answers",
        "forget-recall",
        "edit-landed",
        "other-subjects",
        "earlier-edits",
    ]
    assert records[0].name == "default.toml"

    (tmp_path / "mlc.toml").write_text("[policy]\nfiles = []")
    assert load_policy(Settings.read(tmp_path)) == ([], [])


def test_the_digest_of_a_policy_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(BUILT_IN.read_bytes())
    before = load_files([path])[1][0].digest
    path.write_bytes(BUILT_IN.read_bytes() + b"# more\n")
    assert load_files([path])[1][0].digest != before


def test_the_schema_names_every_key_and_the_example_of_the_handbook_is_valid():
    schema = json.dumps(PolicyFile.model_json_schema())
    assert all(key in schema for key in ("min_examples", "on_few", "ratio_max", "drop_max", "against"))
    example = """
    id = "negative-flips"
    metric = "flips.nfr_upper95"
    suite = "*"
    against = "parent"
    max = 0.02
    when = "op in ('update', 'merge')"
    action = "block"
    min_examples = 200
    """
    assert rule(example.partition("\n")[2].replace('id = "negative-flips"\n', "")).limit == 0.02
