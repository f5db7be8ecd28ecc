"""Questions about history: the log, one commit, lineage, storage."""

from __future__ import annotations

import pytest

from mlc.registry.catalog import queries
from mlc.registry.errors import BadParameter, RefNotFound
from mlc.tests.registry.history import History


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / ".mlc")


# --- log -----------------------------------------------------------------------------------------------------


@pytest.fixture
def forked(history):
    a = history.commit(tensors={"w": "1"}, op="import", message="a", metrics={"facts": {"accuracy": 0.5}})
    b = history.commit(a, tensors={"w": "2"}, op="unlearn.ssd", message="b")
    c = history.commit(a, tensors={"w": "3"}, branch="dev", message="c")
    d = history.commit(b, c, tensors={"w": "4"}, op="merge", message="d")
    e = history.commit(d, tensors={"w": "5"}, op="unlearn", message="e")
    history.names = {"a": a, "b": b, "c": c, "d": d, "e": e}
    return history


def told(rows):
    return "".join(row.message for row in rows)


def test_log_tells_what_lies_behind_newest_first(forked):
    names = forked.names
    assert told(queries.log(forked, [names["e"]])) == "edcba"
    assert told(queries.log(forked, [names["b"]])) == "ba"
    assert told(queries.log(forked, [names["b"], names["c"]])) == "cba"
    assert told(queries.log(forked, None)) == "edcba"
    assert told(queries.log(forked, [names["e"]], 2)) == "ed"
    assert told(queries.log(forked, [names["c"]], 1)) == "c"
    assert queries.log(forked, []) == []
    assert queries.log(forked, ["f" * 64]) == []


def test_log_filters_and_its_rows_still_hang_together(forked):
    rows = queries.log(forked, [forked.names["e"]], op="unlearn")
    assert told(rows) == "eb"
    assert rows[0].parent_seqs == [rows[1].seq]
    assert told(queries.log(forked, [forked.names["e"]], op="unlearn.ssd")) == "b"
    assert told(queries.log(forked, [forked.names["e"]], op="unl")) == ""
    assert told(queries.log(forked, [forked.names["e"]], 1, op="unlearn")) == "e"
    assert told(queries.log(forked, [forked.names["e"]], since=queries.log(forked, None)[1].time)) == "ed"


def test_log_shows_a_metric_as_the_commit_says_it_or_as_measured_later(forked):
    forked.evaluate(forked.names["d"], {"example": ["1", "2"]}, metrics={"accuracy": 0.75})
    forked.evaluate(forked.names["a"], {"example": ["1", "2"]}, metrics={"accuracy": 0.1})
    rows = queries.log(forked, [forked.names["e"]], metrics=["facts.accuracy", "facts.nothing"])
    assert [row.metrics for row in rows] == [[None, None], [0.75, None], [None, None], [None, None], [0.5, None]]
    with pytest.raises(BadParameter, match="does not name a metric"):
        queries.log(forked, None, metrics=["accuracy"])


def test_details_hold_the_whole_commit(forked):
    detail = queries.commit_detail(forked, forked.names["d"])
    assert (detail.record["op"]["name"], detail.branch, detail.codecs, detail.tensors_changed) == ("merge", "main", {"ref": 1}, 1)
    assert detail.record["parents"] == [forked.names["b"], forked.names["c"]]
    with pytest.raises(RefNotFound):
        queries.commit_detail(forked, "f" * 64)


def test_the_lineage_macro_agrees_with_the_log(forked):
    rows = forked.catalog.query(forked, "select message from lineage('heads/dev')").rows
    assert [row[0] for row in rows] == ["c", "a"]
    rows = forked.catalog.query(forked, "select message from lineage(?)", [forked.names["e"]]).rows
    assert "".join(row[0] for row in rows) == "edcba"


def test_storage_is_counted_by_operation_and_branch(forked):
    assert {row.key: (row.objects, row.bytes_logical) for row in queries.storage(forked, "branch")} == {"main": (4, 128), "dev": (1, 32)}
    assert {row.key for row in queries.storage(forked, "op")} == {"import", "unlearn.ssd", "update", "merge", "unlearn"}
    with pytest.raises(BadParameter):
        queries.storage(forked, "colour")
