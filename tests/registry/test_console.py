"""The SQL console reads, and does nothing else."""

from __future__ import annotations

import pytest

from mlc.registry.catalog.console import console
from mlc.registry.errors import BadParameter
from mlc.tests.registry.history import History


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Two commits, both evaluated; nothing here can change it, which is what the tests are about."""
    history = History(tmp_path_factory.mktemp("console") / ".mlc")
    a = history.commit(tensors={"w": "1"})
    b = history.commit(a, tensors={"w": "2"})
    history.evaluate(a, {"example": ["1", "2"], "correct": [True, False]})
    history.evaluate(b, {"example": ["1", "2"], "correct": [False, False]})
    return history


def test_a_query_answers_with_columns_and_rows(history):
    answer = console(history, "select message, tensors_changed from commits order by seq")
    assert answer.columns == ["message", "tensors_changed"]
    assert answer.rows == [("commit 1", 1), ("commit 2", 1)]
    assert console(history, "select seq from commits order by seq", limit=1).rows == [(2,)]


@pytest.mark.parametrize("query", ["from flips(4, 5)", "select example, answer_a, answer_b, slice, kind from flips(4, 5);"])
def test_flips_are_a_table(history, query):
    assert console(history, query).rows == [("1", "x", "x", None, "negative")]


@pytest.mark.parametrize(
    "query", ["show tables", "describe commits", "summarize commits", "explain select 1", "values (1)", "with a as (select 1) from a"]
)
def test_every_way_of_reading_is_open(history, query):
    assert console(history, query).rows


WRITES = [
    "drop table commits", "delete from commits", "insert into parents values ('a', 0, 'b')", "create table x (a integer)", "checkpoint",
    "create temp table x as select 1", "set threads = 8", "pragma database_list", "attach ':memory:' as other", "load json",
    "install httpfs", "begin", "use memory", "call pragma_version()", "copy commits to 'out.csv'", "export database 'out'", "vacuum",
    "select 1; select 2", "", "-- nothing",
]  # fmt: skip


@pytest.mark.parametrize("query", WRITES)
def test_whatever_is_not_one_reading_statement_is_refused(history, query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadParameter) as refused:
        console(history, query)
    assert "\n" not in refused.value.message
    assert sorted(tmp_path.rglob("*")) == before or not list(tmp_path.glob("out*"))
    assert console(history, "select count(*) from commits").rows == [(2,)]


READS_FILES = [
    "from '{file}'", "select * from read_text('{file}')", "select * from read_csv('{file}')", "select * from read_blob('{file}')",
    "select * from glob('/*')", "select * from read_parquet('{file}')", "select * from read_json('{file}')",
    "select * from sniff_csv('{file}')", "select * from parquet_schema('{file}')", "select * from 'https://localhost/x.csv'",
]  # fmt: skip


@pytest.mark.parametrize("query", READS_FILES)
def test_no_query_reads_a_file(history, query, tmp_path):
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,canary\n")
    with pytest.raises(BadParameter) as refused:
        console(history, query.format(file=file))
    assert "canary" not in refused.value.message


def test_no_query_sees_a_variable_of_the_program(history):
    import pyarrow as pa

    secret = pa.table({"a": [1]})
    with pytest.raises(BadParameter, match="secret"):
        console(history, "from secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("select * fro commits", 'Parser Error: syntax error at or near "commits"'),
        ("select nothing from commits", 'Binder Error: Referenced column "nothing" not found'),
        ("select cast('x' as integer)", "Conversion Error"),
        ("select error('stop')", "stop"),
    ],
)
def test_a_wrong_query_is_told_in_one_line(history, query, sentence):
    with pytest.raises(BadParameter) as refused:
        console(history, query)
    assert sentence in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.exit_code == 2


def test_a_query_that_takes_too_long_is_stopped(history):
    with pytest.raises(BadParameter, match=r"more than 0\.05 s"):
        console(history, "select count(*) from range(100_000_000_000) a where a.range % 7 = 3", seconds=0.05)


def test_values_are_what_json_can_say(history):
    query = """select 1::hugeint, 2.50::decimal(5, 2), date '2026-01-31', timestamp '2026-01-31 01:02:03', 'ab'::blob, 'nan'::double,
               [1, 2.5], {'a': 1, 'b': null}, null, true, uuid '00000000-0000-0000-0000-000000000001', interval 1 day"""
    assert console(history, query).rows == [
        (1, 2.5, "2026-01-31", "2026-01-31T01:02:03", "6162", None, [1, 2.5], {"a": 1, "b": None}, None, True,
         "00000000-0000-0000-0000-000000000001", "1 day, 0:00:00"),
    ]  # fmt: skip
