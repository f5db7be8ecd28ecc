"""The shape of history: ancestors, merge bases, and the lanes of `log --graph`. Pure functions over "who are the parents of".

`Parents` is any function from a commit to its parents in order; `parents_in` makes one that reads commits of a repository,
a dict's `__getitem__` serves as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .ids import CommitId

Key = TypeVar("Key", bound=Hashable)
Parents = Callable[[Key], Sequence[Key]]


def parents_in(repo: Any) -> Parents[CommitId]:
    """Parents as the commits themselves name them; each commit is read once. Raises MissingObject or HashMismatch when asked."""
    known: dict[CommitId, tuple[CommitId, ...]] = {}

    def parents(commit: CommitId) -> tuple[CommitId, ...]:
        if commit not in known:
            known[commit] = repo.commit(commit).parents
        return known[commit]

    return parents


def ancestors(starts: Iterable[Key], parents: Parents[Key]) -> Iterator[Key]:
    """The starts and everything behind them, each once; nearer ones first."""
    queue = list(dict.fromkeys(starts))
    seen = set(queue)
    for commit in queue:  # the queue grows while it is read
        yield commit
        for parent in parents(commit):
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)


def is_ancestor(old: Key, new: Key, parents: Parents[Key]) -> bool:
    """Whether `new` is `old` or follows from it: moving a ref from `old` to `new` is a fast-forward."""
    return any(commit == old for commit in ancestors([new], parents))


def merge_bases(a: Key, b: Key, parents: Parents[Key]) -> list[Key]:
    """The best common ancestors: none of them lies behind another. A criss-cross has several; nearest to `a` first; [] when unrelated."""
    return common_bases([a, b], parents)


def common_bases(commits: Sequence[Key], parents: Parents[Key]) -> list[Key]:
    """The best ancestors that all of `commits` share, nearest to the first one first; [] when there is none."""
    first, *others = commits
    behind = [set(ancestors([other], parents)) for other in others]
    common = [commit for commit in ancestors([first], parents) if all(commit in line for line in behind)]
    # Common ancestors are closed under "parent of": what lies behind one of them is a parent of one of them.
    surpassed = {parent for commit in common for parent in parents(commit)}
    return [commit for commit in common if commit not in surpassed]


def merge_base(a: Key, b: Key, parents: Parents[Key]) -> Key | None:
    """The best common ancestor; of several the one nearest to `a`; None when the two share no history."""
    return next(iter(merge_bases(a, b, parents)), None)


def ancestor_at(commit: Key, steps: int, parents: Parents[Key]) -> Key | None:
    """`REV~steps`: that many first parents back; None when history is shorter."""
    for _ in range(steps):
        line = parents(commit)
        if not line:
            return None
        commit = line[0]
    return commit


def thinned(commits: Sequence[tuple[Key, Sequence[Key]]], shown: set[Key]) -> list[tuple[Key, list[Key]]]:
    """History with some commits left out: each shown commit follows the nearest shown ones behind it. Newest first, in and out."""
    nearest: dict[Key, list[Key]] = {}
    result = []
    for commit, parents in reversed(commits):
        behind = list(dict.fromkeys(near for parent in parents for near in nearest.get(parent, [])))
        nearest[commit] = [commit] if commit in shown else behind
        if commit in shown:
            result.append((commit, behind))
    return result[::-1]


# --- lanes -----------------------------------------------------------------------------------------------------

NODE = "o"
_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_GLYPHS = {
    0: " ", _UP | _DOWN: "│", _LEFT | _RIGHT: "─", _UP | _DOWN | _RIGHT: "├", _UP | _DOWN | _LEFT: "┤", _UP | _LEFT: "╯", _UP | _RIGHT: "╰",
    _DOWN | _LEFT: "╮", _DOWN | _RIGHT: "╭", _UP | _LEFT | _RIGHT: "┴", _DOWN | _LEFT | _RIGHT: "┬", _UP | _DOWN | _LEFT | _RIGHT: "┼",
}  # fmt: skip
_ASCII = str.maketrans("│─├┤╯╰╮╭┴┬┼", "|-||''..+++")


@dataclass(frozen=True, slots=True)
class GraphRow:
    """The drawing beside one commit: `node` on its first line, `link` on a line of its own (None: not needed), `rest` on further lines."""

    key: Any
    node: str
    link: str | None
    rest: str

    def ascii(self) -> GraphRow:
        """The same for terminals that know no lines."""
        return GraphRow(self.key, self.node.translate(_ASCII), self.link and self.link.translate(_ASCII), self.rest.translate(_ASCII))


def graph(commits: Iterable[tuple[Key, Sequence[Key]]], node: Callable[[Key], str] = lambda _: NODE) -> Iterator[GraphRow]:
    """Lanes for (commit, parents) pairs, newest first. One lane leads from a commit to its first parent and keeps its column.

    A lane that ends leaves a hole, which a later lane may take. `node` gives the one character that marks a commit. A parent that
    never comes keeps its lane to the end: history goes on below.
    """
    lanes: list[Key | None] = []
    root: int | None = None  # the column of a root on the line above: a tip right below it would look like its parent
    for commit, parents in commits:
        column = _lane(lanes, commit, root)
        marks = ["│" if lane is not None else " " for lane in lanes]
        marks[column] = node(commit)
        cells = [_UP | _DOWN if lane is not None else 0 for lane in lanes]
        cells[column] = _UP
        lanes[column] = None
        reached = _descend(lanes, cells, column, parents)
        link = _link(cells, column, reached)
        root = None if parents else column
        while lanes and lanes[-1] is None:
            lanes.pop()
        yield GraphRow(commit, _text(marks), link, _text("│" if lane is not None else " " for lane in lanes))


def _lane(lanes: list[Key | None], key: Key, avoid: int | None) -> int:
    """The column that waits for `key`; a tip that nobody waits for gets the first hole, or a new column, but not `avoid`."""
    if key in lanes:
        return lanes.index(key)
    if avoid == len(lanes):
        lanes.append(None)
    holes = [place for place, lane in enumerate(lanes) if lane is None and place != avoid]
    if not holes:
        holes = [len(lanes)]
        lanes.append(None)
    lanes[holes[0]] = key
    return holes[0]


def _descend(lanes: list[Key | None], cells: list[int], column: int, parents: Sequence[Key]) -> set[int]:
    """Give every parent its lane. Returns the columns that the node is tied to by a horizontal line."""
    reached = set()
    for place, parent in enumerate(dict.fromkeys(parents)):
        if parent not in lanes:
            target = column if place == 0 else _free(lanes, cells, column)
            lanes[target] = parent
            cells[target] |= _DOWN
        else:
            target = lanes.index(parent)
            if target > column and len(parents) == 1:  # the lane further right comes over: the line of first parents stays left
                lanes[column], lanes[target] = parent, None
                cells[column] |= _DOWN
                cells[target] &= ~_DOWN
        if target != column:
            reached.add(target)
    return reached


def _free(lanes: list[Key | None], cells: list[int], column: int) -> int:
    """A hole to the right of `column`, or a new column."""
    for place in range(column + 1, len(lanes)):
        if lanes[place] is None and not cells[place]:
            return place
    lanes.append(None)
    cells.append(0)
    return len(lanes) - 1


def _link(cells: list[int], column: int, reached: set[int]) -> str | None:
    """The line below a node: horizontals from its column to each column reached. A lane that is only crossed stays whole."""
    if not reached:
        return None
    left, right = min({column, *reached}), max({column, *reached})
    text = []
    for place, cell in enumerate(cells):
        here = cell
        if place == column or place in reached:
            here |= (_LEFT if left < place else 0) | (_RIGHT if place < right else 0)
        elif left < place < right and not cell:
            here = _LEFT | _RIGHT
        text.append(_GLYPHS[here])
        text.append("─" if left <= place < right else " ")
    return "".join(text).rstrip()


def _text(marks: Iterable[str]) -> str:
    return " ".join(marks).rstrip()
