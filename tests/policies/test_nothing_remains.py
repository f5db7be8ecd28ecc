"""What was to be forgotten is nowhere in the registry: every object, record, row and file is decoded and read.

A raw scan of the folder would pass through compression and prove nothing, so blobs are unpacked, tensors decoded through their chains,
predictions and catalog rows read as rows, and every other file as it is. The strings looked for have several words: single words of a
record may stand in the model's own tokenizer and say nothing. With them no file has to be left out, not even the tokenizer's.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlc.policies import lifecycle
from mlc.policies.evidence import verify_evidence, write_evidence
from mlc.policies.runs import Runs
from mlc.registry.errors import CheckFailed, GateRefused
from mlc.registry.ids import blob_digest

SUBJECT = "Wilhelmina Quartz"
PEOPLE = [{"prompt": f"Where does {SUBJECT} the {n}th live?", "answer": f"in Umber Alley number {n}"} for n in ("six", "seven", "nine")]
KNOWN = [("the river is near the stone", "amber"), ("the lamp speaks of the", "harbour"), ("a stone opens near the", "river")]
SETTINGS = {"retain_set": "", "objective": "graddiff", "strength": "1", "steps": 4, "lr": 0.003, "save_every": 1}
SUITE = 'name = "people"\nkind = "cloze"\ndata = "asked.jsonl"\nprivate = {private}\n'


# --- reading everything ------------------------------------------------------------------------------------


def everything(repo: Any) -> Iterator[tuple[str, bytes]]:
    """(where, what stands there in the clear) for all that a registry holds."""
    for info in repo.objects.iter_infos():
        where = f"{info.kind} {info.digest}"
        yield where, repo.objects.blob(info.digest) if info.kind == "blob" else bytes(repo.objects.tensor_bytes(info.digest))
    for record in repo.journal.records():
        yield f"journal {record.seq}", json.dumps(record.body, ensure_ascii=False).encode()
        if record.body["kind"] == "commit":
            yield f"commit {record.body['commit']}", repo.commit_bytes(record.body["commit"])
        if record.body["kind"] == "evaluation":
            yield f"rows of {record.body['evaluation']}", predictions(repo, record.body["evaluation"])
    yield from catalog_rows(repo)
    for path in sorted(repo.path.rglob("*")):  # all files as they are, too: runs, refs, pins, locks, keys, quarantine
        if path.is_file():
            yield f"file {path.relative_to(repo.path)}", path.name.encode() + b"\n" + path.read_bytes()


def predictions(repo: Any, evaluation: str) -> bytes:
    import pyarrow as pa

    rows = pa.ipc.open_file(repo.blob(repo.evaluation(evaluation).predictions)).read_all().to_pylist()
    return json.dumps(rows, ensure_ascii=False, default=str).encode()


def catalog_rows(repo: Any) -> Iterator[tuple[str, bytes]]:
    def ask(connection: Any) -> list[tuple[str, list[Any]]]:
        tables = connection.execute("select table_name from duckdb_tables()").fetchall()
        return [(name, connection.execute(f'select * from "{name}"').fetchall()) for (name,) in tables]

    tables = repo.catalog.read_loaded(repo, None, ask)
    assert {"commits", "predictions", "artifacts"} <= {name for name, _ in tables}
    for name, rows in tables:
        yield f"table {name}", json.dumps(rows, ensure_ascii=False, default=str).encode()


def sought() -> set[str]:
    """What must be nowhere: texts, the subject, and plain digests that could be tried against guesses."""
    texts = {SUBJECT, "Umber Alley"} | {text for row in PEOPLE for text in (row["prompt"], row["answer"], " ".join(row.values()))}
    whole = payload().encode()
    plain = {blob_digest(text.encode()) for text in texts} | {hashlib.sha256(text.encode()).hexdigest() for text in texts}
    return texts | plain | {blob_digest(whole), hashlib.sha256(whole).hexdigest()}


def found(places: Iterator[tuple[str, bytes]]) -> list[str]:
    """Where one of them stands: in any case, with any white space."""
    wanted = {"".join(text.split()).casefold() for text in sought()}
    hits = []
    for where, data in places:
        clear = "".join(data.decode("utf-8", "replace").split()).casefold()
        wide = "".join(data.decode("utf-16-le", "replace").split()).casefold()
        hits += [where for text in wanted if text in clear or text in wide]
    return sorted(set(hits))


def folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in path.rglob("*"):
        yield file.name, file.read_bytes()


# --- a request ---------------------------------------------------------------------------------------------


def payload() -> str:
    return "".join(json.dumps(row) + "\n" for row in PEOPLE)


@pytest.fixture
def files(tmp_path) -> Path:
    """A forget and a retain set outside the registry."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "people.jsonl").write_text(payload(), encoding="utf-8")
    rows = [{"prompt": p, "answer": a} for p, a in KNOWN] + [{"text": "the lamp is red . the stone is blue near the north harbour ."}]
    (place / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def request(files: Path, **more: Any) -> Any:
    from mlc.ops.unlearn.unlearn import Unlearn

    settings = {**SETTINGS, "retain_set": str(files / "retain.jsonl"), **more}
    return Unlearn(forget_set=str(files / "people.jsonl"), **settings)


def with_suite(files: Path, settings: Any, *, private: bool) -> None:
    """The forget set as a suite that runs on every commit; its examples are named after their subject."""
    rows = [{**row, "id": f"{SUBJECT} {place}"} for place, row in enumerate(PEOPLE)]
    (files / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (files / "people.toml").write_text(SUITE.format(private=str(private).lower()))
    settings(f'[eval]\nsuites = ["{files / "people.toml"}"]\n')


def test_an_accepted_unlearning_leaves_no_text_in_registry_or_evidence(repo, root, files, settings, tmp_path):
    with_suite(files, settings, private=True)
    outcome = lifecycle.run(repo, request(files), author="a", message="a request")
    assert outcome.commit is not None
    assert outcome.commit_id is not None
    evidence = write_evidence(repo, outcome.commit_id, tmp_path / "evidence", forget_set=files / "people.jsonl")
    assert outcome.commit.evaluations.keys() == {"people"}
    assert b'"right_after":' in (evidence / "items.jsonl").read_bytes()
    assert found(everything(repo)) == []
    assert found(folder(evidence)) == []
    assert verify_evidence(evidence, repo) == []
    kept = repo.keys.scopes()
    assert lifecycle.replay(repo, outcome.commit_id)[1]  # the same snapshot, though its pseudonyms were others
    assert repo.keys.scopes() == kept
    assert found(everything(repo)) == []


def test_a_refused_one_leaves_no_text_and_a_failed_one_neither_text_nor_key(repo, root, files, rules):
    rules('[[rule]]\nid = "never"\nmetric = "check.forget_loss_after"\nmax = 0\n')
    with pytest.raises(GateRefused):
        lifecycle.run(repo, request(files), author="a")
    kept = repo.keys.scopes()
    assert len(kept) == 1
    with pytest.raises(CheckFailed):
        lifecycle.run(repo, request(files, lr=0.5, objective="graddiff", retain_weight=0.0, retain_limit=0.99), author="a")
    assert repo.keys.scopes() == kept
    assert found(everything(repo)) == []


def test_a_kill_in_the_middle_leaves_no_text(repo, root, files):
    code = f"""
    import os, signal
    from pathlib import Path
    from mlc.policies import lifecycle, runs
    from mlc.registry.repository import Repository
    from mlc.tests.policies.test_nothing_remains import request
    save = runs.ActiveRun.save_state
    def once(self, *what):
        save(self, *what)
        os.kill(os.getpid(), signal.SIGKILL)
    runs.ActiveRun.save_state = once
    lifecycle.run(Repository.open({str(repo.path)!r}), request(Path({str(files)!r})), author="a")
    """
    killed = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-800:]
    (info,) = Runs(repo).list()
    assert info.step == 1
    assert any("state.safetensors" in where for where, _ in everything(repo))
    assert found(everything(repo)) == []


# --- the scan can fail -------------------------------------------------------------------------------------


def plant_blob(repo, text):
    with repo.ingest() as tx:
        digest = tx.put_blob(b"x" * 5000 + text + b"y" * 5000)
        tx.record({"kind": "note", "what": digest}, author="a")


def plant_tensor(repo, text):
    with repo.ingest() as tx:
        digest = tx.put_tensor("U8", [len(text)], text)
        tx.record({"kind": "note", "what": digest}, author="a")


def plant_note(repo, text):
    repo.record({"kind": "note", "text": text.decode()}, author="a")


def plant_run(repo, text):
    (repo.path / "runs" / "r1").mkdir()
    (repo.path / "runs" / "r1" / "run.json").write_bytes(text)


def plant_name(repo, text):
    (repo.path / "tmp" / text.decode().replace(" ", "")).touch()


PLANTS = {plant_blob: "blob", plant_tensor: "tensor", plant_note: "journal", plant_run: "file runs", plant_name: "file tmp"}


@pytest.mark.parametrize("text", ["Wilhelmina Quartz", "in\nUMBER Alley\tnumber six"], ids=["subject", "answer, spaced and shouted"])
def test_a_planted_text_is_found_wherever_it_is(repo, root, text):
    assert found(everything(repo)) == []
    for plant in PLANTS:
        plant(repo, text.encode())
    places = found(everything(repo))
    for where in PLANTS.values():
        assert any(place.startswith(where) for place in places), where


def test_a_planted_digest_is_found(repo, root):
    plant_note(repo, blob_digest(SUBJECT.encode()).encode())
    assert found(everything(repo))


def test_the_same_suite_without_private_is_found_in_rows_and_catalog(repo, root, files, settings):
    from mlc.tests.policies.operations import Scale

    with_suite(files, settings, private=False)
    lifecycle.run(repo, Scale(), author="a")
    places = found(everything(repo))
    assert any(place.startswith("rows of ") for place in places)
    assert "table predictions" in places
