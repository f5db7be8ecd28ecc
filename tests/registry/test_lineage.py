"""Ancestors, merge bases and the lanes of the graph, as transcripts."""

from __future__ import annotations

import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc.registry.lineage import ancestor_at, ancestors, graph, is_ancestor, merge_base, merge_bases, parents_in, thinned

#            b ─ c ─ e ─ g          criss-cross: e = c + d, f = d + c
#        a <       ×
#            (b) d ─ f ─ h
CRISS = {"a": [], "b": ["a"], "c": ["b"], "d": ["b"], "e": ["c", "d"], "f": ["d", "c"], "g": ["e"], "h": ["f"], "z": []}


def history(text: str) -> list[tuple[str, list[str]]]:
    """`child parent parent` per line, newest first."""
    return [(line.split()[0], line.split()[1:]) for line in textwrap.dedent(text).strip().splitlines()]


def drawn(text: str, **options) -> str:
    """The graph as `mlc log --graph` would print it, with the commit's name at column 12."""
    lines = []
    for row in graph(history(text), **options):
        lines.append(f"{row.node:<11} {row.key}")
        if row.link:
            lines.append(row.link)
    return "\n".join(lines)


def picture(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


def test_ancestors_come_once_and_begin_with_the_start():
    assert list(ancestors(["g"], CRISS.__getitem__)) == ["g", "e", "c", "d", "b", "a"]
    assert list(ancestors(["a", "z"], CRISS.__getitem__)) == ["a", "z"]


def test_a_commit_is_its_own_ancestor_and_a_sibling_is_not():
    parents = CRISS.__getitem__
    assert is_ancestor("b", "b", parents)
    assert is_ancestor("a", "h", parents)
    assert not is_ancestor("h", "a", parents)
    assert not is_ancestor("c", "d", parents)


@pytest.mark.parametrize(
    ("a", "b", "bases"),
    [
        ("c", "d", ["b"]),
        ("g", "h", ["c", "d"]),
        ("h", "g", ["d", "c"]),
        ("a", "g", ["a"]),
        ("g", "g", ["g"]),
        ("g", "z", []),
        ("e", "d", ["d"]),
    ],
)
def test_merge_bases_are_the_best_common_ancestors(a, b, bases):
    assert merge_bases(a, b, CRISS.__getitem__) == bases
    assert merge_base(a, b, CRISS.__getitem__) == (bases[0] if bases else None)


def test_a_tilde_walks_first_parents():
    parents = CRISS.__getitem__
    assert [ancestor_at("g", steps, parents) for steps in range(6)] == ["g", "e", "c", "b", "a", None]


def test_parents_are_read_from_each_commit_once():
    class Repo:
        asked: list[str] = []  # noqa: RUF012

        def commit(self, name):
            self.asked.append(name)
            return type("Commit", (), {"parents": tuple(CRISS[name])})

    repo = Repo()
    parents = parents_in(repo)
    assert list(ancestors(["h"], parents)) == list(ancestors(["h"], parents)) == ["h", "f", "d", "c", "b", "a"]
    assert sorted(repo.asked) == ["a", "b", "c", "d", "f", "h"]


@st.composite
def dags(draw):
    """Random histories of up to 12 commits: {n: parents}, parents smaller than n."""
    size = draw(st.integers(1, 12))
    return {n: draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else [] for n in range(size)}


@given(dags(), st.data())
def test_merge_bases_agree_with_the_definition(dag, data):
    a, b = data.draw(st.sampled_from(sorted(dag))), data.draw(st.sampled_from(sorted(dag)))
    behind = {n: set(ancestors([n], dag.__getitem__)) for n in dag}
    common = behind[a] & behind[b]
    best = {c for c in common if not any(c != d and c in behind[d] for d in common)}
    assert set(merge_bases(a, b, dag.__getitem__)) == best


@given(dags(), st.data())
def test_thinned_history_keeps_exactly_who_follows_whom(dag, data):
    shown = data.draw(st.sets(st.sampled_from(sorted(dag))))
    thin = dict(thinned([(n, dag[n]) for n in sorted(dag, reverse=True)], shown))
    assert list(thin) == sorted(shown, reverse=True)
    for a in shown:
        for b in shown:
            assert is_ancestor(a, b, thin.__getitem__) == is_ancestor(a, b, dag.__getitem__)


# --- drawing ---------------------------------------------------------------------------------------------------


def test_a_line_is_drawn_without_links():
    assert drawn("c b\nb a\na") == picture("""
        o           c
        o           b
        o           a
        """)


def test_a_fork_joins_below_its_branches():
    assert drawn("d b\nc b\nb a\na") == picture("""
        o           d
        │ o         c
        ├─╯
        o           b
        o           a
        """)


def test_a_merge_keeps_its_first_parent_on_the_left():
    assert drawn("m b c\nc a\nb a\na") == picture("""
        o           m
        ├─╮
        │ o         c
        o │         b
        ├─╯
        o           a
        """)


def test_a_criss_cross_is_drawn_with_crossing_lanes():
    assert drawn("x p q\ny q p\nq a\np a\na") == picture("""
        o           x
        ├─╮
        │ │ o       y
        ├─┼─╯
        │ o         q
        o │         p
        ├─╯
        o           a
        """)


def test_a_merge_of_four_reaches_every_parent():
    assert drawn("m a b c d\nd r\nc r\nb r\na r\nr") == picture("""
        o           m
        ├─┬─┬─╮
        │ │ │ o     d
        │ │ o │     c
        │ │ ├─╯
        │ o │       b
        │ ├─╯
        o │         a
        ├─╯
        o           r
        """)


def test_a_link_passes_over_lanes_that_it_does_not_join():
    assert drawn("t a\nu b\nm z a\nb r\nz r\na r\nr") == picture("""
        o           t
        │ o         u
        │ │ o       m
        ├─│─┤
        │ o │       b
        │ │ o       z
        │ ├─╯
        o │         a
        ├─╯
        o           r
        """)


def test_a_tip_is_never_drawn_right_below_a_root_it_does_not_follow():
    assert drawn("b\na\nc") == picture("""
        o           b
          o         a
        o           c
        """)


def test_a_first_parent_that_waits_further_right_comes_over_to_the_left():
    assert drawn("m x b\ny b\nx b\nb") == picture("""
        o           m
        ├─╮
        │ │ o       y
        │ ├─╯
        o │         x
        ├─╯
        o           b
        """)


def test_a_parent_beyond_the_end_keeps_its_lane():
    rows = list(graph(history("c b\nb a")))
    assert [row.rest for row in rows] == ["│", "│"]


def test_marks_and_plain_characters_can_be_chosen():
    rows = list(graph(history("m b c\nc a\nb a\na"), node=lambda key: "*" if key == "m" else "o"))
    assert [(row.node, row.link) for row in map(lambda row: row.ascii(), rows)] == [
        ("*", "|-."),
        ("| o", None),
        ("o |", "|-'"),
        ("o", None),
    ]


@given(dags())
def test_every_lane_leads_from_a_child_to_its_parent(dag):
    """Follow the drawn lines down from every node: they end at its parents, all of them and no others."""
    rows = list(graph([(n, dag[n]) for n in sorted(dag, reverse=True)]))
    column_of = {row.key: row.node.index("o") // 2 for row in rows}
    lines = []  # (text, key or None)
    for row in rows:
        lines.append((row.node, row.key))
        if row.link:
            lines.append((row.link, None))

    def at(line, column):
        return line[2 * column] if 2 * column < len(line) else " "

    def follow(position, column):
        """The keys that a line going down from (position, column) arrives at."""
        for below in range(position, len(lines)):
            text, key = lines[below]
            if key is not None and column_of[key] == column:
                return {key}
            assert at(text, column) in "│├┤┼╯╰┴", (text, column)
            if at(text, column) in "╯┴╰":
                ends = spread(below, column, going_up=False)
                return set().union(*(follow(below + 1, end) for end in ends))
        raise AssertionError("a lane led nowhere")

    def spread(position, column, going_up):
        """Columns that a horizontal through `column` leaves downwards at."""
        text = lines[position][0]
        node = column_of[lines[position - 1][1]]
        span = [c for c in range(len(text) // 2 + 1) if connected(text, min(c, column, node), max(c, column, node))]
        return [c for c in span if at(text, c) in "╮┬├┤┼" and (c == node or touches(text, c))]

    def connected(text, left, right):
        return all(text[2 * c + 1 : 2 * c + 2] == "─" for c in range(left, right))

    def touches(text, column):
        return at(text, column) in "╮┬├┤┼╭"

    for row in rows:
        if not dag[row.key]:
            continue
        position = next(i for i, (_, key) in enumerate(lines) if key == row.key)
        column, below = column_of[row.key], position + 1
        if row.link:
            ends = spread(below, column, True)
            arrived = set().union(*(follow(below + 1, end) for end in ends))
            assert arrived == set(dag[row.key]), drawn("\n".join(f"{n} {' '.join(map(str, dag[n]))}" for n in sorted(dag, reverse=True)))
        else:
            assert follow(below, column) == set(dag[row.key])


def test_ten_thousand_commits_are_laid_out_at_once():
    commits = [(n, [n - 1, *([n - 7] if n % 10 == 0 and n > 7 else [])] if n else []) for n in reversed(range(10_000))]
    began = time.perf_counter()
    rows = list(graph(commits))
    assert len(rows) == 10_000
    assert time.perf_counter() - began < 2.0
    assert max(len(row.node) for row in rows) < 20
