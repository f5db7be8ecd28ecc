"""The little language of `when`: what it says, and that nothing in it can run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.policies.rules.when import BadExpression, holds, parse, uses

FACTS = {
    "op": "update",
    "method": "",
    "branch": "main",
    "suite": {"name": "blimp", "kind": "pairs", "n": 2010, "guessed": 0.9},
    "before": {"accuracy": 0.5},
    "after": {"accuracy": None},
    "check": {"landed": True, "deep": {"er": 2}},
    "params": {"expand": 0},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("op == 'update'", True),
        ("op in ('update', 'merge')", True),
        ("op not in ['update']", False),
        ("op != 'edit' and branch == 'main'", True),
        ("not (op == 'edit' or branch == 'dev')", True),
        ("suite == 'blimp'", True),
        ("suite.kind != 'pairs'", False),
        ("suite.guessed <= 0.5", False),
        ("0.5 < suite.guessed <= 1", True),
        ("suite.n >= 2000", True),
        ("before.accuracy > -1", True),
        ("after.accuracy >= 0", False),  # None is in no order
        ("after.accuracy == None", True),
        ("check.landed", True),
        ("check.deep.er == 2", True),
        ("check.nothing", False),
        ("check.nothing < 3", False),
        ("'x' in params.expand", False),  # no error: a number holds nothing
        ("params.expand == 0", True),
        ("op < 3", False),
        ("True", True),
    ],
)
def test_what_conditions_mean(text, value):
    assert holds(parse(text), FACTS) is value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "op.__class__",
        "(lambda: 1)()",
        "[x for x in op]",
        "op if op else op",
        "suite['name']",
        "op + 'x'",
        "f'{op}'",
        "open",
        "suite.name()",
        "op is None",
        "1 if True else 2",
        "{}",
        "b'x'",
        "x := 3",
        "op ==",
        "",
        "()" * 200,
        "(" * 400,
        "op == 'x' " * 60,
        "oper == 'update'",
        "branch.name == 'x'",
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(BadExpression):
        parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="op suite.n()[]{}'\"<>=!~+-*/,:andortif_ 0123\n\0", max_size=40))
def test_no_text_can_do_anything_but_be_refused_or_mean_true_or_false(text):
    try:
        tree = parse(text)
    except BadExpression:
        return
    assert holds(tree, FACTS) in (True, False)


def test_names_in_a_condition_are_known():
    tree = parse("suite.guessed <= 0.5 and op == 'x'")
    assert uses(tree, "suite")
    assert not uses(tree, "branch")
