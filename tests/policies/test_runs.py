"""Runs: state that survives a kill, artifacts that survive a refusal, and one result however often it is attempted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mlc.policies import lifecycle
from mlc.policies.artifacts import ArtifactStore
from mlc.policies.retention import sweep
from mlc.policies.runs import Runs
from mlc.registry.errors import CorruptRecord, GateRefused, Interrupted, Locked, NotFound, StalePlan
from mlc.tests.policies.operations import Remembering, Scale, Steps, times_computed


def interrupted(repo, **how) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        lifecycle.run(repo, Steps(stop=2), author="ada", message="counting", seed=5, **how)
    return caught.value


# --- resuming --------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was_and_reaches_the_same_snapshot(repo, root):
    whole = lifecycle.run(repo, Steps(), ref=root, branch="whole", author="a")

    fault = interrupted(repo)
    assert (fault.exit_code, fault.message) == (130, "stopped; the state after step 2 is kept")
    assert fault.hint == f"mlc steps --resume {fault.details['run']}"
    assert repo.branches()["main"] == root
    info = Runs(repo).list()[0]
    assert (info.id, info.step, info.active, info.branch, info.start) == (fault.details["run"], 2, False, "main", root)

    outcome = lifecycle.run(repo, Steps(stop=2), resume=info.id, author="somebody else")

    assert outcome.commit.snapshot == whole.commit.snapshot
    assert outcome.commit.check == {"resumed_at": 2}
    assert outcome.warnings[:4] == ("step 1", "step 2", "step 3", "step 4")  # what was noted before the stop too
    assert (outcome.commit.author, outcome.commit.message, outcome.commit.seeds) == ("ada", "counting", {"run": 5})
    assert repo.branches()["main"] == outcome.commit_id
    assert Runs(repo).list() == []


def test_latest_takes_up_the_last_run_without_saying_its_options_again(repo, root, monkeypatch):
    from mlc.ops import catalog

    monkeypatch.setattr(catalog, "load", {"steps": Steps}.__getitem__)
    interrupted(repo)
    assert lifecycle.run(repo, None, resume="latest", author="a").commit.op.params == {"steps": 4, "stop": 2}
    with pytest.raises(NotFound, match="there is no unfinished run to resume"):
        lifecycle.run(repo, None, resume="latest", author="a")


def test_other_options_do_not_resume_a_run(repo, root):
    fault = interrupted(repo)
    with pytest.raises(StalePlan) as caught:
        lifecycle.run(repo, Steps(steps=9, stop=2), resume=fault.details["run"], author="a")
    assert caught.value.exit_code == 9
    assert len(Runs(repo).list()) == 1


def test_a_run_that_somebody_works_on_is_not_taken_over(repo, root):
    fault = interrupted(repo)
    runs = Runs(repo)
    with runs.begin(runs.info(fault.details["run"])):
        assert runs.list()[0].active
        with pytest.raises(Locked):
            lifecycle.run(repo, Steps(stop=2), resume=fault.details["run"], author="a")
    assert not runs.list()[0].active


def test_a_kill_is_survived(repo, root):
    code = f"""
    import os, signal, sys
    from mlc.registry.repository import Repository
    from mlc.policies import lifecycle
    from mlc.policies.runs import ActiveRun
    from mlc.tests.policies.operations import Steps
    save = ActiveRun.save_state
    def dying(self, step, tensors, meta):
        save(self, step, tensors, meta)
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    ActiveRun.save_state = dying
    lifecycle.run(Repository.open({str(repo.path)!r}), Steps(), author="a")
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    info = Runs(repo).list()[0]
    assert (info.step, info.active) == (3, False)

    outcome = lifecycle.run(repo, Steps(), resume=info.id, author="a")

    assert outcome.commit.check == {"resumed_at": 3}
    whole = lifecycle.run(repo, Steps(), ref=root, branch="whole", author="a")
    assert outcome.commit.snapshot == whole.commit.snapshot
    assert list((repo.path / "pins").iterdir()) == []


def test_a_run_that_died_right_after_its_commit_is_recorded_once(repo, root, monkeypatch):
    from mlc.registry.transaction import Transaction

    commit = Transaction.commit

    def dies_after(self, *args, **facts):
        commit(self, *args, **facts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Transaction, "commit", dies_after)
    with pytest.raises(Interrupted) as caught:
        lifecycle.run(repo, Scale(factor=1.01), author="a")
    monkeypatch.setattr(Transaction, "commit", commit)
    tip = repo.branches()["main"]
    assert tip != root

    outcome = lifecycle.run(repo, Scale(factor=1.01), resume=caught.value.details["run"], author="a")

    assert (outcome.commit_id, outcome.commit.id, outcome.ref_moved) == (tip, tip, True)
    assert repo.branches()["main"] == tip
    assert Runs(repo).list() == []


def test_a_damaged_state_is_an_error_with_a_way_out(repo, root):
    fault = interrupted(repo)
    state = repo.path / "runs" / fault.details["run"] / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(data[:-7])
    with pytest.raises(CorruptRecord) as caught:
        lifecycle.run(repo, Steps(stop=2), resume=fault.details["run"], author="a")
    assert caught.value.hint == f"rm {state}"

    state.unlink()
    assert lifecycle.run(repo, Steps(stop=2), resume=fault.details["run"], author="a").commit.check == {"resumed_at": 0}


def test_runs_are_found_by_prefix_and_forgotten_on_demand(repo, root):
    runs = Runs(repo)
    first, second = interrupted(repo).details["run"], interrupted(repo).details["run"]
    assert runs.find(first).id == first
    with pytest.raises(NotFound, match="fits 2 runs"):
        runs.find(first[:4])
    with pytest.raises(NotFound, match="no unfinished run nothing"):
        runs.find("nothing")
    with pytest.raises(NotFound):
        runs.find(None, "update")
    runs.forget(second)
    assert [info.id for info in runs.list()] == [first]


# --- artifacts -------------------------------------------------------------------------------------------


def test_an_artifact_is_kept_also_when_the_operation_is_refused_and_when_it_never_came_to_a_commit(repo, root, rules):
    rules('[[rule]]\nid = "no"\nmetric = "delta.tensors_total"\nmax = 0')
    with pytest.raises(GateRefused):
        lifecycle.run(repo, Remembering(), author="a")
    rules('[[rule]]\nid = "no"\nmetric = "delta.tensors_total"\nmin = 0')
    outcome = lifecycle.run(repo, Remembering("other"), author="a")
    assert times_computed(repo) == 1
    assert repo.blob(outcome.commit.artifacts[0].digest) == b"a long sum"


def test_an_artifact_survives_a_run_that_ended_before_its_commit(repo):
    store = ArtifactStore(repo)
    assert store.get("kind", "key", lambda: b"bytes")[0] == b"bytes"

    def never() -> bytes:
        raise AssertionError("computed again")

    assert ArtifactStore(repo).get("kind", "key", never)[0] == b"bytes"
    assert ArtifactStore(repo).get("kind", "other key", lambda: b"more")[0] == b"more"


def test_a_damaged_artifact_is_computed_again(repo):
    store = ArtifactStore(repo)
    _, record = store.get("kind", "key", lambda: b"bytes")
    (store.path / record.digest).write_bytes(b"bytez")
    assert store.get("kind", "key", lambda: b"bytes") == (b"bytes", record)


# --- retention -------------------------------------------------------------------------------------------


def test_what_was_left_behind_long_ago_is_swept_and_the_rest_stays(repo, root):
    from datetime import UTC, datetime, timedelta

    fault = interrupted(repo)
    assert sweep(repo, datetime.now(UTC)) == []
    runs = Runs(repo)
    with runs.begin(runs.info(fault.details["run"])):
        assert sweep(repo, datetime.now(UTC) + timedelta(days=31)) == []  # somebody works on it
    assert sweep(repo, datetime.now(UTC) + timedelta(days=31)) == [fault.details["run"]]
    assert runs.list() == []
