"""Journal records become rows: what each table holds, and that it never depends on how the records came."""

from __future__ import annotations

import pytest

from mlc.registry.catalog import queries
from mlc.registry.catalog.connection import memory
from mlc.registry.catalog.projection import Projector, project
from mlc.registry.catalog.source import RepositorySource
from mlc.registry.ids import blob_digest
from mlc.registry.records import ArtifactRecord, InputRecord, RuleOutcome, TensorDelta, Verdict
from mlc.tests.registry.history import History, Packed, dump


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / ".mlc")


def ask(history, sql, *parameters):
    return history.catalog.query(history, sql, parameters).rows


def digest(name, value):
    return blob_digest(f"{name}{value}".encode())


def delta(name, value, codec="dense", stored=10, base=None):
    return TensorDelta(name, base, digest(name, value), codec, 32, stored, None, 3, 0.5, 0.25, 0.125)


def grown(history: History) -> dict[str, str]:
    """A history with a fork, a merge, a refused candidate, a rollback, evaluations and an acceptance."""
    rule = RuleOutcome("flips", "flips.nfr", "facts", "fail", "block", 0.02, 0.5, 0.01, 40, "too many negative flips")
    a = history.commit(
        tensors={"w": "1", "b": "1"}, op="import", pack=[Packed(digest("w", 1), base=None), Packed(digest("b", 1), codec="raw")]
    )
    b = history.commit(a, tensors={"w": "2", "b": "1"}, deltas=[delta("w", 2, base=digest("w", 1))], pack=[Packed(digest("w", 2))])
    c = history.commit(a, tensors={"w": "3", "b": "1"}, branch="dev", deltas=[delta("w", 3, "sparse", 4)])
    refused = Verdict("refused", (rule,), against=b)
    r = history.commit(b, tensors={"w": "9", "b": "9"}, branch=None, deltas=[delta("w", 9), delta("b", 9)], verdict=refused)
    m = history.commit(
        b, c, tensors={"w": "4", "b": "1", "new": "1"}, op="merge.linear", deltas=[delta("w", 4), delta("new", 1, "planes", 30)]
    )
    history.evaluate(b, {"example": ["1", "2"], "correct": [True, True]})
    history.evaluate(r, {"example": ["1", "2"], "correct": [True, False]})
    back = history.commit(m, tensors={"w": "1", "b": "1"}, op="rollback")
    waived = Verdict("accepted", (RuleOutcome("flips", "flips.nfr", "facts", "waived", "block", 0.02, 0.5, 0.01, 40, "waived"),), against=b)
    moves = [{"name": "heads/main", "old": back, "new": r}, {"name": "tags/bold", "old": None, "new": r}]
    history.record({"kind": "accept", "commit": r, "verdict": waived.to_json(), "refs": moves})
    history.record({"kind": "refs", "refs": [{"name": "heads/dev", "old": c, "new": None}], "reason": "branch"})
    history.record({"kind": "note", "text": "gc took nothing"})
    return {"a": a, "b": b, "c": c, "r": r, "m": m, "back": back}


def test_commits_know_their_parents_by_number_and_their_generation(history):
    names = {v: k for k, v in grown(history).items()}
    rows = {names[c]: (s, p, g) for c, s, p, g in ask(history, "select commit, seq, parent_seqs, generation from commits")}
    seq = {name: row[0] for name, row in rows.items()}
    assert {name: ([k for p in row[1] for k in seq if seq[k] == p], row[2]) for name, row in rows.items()} == {
        "a": ([], 0), "b": (["a"], 1), "c": (["a"], 1), "r": (["b"], 2), "m": (["b", "c"], 2), "back": (["m"], 3),
    }  # fmt: skip


def test_a_commit_counts_what_it_changed_against_its_first_parent(history):
    names = {v: k for k, v in grown(history).items()}
    query = "select commit, tensors_changed, tensors_total, bytes_logical, bytes_stored, codecs from commits"
    assert {names[row[0]]: row[1:] for row in ask(history, query)} == {
        "a": (2, 2, 64, 0, '{"ref":2}'),
        "b": (1, 2, 32, 10, '{"dense":1}'),
        "c": (1, 2, 32, 4, '{"sparse":1}'),
        "r": (2, 2, 64, 20, '{"dense":2}'),
        "m": (2, 3, 64, 40, '{"dense":1,"planes":1}'),
        "back": (1, 2, 32, 0, '{"ref":1}'),  # `new` is gone, `b` never moved, and the old `w` is known
    }


def test_delta_rows_are_the_journals_list_for_changed_tensors(history):
    names = grown(history)
    rows = queries.commit_deltas(history, names["m"])
    assert [(row.tensor, row.codec, row.bytes, row.bytes_logical, row.nnz, row.l2) for row in rows] == [
        ("new", "planes", 30, 32, 3, 0.5), ("w", "dense", 10, 32, 3, 0.5),
    ]  # fmt: skip
    assert queries.commit_deltas(history, names["b"])[0].base == digest("w", 1)


def test_a_tensor_listed_but_not_changed_leaves_no_row(history):
    a = history.commit(tensors={"w": "1", "b": "1"})
    b = history.commit(a, tensors={"w": "2", "b": "1"}, deltas=[delta("w", 2), delta("b", 1, "ref", 0)])
    assert [row.tensor for row in queries.commit_deltas(history, b)] == ["w"]


def test_a_list_that_speaks_of_another_tensor_is_not_believed(history):
    a = history.commit(tensors={"w": "1"}, deltas=[delta("w", 2)])
    assert [(row.target, row.codec, row.bytes) for row in queries.commit_deltas(history, a)] == [(digest("w", 1), "ref", 0)]


def test_the_tensors_view_spells_out_every_snapshot_in_its_order(history):
    names = grown(history)
    for commit, content in {"m": {"b": 1, "new": 1, "w": 4}, "back": {"b": 1, "w": 1}, "r": {"b": 9, "w": 9}}.items():
        rows = ask(history, "select name, dtype, shape, digest from tensors where snapshot = ?", history.snapshot_of(names[commit]))
        assert sorted(rows) == [(name, "F32", [4, 2], digest(name, value)) for name, value in content.items()]


def test_a_tensor_that_did_not_change_is_written_once(history):
    tensors = {f"t{i}": "0" for i in range(50)}
    last = [history.commit(tensors=tensors)]
    for step in range(20):
        tensors[f"t{step}"] = "1"
        last = [history.commit(*last, tensors=tensors)]
    assert ask(history, "select count(*) from tensor_entries") == [(50 + 20,)]
    assert ask(history, "select count(*) from tensors") == [(50 * 21,)]


def test_refs_are_what_the_reflog_says_last(history):
    names = grown(history)
    assert queries.refs(history) == {"heads/main": names["r"], "tags/bold": names["r"]}
    newest = queries.reflog(history, "heads/main")
    assert [(row.reason, row.new) for row in newest][:2] == [("accept", names["r"]), ("rollback", names["back"])]
    assert newest[-1].old is None
    assert [row.name for row in queries.reflog(history, n=2)] == ["heads/dev", "heads/main"]


def test_an_acceptance_changes_the_outcome_and_not_the_commit(history):
    names = grown(history)
    detail = queries.commit_detail(history, names["r"])
    assert detail.verdict["outcome"] == "accepted"
    assert detail.record["verdict"]["outcome"] == "refused"
    assert detail.branch is None
    assert [row.outcome for row in queries.log(history, [names["r"]])] == ["accepted", "ungated", "ungated"]
    rules = ask(history, 'select outcome, "limit", got, p, n from verdicts where "commit" = ? order by seq', names["r"])
    assert rules == [("fail", 0.02, 0.5, 0.01, 40), ("waived", 0.02, 0.5, 0.01, 40)]
    assert dict(ask(history, "select commit, outcome from outcomes"))[names["r"]] == "accepted"


def test_inputs_and_artifacts_of_a_commit_are_rows(history):
    data = InputRecord("data", "oz.txt", "d" * 64, 1234)
    artifact = ArtifactRecord("fisher", "key", blob_digest(b"x"), 99)
    a = history.commit(tensors={"w": "1"}, inputs=(data,), artifacts=(artifact,))
    assert ask(history, "from datasets") == [(a, "data", "oz.txt", "d" * 64, 1234)]
    assert ask(history, "from artifacts") == [(a, "fisher", "key", blob_digest(b"x"), 99)]


def test_objects_of_a_pack_are_listed_once(history):
    names = grown(history)
    pack = [Packed(digest("w", 2))]
    history.commit(names["b"], tensors={"w": "7"}, pack=pack)  # the same pack named again
    rows = ask(history, "select digest, kind, size, stored, codec from objects order by seq, digest")
    assert sorted(rows) == sorted(
        [
            (digest("w", 1), "tensor", 100, 40, "dense"),
            (digest("b", 1), "tensor", 100, 40, "raw"),
            (digest("w", 2), "tensor", 100, 40, "dense"),
        ]
    )
    assert ask(history, "from storage") == [("dense", 2, 200, 80), ("raw", 1, 100, 40)]


def test_a_commit_recorded_twice_is_one_commit(history):
    a = history.commit(tensors={"w": "1"})
    history.record({"kind": "commit", "commit": a, "pack": None, "deltas": None, "refs": [{"name": "heads/two", "old": None, "new": a}]})
    assert ask(history, "select count(*) from commits") == [(1,)]
    assert queries.refs(history) == {"heads/main": a, "heads/two": a}


def test_the_journal_is_mirrored_to_the_last_line(history):
    grown(history)
    assert ask(history, "select seq, hash, kind from journal order by seq") == [(r.seq, r.hash, r.body["kind"]) for r in history.journal]


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_rows_do_not_depend_on_how_records_are_batched(history, batch, tmp_path):
    grown(history)
    whole = dump(history)
    other = History(tmp_path / "other")
    other.journal, other.objects, other.path = history.journal, history.objects, history.path
    with memory() as connection:
        assert project(connection, RepositorySource(other), other.journal, batch) == len(history.journal)
        tables = [table for table in whole if table not in ("predictions", "loaded")]
        assert {table: sorted(map(repr, connection.execute(f"from {table}").fetchall())) for table in tables} == {
            t: whole[t] for t in tables
        }


def test_rows_do_not_depend_on_what_the_projector_remembers(history, monkeypatch):
    monkeypatch.setattr("mlc.registry.catalog.projection.REMEMBERED", 1)
    grown(history)
    narrow = dump(history)
    monkeypatch.undo()
    history.catalog.rebuild(history)
    assert dump(history) == narrow


def test_large_and_small_inserts_write_the_same_rows(history, monkeypatch):
    grown(history)
    small = dump(history)
    monkeypatch.setattr("mlc.registry.catalog.insertion.BULK", 1)
    history.catalog.rebuild(history)
    assert dump(history) == small


def test_an_unknown_kind_of_record_moves_the_catalog_on(history):
    history.record({"kind": "something later versions write"})
    assert ask(history, "select applied_seq from meta") == [(2,)]


# --- damage ------------------------------------------------------------------------------------------------------


def test_a_missing_snapshot_costs_its_tensors_and_nothing_else(history):
    names = grown(history)
    lost = history.snapshot_of(names["c"])
    del history.objects[lost]
    assert [row.commit for row in queries.log(history, [names["back"]])] == [names[k] for k in ("back", "m", "c", "b", "a")]
    assert ask(history, "select object from unreadable") == [(lost,)]
    assert "1 objects could not be read" in history.warnings[0]
    assert ask(history, "select count(*) from tensors where snapshot = ?", history.snapshot_of(names["m"])) == [(3,)]


def test_a_missing_commit_leaves_its_children_in_the_log(history):
    names = grown(history)
    (history.path / "objects" / "commits" / f"{names['b']}.json").unlink()
    assert [row.commit for row in queries.log(history, [names["m"]])] == [names[k] for k in ("m", "c", "a")]
    assert names["b"] in {row[0] for row in ask(history, "select object from unreadable")}


def test_a_changed_commit_file_is_not_believed(history):
    a = history.commit(tensors={"w": "1"}, message="as it was")
    file = history.path / "objects" / "commits" / f"{a}.json"
    file.write_bytes(file.read_bytes().replace(b"as it was", b"as it wax"))
    assert queries.log(history, None) == []
    assert ask(history, "select object from unreadable") == [(a,)]


def test_lost_packs_deltas_and_evaluations_are_named(history):
    a = history.commit(tensors={"w": "1"}, deltas=[delta("w", 1)], pack=[Packed(digest("w", 1))])
    number = history.evaluate(a, {"example": ["1"]})
    lost = {history.journal[1].body["deltas"], history.journal[number - 1].body["evaluation"]}
    for name in lost:
        del history.objects[name]
    lost |= set(history.objects.packs)
    history.objects.packs.clear()
    assert {row[0] for row in ask(history, "select object from unreadable")} == lost
    assert queries.commit_deltas(history, a)[0].codec == "ref"


def test_projector_keeps_no_transaction_of_its_own(history):
    grown(history)
    with memory() as connection:
        projector = Projector(connection, RepositorySource(history))
        connection.execute("begin")
        for record in history.journal:
            projector.project(record)
        projector.flush()
        connection.execute("rollback")
        assert connection.execute("select count(*) from commits").fetchone() == (0,)
