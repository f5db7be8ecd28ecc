"""Impact: what still carries a data set, by the record alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlc.ops.data.corpus import read_corpus
from mlc.ops.data.identity import Documents, documents, identities
from mlc.policies import lifecycle
from mlc.policies.impact import impact
from mlc.policies.traces import sought
from mlc.registry.errors import AmbiguousId, BadInputFile, CorruptRecord, GateRefused, NotFound
from mlc.registry.ids import blob_digest
from mlc.registry.keys import request_scope
from mlc.registry.records import OperationRecord
from mlc.tests.policies.operations import Forget, Learn, Scale
from mlc.tests.policies.test_imports import adapter  # noqa: F401  # a fixture

PEOPLE = [{"prompt": f"Where does person {n} live?", "answer": f"in house {n}"} for n in range(5)]


def rows(path: Path, people: list[dict], **more) -> str:
    path.write_text("".join(json.dumps({**row, **more}) + "\n" for row in people), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return rows(tmp_path / "people.jsonl", PEOPLE)


def states(repo, words: str) -> dict[str, str]:
    return {found.id: found.mark.state for found in impact(repo, sought(repo, words)).commits}


def learn(repo, data, **how):
    return lifecycle.run(repo, Learn(data), author="a", **how).commit_id


def forget(repo, data, after: float = 0.0, **how):
    return lifecycle.run(repo, Forget(data, after), author="a", **how).commit_id


# --- what carries it -------------------------------------------------------------------------------------


def test_an_update_and_all_that_follows_from_it_carry_its_data(repo, root, data):
    learned = learn(repo, data)
    after = lifecycle.run(repo, Scale(), author="a").commit_id
    aside = lifecycle.run(repo, Scale(factor=3.0), author="a", ref=root, branch="aside").commit_id
    found = impact(repo, sought(repo, data))
    assert [(c.id, c.mark.state, c.refs) for c in found.commits] == [(learned, "carries", ()), (after, "carries", ("heads/main",))]
    assert found.commits[0].mark.why == "read people.jsonl as its data"
    assert found.carriers == 2
    assert aside not in states(repo, data)


def test_another_file_with_some_of_the_records_finds_the_update_that_read_them(repo, root, data, tmp_path):
    learned = learn(repo, data)
    other = [{"text": "Where does   person 3 live?\tin house 3"}, {"text": "nobody ever read this"}]
    found = impact(repo, sought(repo, rows(tmp_path / "request.jsonl", other)))
    assert [(c.id, len(c.mark.left), c.mark.why) for c in found.commits] == [(learned, 1, "its corpus holds 1 of 2 records")]


def test_lines_of_a_running_text_are_records(repo, root, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the first line\n\nthe  second line\n", encoding="utf-8")
    learned = learn(repo, str(text))
    assert states(repo, rows(tmp_path / "a.jsonl", [{"text": "the second line"}])) == {learned: "carries"}
    assert states(repo, rows(tmp_path / "b.jsonl", [{"text": "the first line the second line"}])) == {}


def test_a_file_that_nobody_read_is_an_honest_empty_answer(repo, root, data):
    found = impact(repo, sought(repo, data))
    assert found.to_json() == {
        "data": {"name": "people.jsonl", "digest": blob_digest(Path(data).read_bytes()), "records": 5},
        "commits": [],
        "refs": {"branches": {}, "tags": {}, "aliases": {}},
        "carriers": 0,
    }


def test_a_digest_may_be_short_and_says_so_when_it_fits_nothing_or_two(repo, root, data, tmp_path):
    learned = learn(repo, data)
    digest = blob_digest(Path(data).read_bytes())
    for words in (digest, f"blake3:{digest}", digest[:8]):
        assert states(repo, words) == {learned: "carries"}
    for words in ("0" * 8, "nowhere.jsonl", digest[:7], f"hmac:{'0' * 12}:{'0' * 64}"):
        with pytest.raises(NotFound) as caught:
            sought(repo, words)
        assert caught.value.exit_code == 3


def test_a_prefix_of_two_digests_is_ambiguous(repo, root, data, monkeypatch, tmp_path):
    learn(repo, data)
    learn(repo, rows(tmp_path / "more.jsonl", PEOPLE[:1]))
    import re

    from mlc.policies import traces

    monkeypatch.setattr(traces, "_DIGEST", re.compile("()any"))
    with pytest.raises(AmbiguousId):
        sought(repo, "any")


def test_an_unreadable_file_says_the_line_and_not_the_text(repo, root, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "the secret question"}\n', encoding="utf-8")
    with pytest.raises(BadInputFile, match="line 1") as caught:
        sought(repo, str(bad))
    assert "secret" not in caught.value.message
    with pytest.raises(BadInputFile):
        sought(repo, str(tmp_path))


def merged(repo, *parents: str) -> str:
    """A commit of several parents, with content of its own."""
    first = repo.commit(parents[0])
    content = repo.snapshot(first.snapshot)
    with repo.ingest() as tx:
        snapshot = tx.put_snapshot(replace(content, tensors=content.tensors[len(parents) :]))
        record = OperationRecord("merge", 1, {"of": list(parents)})
        return tx.commit(replace(first, parents=parents, snapshot=snapshot, op=record, inputs=(), artifacts=()))


def test_a_merge_carries_what_any_of_its_ingredients_carries(repo, root, data):
    learned = learn(repo, data)
    gone = forget(repo, data)
    aside = lifecycle.run(repo, Scale(factor=3.0), author="a", ref=root, branch="aside").commit_id
    dirty, clean = merged(repo, aside, learned), merged(repo, aside, gone, root)
    found = states(repo, data)
    assert (found[dirty], found[clean], aside in found) == ("carries", "unlearned", False)


def test_an_adapter_on_a_carrier_is_a_carrier(repo, root, data, adapter):  # noqa: F811
    learned = learn(repo, data)
    child = lifecycle.import_model(repo, adapter, adapter_of="main", branch="lora", author="a").commit_id
    other = lifecycle.import_model(repo, adapter, adapter_of=root, branch="other", author="a").commit_id
    assert states(repo, data) == {learned: "carries", child: "carries"}
    assert other != child


# --- what was unlearned ----------------------------------------------------------------------------------


def test_an_accepted_unlearning_and_what_follows_are_unlearned_and_what_was_before_still_carries(repo, root, data):
    learned = learn(repo, data)
    side = lifecycle.run(repo, Scale(), author="a", ref=learned, branch="side").commit_id
    gone = forget(repo, data)
    after = lifecycle.run(repo, Scale(), author="a").commit_id
    found = impact(repo, sought(repo, data))
    assert {c.id: c.mark.state for c in found.commits} == {learned: "carries", side: "carries", gone: "unlearned", after: "unlearned"}
    assert found.carriers == 2
    assert next(c for c in found.commits if c.id == gone).mark.why == "unlearned, as it claims, forget recall 0 measured"
    assert found.to_json()["refs"]["branches"] == {
        "main": {"commit": after, "state": "unlearned"},
        "side": {"commit": side, "state": "carries"},
    }


def test_where_nobody_recorded_how_the_data_came_in_the_lineage_is_believed_to_carry_it(repo, root, data):
    middle = lifecycle.run(repo, Scale(), author="a").commit_id
    gone = forget(repo, data)
    aside = lifecycle.run(repo, Scale(factor=3.0), author="a", ref=root, branch="aside").commit_id
    assert states(repo, data) == {root: "unknown origin", middle: "carries", gone: "unlearned", aside: "carries"}


def test_what_was_read_by_an_update_is_not_believed_of_the_root(repo, root, data):
    learned = learn(repo, data)
    gone = forget(repo, data)
    assert states(repo, data) == {learned: "carries", gone: "unlearned"}


def test_parts_unlearned_one_after_the_other_make_a_whole(repo, root, data, tmp_path):
    learn(repo, data)
    half = rows(tmp_path / "half.jsonl", PEOPLE[:3])
    first = forget(repo, half)
    second = forget(repo, rows(tmp_path / "rest.jsonl", PEOPLE[3:]))
    found = {c.id: c.mark for c in impact(repo, sought(repo, data)).commits}
    assert (found[first].state, len(found[first].left)) == ("carries", 2)
    assert found[second].state == "unlearned"
    assert states(repo, half)[first] == "unlearned"


def test_a_refused_unlearning_claims_nothing_until_it_is_accepted(repo, root, data):
    learned = learn(repo, data)
    with pytest.raises(GateRefused) as caught:
        forget(repo, data, after=0.5)
    kept = caught.value.details["commit"]
    assert states(repo, data) == {learned: "carries", kept: "carries"}
    failed = {rule["rule"] for rule in caught.value.details["verdict"]["rules"] if rule["outcome"] == "fail"}
    lifecycle.accept(repo, kept, waive=sorted(failed), reason="asked for", author="a")
    assert states(repo, data) == {learned: "carries", kept: "unlearned"}


def test_going_back_brings_the_data_back(repo, root, data):
    learned = learn(repo, data)
    gone = forget(repo, data)
    back = lifecycle.rollback(repo, learned, author="a").commit_id
    clean = lifecycle.rollback(repo, root, author="a").commit_id
    assert states(repo, data) == {learned: "carries", gone: "unlearned", back: "carries"}
    assert clean not in states(repo, data)


def test_an_unlearning_taken_back_later_carries_again(repo, root, data):
    from mlc.tests.policies.operations import GATE

    learn(repo, data)
    gone = forget(repo, data)
    lifecycle.run(repo, Scale(GATE), author="a")
    again = lifecycle.revert(repo, gone, author="a").commit_id
    assert states(repo, data)[again] == "carries"


def test_without_the_request_key_nobody_can_tell_what_was_forgotten(repo, root, data):
    gone = forget(repo, data)
    (scope,) = [name for name in repo.keys.scopes() if name.startswith(request_scope(""))]
    keyed = next(i.digest for i in repo.commit(gone).inputs if i.role == "forget")
    repo.keys.destroy(scope)
    assert states(repo, data) == {}
    assert states(repo, keyed)[gone] == "unlearned"  # the commit still names its own request


def test_asking_makes_no_key(repo, root, data):
    impact(repo, sought(repo, data))
    assert repo.keys.scopes() == []


# --- the parts -------------------------------------------------------------------------------------------


def test_documents_are_sorted_short_keyed_and_found_only_under_their_key(repo, data):
    made = documents(identities(read_corpus(data)), lambda form: repo.keys.pseudonym("registry", form))
    listed = Documents.parse(made)
    assert len(made) == len(made.split(b"\n")[0]) + 1 + 5 * 8
    assert made == documents(reversed(list(identities(read_corpus(data)))), lambda form: repo.keys.pseudonym("registry", form))
    form = next(identities(read_corpus(data)))
    assert form == b"Where does person 0 live? in house 0"
    assert listed.has(repo.keys.pseudonym("registry", form))
    assert not listed.has(repo.keys.pseudonym("request-1", form))
    for damaged in (made[:-1], b"", b"mlc documents 1 x y\n", made.replace(b" 5\n", b" 6\n")):
        with pytest.raises(CorruptRecord):
            Documents.parse(damaged)


def test_impact_imports_nothing_heavy():
    code = (
        "import sys, mlc.policies.impact; print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
