"""What changed between two worlds: the rule table branch by branch, groups, the plan of an edit, and fresh, stale, lost."""

from __future__ import annotations

import json
import random
from datetime import date
from math import log

import pytest

from mlc.ops.data.worlds import Triple, World, day, read_world
from mlc.ops.edit.edit import Edit
from mlc.ops.edit.freshness import Freshness, Replaced, Static, bleed, by_popularity, by_relation, freshness
from mlc.ops.edit.requests import requested, world_plan
from mlc.ops.edit.world import Group, Interval, Neighbours, decide, difference, parse_dates
from mlc.registry.errors import BadInputFile, BadParameter

OLD, NEW = date(2021, 1, 4), date(2023, 2, 27)
TIME = Interval(OLD, NEW)
BEFORE, WITHIN, LATER, AFTER = "2019-05-01", "2022-03-01", "2022-09-01", "2024-01-01"
EDGE_OLD, EDGE_NEW = "2021-01-04", "2023-02-27"


def t(object_: str = "x", *, s: str | None = None, e: str | None = None, p: str | None = None, line: int = 1) -> Triple:
    dates = {k: day(v) if v else None for k, v in (("start", s), ("end", e), ("point", p))}
    return Triple(line, "Ada", "seat", object_, **dates)


def one(was: Triple | None, now: Triple | None, **more) -> str:
    """The decision on the single object x."""
    return decide({"x": was} if was else {}, {"x": now} if now else {}, TIME, **more)["x"]


# --- the rules ---------------------------------------------------------------------------------------------

RULES = {
    "3: it starts behind its end": ({"s": LATER, "e": WITHIN}, True, "unk"),
    "5: a new one, at a point between": ({"p": WITHIN}, False, "learn"),
    "5: at a point between, but known before": ({"p": WITHIN}, True, "unk"),
    "5: over before the old world": ({"e": BEFORE}, True, "ignore"),
    "5: since before, and no end": ({"s": BEFORE}, True, "keep"),
    "5: begun between, and no end": ({"s": WITHIN}, False, "learn"),
    "5: begun between, known before": ({"s": WITHIN}, True, "learn"),
    "5: begins behind the new world": ({"s": AFTER}, False, "ignore"),
    "5: begun and over between": ({"s": WITHIN, "e": LATER}, False, "ignore"),
    "5: since before, over between": ({"s": BEFORE, "e": WITHIN}, True, "forget"),
    "5: since before, ends later": ({"s": BEFORE, "e": AFTER}, True, "keep"),
    "5: no start, over between": ({"e": WITHIN}, True, "forget"),
    "5: no start, ends later": ({"e": AFTER}, True, "keep"),
    "5: begun between, ends later": ({"s": WITHIN, "e": AFTER}, False, "keep"),
    "5: nothing said, in both": ({}, True, "unk"),
    "5: nothing said, new": ({}, False, "unk"),
    "edge: begun on the old day": ({"s": EDGE_OLD}, False, "unk"),
    "edge: begun on the new day": ({"s": EDGE_NEW}, False, "unk"),
    "edge: a point on the old day": ({"p": EDGE_OLD}, False, "unk"),
    "edge: a point on the new day": ({"p": EDGE_NEW}, False, "unk"),
    "edge: over on the old day": ({"s": BEFORE, "e": EDGE_OLD}, True, "unk"),
    "edge: over on the new day": ({"s": BEFORE, "e": EDGE_NEW}, True, "unk"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_decides_as_the_table_says(rule):
    qualifiers, known, decision = RULES[rule]
    assert one(t() if known else None, t(**qualifiers)) == decision


def test_an_object_that_is_only_in_the_old_world_is_ignored_when_long_over_and_else_unknown():
    assert one(t(e=BEFORE), None) == "ignore"
    assert one(t(e=EDGE_OLD), None) == "unk"
    assert one(t(s=BEFORE), None) == "unk"


def test_a_new_object_that_is_itself_new_is_learned():
    assert one(None, t(), new={"x"}) == "learn"
    assert one(t(), t(), new={"x"}) == "unk"


def test_a_date_that_comes_once_is_learned_when_it_is_new_alone_and_between():
    def dated(was, now):
        return set(decide({w: t(w) for w in was}, {n: t(n) for n in now}, TIME, dated=True).values())

    assert dated([], [WITHIN]) == {"learn"}
    assert dated([], [EDGE_NEW]) == {"unk"}
    assert dated([], [BEFORE]) == {"unk"}
    assert dated([], ["never"]) == {"unk"}
    assert dated([WITHIN], [WITHIN]) == {"unk"}
    assert dated([BEFORE], [WITHIN]) == {"unk"}


@pytest.mark.parametrize(
    ("qualifiers", "replaced"),
    [
        ({"p": WITHIN}, True),
        ({"s": WITHIN}, True),
        ({"s": WITHIN, "e": AFTER}, True),
        ({"s": WITHIN, "e": LATER}, False),
        ({"s": WITHIN, "e": EDGE_NEW}, False),
        ({"s": EDGE_OLD}, False),
        ({"p": EDGE_NEW}, False),
        ({}, False),
    ],
)
def test_of_a_functional_relation_the_old_object_goes_when_a_new_one_came_between(qualifiers, replaced):
    decisions = decide({"old": t("old")}, {"new": t("new", **qualifiers)}, TIME, functional=True)
    assert (decisions == {"old": "forget", "new": "learn"}) == replaced
    assert decide({"old": t("old")}, {"new": t("new", **qualifiers)}, TIME)["old"] == "unk"


def test_the_functional_rule_wants_exactly_one_on_each_side_and_none_in_common():
    came = {"new": t("new", s=WITHIN)}
    assert decide({"a": t("a"), "b": t("b")}, came, TIME, functional=True) == {"a": "unk", "b": "unk", "new": "learn"}
    both = {"a": t("a", s=BEFORE), **came}
    assert decide({"a": t("a")}, both, TIME, functional=True) == {"a": "keep", "new": "learn"}
    assert decide({"a": t("a", s=AFTER, e=BEFORE)}, came, TIME, functional=True) == {"a": "unk", "new": "learn"}


# --- groups --------------------------------------------------------------------------------------------------


def world(*rows: tuple, when: date | None = None) -> World:
    triples = [Triple(n, *row[:3], **(row[3] if len(row) > 3 else {})) for n, row in enumerate(rows, 1)]
    return World(tuple(triples), "w", "0" * 64, 0, when)


A = world(("Ada", "home", "Oslo"), ("Ada", "speaks", "Latin"), ("Bo", "home", "Rome"), ("Bo", "speaks", "Greek"), ("Cy", "home", "Oslo"),
          ("Di", "home", "Lima"), ("Di", "speaks", "Greek"))  # fmt: skip
B = world(("Ada", "home", "Bonn"), ("Ada", "speaks", "Latin"), ("Ada", "speaks", "Greek"), ("Bo", "home", "Rome"), ("Cy", "home", "Oslo"),
          ("Di", "home", "Lima"), ("Di", "speaks", "Greek"), ("Eva", "home", "Lima"), ("Cy", "plays", "go"))  # fmt: skip


def test_without_dates_presence_decides_and_scenarios_follow():
    found = difference(A, B)
    assert {(g.subject, g.relation): g.scenario for g in found.determined} == {
        ("Ada", "home"): "replacement",
        ("Ada", "speaks"): "addition",
        ("Bo", "speaks"): "archival",
        ("Cy", "plays"): "insertion",
        ("Eva", "home"): "insertion",
    }
    assert found.counts() == {"new": 3, "changed": 1, "obsolete": 1, "static": 5, "undetermined": 0}
    (home,) = (g for g in found.determined if (g.subject, g.relation) == ("Ada", "home"))
    assert (home.label("Oslo"), home.label("Bonn")) == ("changed", "changed")


def test_a_subject_that_is_only_in_the_old_world_stays_undetermined():
    found = difference(A, world(("Ada", "home", "Oslo"), ("Ada", "speaks", "Latin")))
    assert found.determined == ()
    assert {g.subject for g in found.undetermined} == {"Bo", "Cy", "Di"}


def test_nothing_changed_between_a_world_and_itself():
    assert difference(A, A).determined == ()
    dated = world(("Ada", "home", "Oslo", {"start": date(2000, 1, 1)}), when=OLD)
    assert difference(dated, dated, (OLD, NEW)).determined == ()


def test_backwards_learn_and_forget_change_places():
    forth = {(g.subject, g.relation): g for g in difference(A, B).groups}
    back = {(g.subject, g.relation): g for g in difference(B, A).groups}
    swapped = {"learn": "forget", "forget": "learn", "keep": "keep"}
    for key in [("Ada", "home"), ("Ada", "speaks"), ("Bo", "speaks"), ("Cy", "plays")]:
        assert {o: swapped[d] for o, d in forth[key].decisions.items()} == back[key].decisions


def test_applied_to_the_old_world_the_changes_give_the_new_one():
    rng = random.Random(4)
    names = [f"n{i}" for i in range(30)]
    for _ in range(20):
        old = {(s, r, rng.choice("abcd")) for s in names for r in ("p", "q")}
        new = {(s, r, rng.choice("abcd")) if rng.random() < 0.2 else (s, r, o) for s, r, o in old}
        found = difference(world(*sorted(old)), world(*sorted(new)))
        made = set(old)
        for group in found.determined:
            made -= {(group.subject, group.relation, o) for o in group.of("forget")}
            made |= {(group.subject, group.relation, o) for o in group.of("learn")}
        assert made == new


def test_a_replacement_is_exactly_one_that_comes_and_one_that_goes():
    def group(**decisions):
        return Group("Ada", "seat", decisions, {}, {}, False)

    assert group(a="learn", b="forget").replacement
    assert group(a="learn", b="forget", c="ignore").replacement
    assert not group(a="learn", b="forget", c="keep").replacement
    assert not group(a="learn", b="learn", c="forget").replacement
    assert group(a="learn", b="learn", c="forget").scenario == "mixed"
    assert not group(a="learn", b="unk").determined
    assert not group(a="keep", b="ignore").determined


def test_neighbours_are_never_the_subject_nor_an_object_that_changes_and_the_nearest_come_first():
    old = world(("Ada", "home", "Oslo"), ("Ada", "speaks", "Greek"), ("Bo", "home", "Rome"), ("Bo", "speaks", "Greek"),
                ("Cy", "home", "Rome"), ("Di", "home", "Bonn"), ("Ed", "home", "Oslo"))  # fmt: skip
    new = world(*[(x.subject, x.relation, "Bonn" if x.key == ("Ada", "home", "Oslo") else x.object) for x in old.triples])
    found = [x.subject for x in Neighbours(difference(old, new)).of("Ada", "home")]
    assert found == ["Bo", "Cy"]
    assert len(list(Neighbours(difference(old, new), most=1).of("Ada", "home"))) == 1


# --- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Write worlds; returns an edit of them."""

    def write(old: list, new: list, **options) -> Edit:
        for name, rows in (("old", old), ("new", new)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Edit(world=(str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl")), **options)

    return write


def row(subject: str, relation: str, object_: str, **more) -> dict:
    return {"subject": subject, "relation": relation, "object": object_, **more}


HEAD = {"relations": {"home": {"prompt": "{} lives in", "paraphrases": ["The home of {} is"]}, "speaks": {"prompt": "{} speaks"}}}


def test_a_plan_has_facts_for_replacements_and_insertions_and_lists_the_rest(files):
    old = [row("Ada", "home", "Oslo"), row("Bo", "home", "Rome"), row("Bo", "speaks", "Greek"), row("Cy", "home", "Lima")]
    new = [HEAD, row("Ada", "home", "Bonn"), row("Bo", "home", "Rome"), row("Cy", "home", "Lima"), row("Cy", "speaks", "Latin"),
           row("Cy", "home", "Kyiv")]  # fmt: skip
    op = files(old, new)
    made = world_plan(op)
    ada, cy = made.facts
    assert (ada.id, ada.line, ada.question, ada.target_true, ada.target_new) == ("2", 2, "Ada lives in", "Oslo", "Bonn")
    assert (ada.paraphrases, ada.neighbourhood) == (("The home of Ada is",), (("Bo lives in", "Rome"),))
    assert (cy.question, cy.target_true, cy.target_new) == ("Cy speaks", None, "Latin")
    assert made.forget == ({"prompt": "Bo speaks", "answer": "Greek", "line": 3},)
    assert [(g.subject, g.scenario) for g in made.left] == [("Cy", "addition")]
    details = made.details()
    assert (details["changed"], details["to_write"], len(details["changes"])) == (1, 2, 4)
    assert requested(op).facts == made.facts


def test_rows_of_a_fact_world_are_triples_with_their_own_prompts(files):
    def told(object_):
        return row(
            "Ada Orr", "birthplace", object_, id=0, prompt="Ada Orr was born in", prompt_template="{} was born in", paraphrases=["x"]
        )

    (fact,) = requested(files([told("Rome")], [told("Oslo")])).facts
    assert (fact.prompt, fact.paraphrases, fact.target_true, fact.target_new) == ("{} was born in", ("x",), "Rome", "Oslo")


def test_dates_come_from_the_header_or_the_option_and_the_option_wins(files):
    old, new = [{"date": "2021"}, row("Ada", "home", "Oslo")], [{"date": "2023", **HEAD}, row("Ada", "home", "Bonn", start="2022-03")]
    assert [f.target_new for f in requested(files(old, new)).facts] == ["Bonn"]
    with pytest.raises(BadInputFile, match="nothing changed"):
        requested(files(old, new, dates="2021-01-01..2022-03-01"))
    assert requested(files(old[1:], [HEAD, *new[1:]], dates="2021..2023")).facts


def test_what_only_goes_is_named_as_unlearning_with_the_next_command(files):
    with pytest.raises(BadInputFile) as fault:
        requested(files([HEAD, row("Bo", "home", "Rome"), row("Bo", "speaks", "Greek")], [row("Bo", "home", "Rome")]))
    assert "mlc unlearn --forget-set" in str(fault.value.hint)


def test_what_the_record_does_not_date_is_refused_with_the_number_and_what_would_help(files):
    old, new = [{"date": "2021"}, row("Ada", "home", "Oslo")], [{"date": "2023", **HEAD}, row("Ada", "home", "Bonn")]
    with pytest.raises(BadInputFile, match="of 1 that may have changed the files do not say when") as fault:
        requested(files(old, new))
    assert '"start"' in str(fault.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "options", "reason"),
    [
        ([row("Ada", "home", "Oslo", start="2020")], [row("Ada", "home", "Bonn")], {}, "old.jsonl, line 1: says when"),
        ([row("Ada", "home", "Oslo", start="soon")], [row("Ada", "home", "Bonn")], {}, "line 1: `start` is no date"),
        ([row("Ada", "home", "Oslo"), row("Ada", "home", "Oslo")], [row("Ada", "home", "Bonn")], {}, "line 2: says the same as line 1"),
        ([row("Ada", "home", "Oslo")], [row("Ada", "home", "Bonn")], {}, "new.jsonl, line 1: nobody says how to ask"),
        ([HEAD], [row("Ada", "home", "Bonn")], {}, "old.jsonl holds no triples"),
        ([row("Ada", "home", " ")], [row("Ada", "home", "Bonn")], {}, "line 1: `object` is empty"),
        ([{"relations": {"home": {"prompt": "lives in"}}}], [], {}, "line 1: the prompt of relation 'home' needs exactly one {}"),
        ([{"date": "2021", "relations": []}], [], {}, "line 1: `relations` should map"),
        ([{"relations": {"home": {"functional": 1}}}], [], {}, "line 1: `functional` and `dated`"),
        ([row("Ada", "home", "Oslo")], [{"date": "2021"}, row("Ada", "home", "Bonn")], {}, "old.jsonl has no date"),
        ([{"date": "2022"}, row("Ada", "home", "Oslo")], [{"date": "2022"}, row("Ada", "home", "Bonn")], {}, "the old world is of"),
    ],
)
def test_a_fault_in_a_world_is_said_with_its_line(files, old, new, options, reason):
    with pytest.raises((BadInputFile, BadParameter)) as fault:
        requested(files(old, new, **options))
    assert reason in fault.value.message


def test_dates_are_read_with_missing_parts_as_the_first():
    assert (day("2021"), day("2021-03"), day("+2021-03-04T00:00:00Z")) == (date(2021, 1, 1), date(2021, 3, 1), date(2021, 3, 4))
    assert (day("2021-13"), day("soon")) == (None, None)
    assert parse_dates("2021..2022-02") == (date(2021, 1, 1), date(2022, 2, 1))
    for words in ("2021", "2021..", "x..2022"):
        with pytest.raises(BadParameter, match="--dates"):
            parse_dates(words)


def test_a_real_fact_world_with_three_changes(material, files):
    path = material / "data" / "facts-deep" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    new = [{**r, "object": r["alternatives"][0]} if r["id"] in (3, 77, 500) else r for r in rows]
    made = world_plan(files(rows, new))
    assert [f.id for f in sorted(made.facts, key=lambda f: f.line)] == ["4", "78", "501"]
    assert made.changes.counts() == {"new": 0, "changed": 3, "obsolete": 0, "static": 597, "undetermined": 0}
    assert all(len(f.neighbourhood) == 10 and len(f.paraphrases) == 6 for f in made.facts)
    assert read_world(path).triples[0].prompt == "{} was born in"


# --- how far a model keeps up --------------------------------------------------------------------------------


def test_fresh_stale_and_lost_of_hand_made_rows():
    replaced = [
        Replaced("home", 1.0, 2.0, 1),
        Replaced("home", 2.0, 1.0, 2),
        Replaced("speaks", 0.5, 0.4, 3),
        Replaced("speaks", 1.0, 1.0, 4),
    ]
    static = [Static("home", True, True), Static("home", True, False), Static("home", False, False), Static("plays", True, True)]
    assert freshness(replaced, static) == Freshness(0.25, 0.75, 1 / 3)
    assert by_relation(replaced, static) == {
        "home": Freshness(0.5, 0.5, 0.5), "plays": Freshness(None, None, 0.0), "speaks": Freshness(0.0, 1.0, None),
    }  # fmt: skip
    assert [f.fresh for f in by_popularity(replaced, 2)] == [0.5, 0.0]
    assert len(by_popularity(replaced)) == 4
    assert freshness([]) == Freshness(None, None, None)


def test_oracles_of_either_world_are_wholly_fresh_or_wholly_stale_and_row_order_is_nothing():
    made = difference(A, B)
    for oracle, fresh in ((B, 1.0), (A, 0.0)):
        true = {x.key for x in oracle.triples}
        rows = [
            Replaced(g.relation, *(0.0 if (g.subject, g.relation, o) in true else 9.0 for o in (*g.of("learn"), *g.of("forget"))))
            for g in made.determined
            if g.replacement
        ]
        kept = [
            Static(x.relation, x.key in {y.key for y in A.triples}, x.key in true) for x in A.triples if x.key in {y.key for y in B.triples}
        ]
        assert freshness(rows, kept) == Freshness(fresh, 1 - fresh, 0.0)
        assert freshness(rows[::-1], kept[::-1]) == freshness(rows, kept)


def test_bleed_is_the_mean_change_of_probability_and_the_share_that_moved():
    mean, share = bleed([-log(0.5), -log(0.5)], [-log(0.4), -log(0.52)])
    assert mean == pytest.approx(-0.04)
    assert share == 0.5
    assert bleed([], []) == (0.0, 0.0)


@pytest.mark.parametrize("row", ['{"subject": "Ada", "relation": "home"}', '{"subject": "Ada"', "[1]"])
def test_what_a_line_of_a_world_should_be_like_is_shown_as_a_triple(tmp_path, row):
    (tmp_path / "world.jsonl").write_text('{"date": "2021"}\n' + row + "\n")
    with pytest.raises(BadInputFile, match="line 2: ") as fault:
        read_world(tmp_path / "world.jsonl")
    assert '"object": "Rome"' in str(fault.value.hint)
