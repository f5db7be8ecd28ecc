"""Content from outside: roots, adapters on their base, directories that another tool changed."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from mlc.policies import lifecycle
from mlc.registry.errors import BadInputFile, BadParameter, GateRefused, InputNotFound, RefMoved
from mlc.registry.formats import directory
from mlc.tests.factories import facts_suite, tiny_model
from mlc.tests.policies.operations import NORM, UP, Scale


def sha256(place) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in place.iterdir()}


@pytest.fixture
def changed(tiny, tmp_path):
    """The tiny model as another tool left it: one tensor halved, a file added."""
    from safetensors.torch import load_file, save_file

    place = shutil.copytree(tiny, tmp_path / "changed")
    tensors = load_file(place / "model.safetensors")
    tensors[UP] = tensors[UP] * 0.5
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    (place / "NOTES.md").write_text("halved")
    return place


# --- roots -----------------------------------------------------------------------------------------------


def test_an_import_is_an_ungated_root_that_restores_to_the_byte(repo, tiny, tmp_path):
    outcome = lifecycle.import_model(repo, tiny, author="ada", message="from the lab")

    commit = repo.commit(repo.branches()["main"])
    assert (commit.parents, commit.verdict.outcome, commit.op.name) == ((), "ungated", "import")
    assert commit.op.params == {"source": "tiny"}  # no path of this machine
    assert (outcome.commit_id, outcome.ref_moved, outcome.branch) == (commit.id, True, "main")
    directory.export(repo, repo.snapshot(commit.snapshot), tmp_path / "out")
    assert sha256(tmp_path / "out") == sha256(tiny)


def test_the_first_import_sets_the_current_branch_and_later_ones_do_not(repo, tiny, changed):
    lifecycle.import_model(repo, tiny, branch="trunk", author="a")
    assert repo.head() == "trunk"
    lifecycle.import_model(repo, changed, branch="other", author="a")
    assert repo.head() == "trunk"
    assert set(repo.branches()) == {"trunk", "other"}


def test_an_import_is_measured_so_that_the_next_version_has_something_to_be_compared_with(repo, tiny, settings):
    facts_suite(repo.root / "suites")
    settings('[eval]\nsuites = ["suites/*.toml"]')

    commit = lifecycle.import_model(repo, tiny, author="a").commit

    assert set(commit.metrics) == {"facts"}
    assert set(commit.metrics["facts"]) == {"accuracy", "logprob"}
    assert set(commit.evaluations) == {"facts"}
    assert lifecycle.evaluate_rev(repo, "main", "facts", author="a").cached


def test_a_model_that_cannot_be_run_is_imported_with_a_warning(repo, tmp_path, settings):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "gru").mkdir()
    save_file({"gru.weight": torch.ones(3, 4)}, tmp_path / "gru" / "model.safetensors")
    facts_suite(repo.root / "suites")
    settings('[eval]\nsuites = ["suites/*.toml"]')

    outcome = lifecycle.import_model(repo, tmp_path / "gru", author="a")

    assert outcome.ref_moved
    assert any(text.startswith("facts was not measured: this model has no config.json") for text in outcome.warnings)
    lifecycle.run(repo, Scale(tensor="gru.weight", factor=2.0), author="a")  # and it can be changed


def test_an_import_onto_a_branch_that_holds_other_content_is_exit_9(repo, root, tiny, changed):
    before = repo.refs.all()
    with pytest.raises(RefMoved) as caught:
        lifecycle.import_model(repo, changed, author="a")
    assert caught.value.exit_code == 9
    assert "--branch NAME" in caught.value.hint
    assert repo.refs.all() == before

    again = lifecycle.import_model(repo, tiny, author="a")
    assert (again.commit_id, again.ref_moved) == (root, False)
    assert again.warnings == ("main holds exactly this content already: nothing was recorded",)


def test_a_single_file_can_be_imported(repo, tiny):
    commit = lifecycle.import_model(repo, tiny / "model.safetensors", author="a").commit
    assert [file.path for file in repo.snapshot(commit.snapshot).files] == ["model.safetensors"]
    assert commit.op.params == {"source": "model.safetensors"}


def test_a_dry_run_of_an_import_names_its_tensors_and_writes_nothing(repo, tiny):
    files = sorted(p for p in repo.path.rglob("*") if p.is_file())
    plan = lifecycle.import_model(repo, tiny, author="a", dry_run=True).plan
    assert plan.summary == "import tiny as the root of main"
    assert UP in plan.touches
    assert plan.details["tensors"] == len(plan.touches)
    assert sorted(p for p in repo.path.rglob("*") if p.is_file()) == files


@pytest.mark.parametrize("bad", ["nowhere", "empty", "pickle"])
def test_what_cannot_be_imported_leaves_nothing_behind(repo, tmp_path, bad):
    place = tmp_path / bad
    if bad != "nowhere":
        place.mkdir()
    if bad == "pickle":
        (place / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises((InputNotFound, BadInputFile)):
        lifecycle.import_model(repo, place, author="a")
    assert repo.refs.all() == {}
    assert list((repo.path / "tmp").iterdir()) == []
    assert list((repo.path / "pins").iterdir()) == []


def test_remote_code_in_a_config_is_kept_as_bytes_and_said(repo, tiny, tmp_path):
    place = shutil.copytree(tiny, tmp_path / "forged")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (place / "evil.py").write_text("raise SystemExit('ran')")

    outcome = lifecycle.import_model(repo, place, author="a")

    assert outcome.ref_moved
    assert any("evil.py" in text or "auto_map" in text for text in outcome.warnings)
    assert b"auto_map" in repo.view(outcome.commit_id).file("config.json")


# --- children --------------------------------------------------------------------------------------------


def test_a_changed_directory_is_a_gated_child(repo, root, changed):
    outcome = lifecycle.commit_directory(repo, changed, author="a", message="halved")

    commit = outcome.commit
    assert (commit.parents, commit.op.name, commit.verdict.outcome) == ((root,), "commit", "accepted")
    assert repo.branches()["main"] == outcome.commit_id
    assert [d.tensor for d in outcome.deltas if d.codec != "ref"] == [UP]
    assert repo.view(commit.id).file("NOTES.md") == b"halved"


def test_a_changed_directory_that_breaks_a_rule_moves_nothing(repo, root, changed, rules):
    rules('[[rule]]\nid = "still"\nmetric = "delta.tensors_changed"\nmax = 0')
    with pytest.raises(GateRefused) as caught:
        lifecycle.commit_directory(repo, changed, author="a")
    assert repo.refs.all() == {"heads/main": root}
    assert repo.commit(caught.value.details["commit"]).verdict.outcome == "refused"


def test_a_directory_without_a_change_records_nothing(repo, root, tiny):
    outcome = lifecycle.commit_directory(repo, tiny, author="a")
    assert (outcome.commit_id, outcome.ref_moved) == (root, False)
    assert "nothing differs" in outcome.warnings[0]


def test_a_child_that_cannot_run_where_its_parent_could_is_refused(repo, tiny, tmp_path, settings):
    facts_suite(repo.root / "suites")
    settings('[eval]\nsuites = ["suites/*.toml"]')
    lifecycle.import_model(repo, tiny, author="a")
    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "no-such-family"}')

    with pytest.raises(GateRefused, match="not a finite number"):
        lifecycle.commit_directory(repo, broken, author="a")


@pytest.fixture
def adapter(tiny, tmp_path):
    """A PEFT directory with one low-rank pair."""
    import torch
    from safetensors.torch import save_file

    place = tmp_path / "adapter"
    place.mkdir()
    key = f"base_model.model.{UP.removesuffix('.weight')}"
    save_file(
        {f"{key}.lora_A.weight": torch.full((2, 16), 0.1), f"{key}.lora_B.weight": torch.full((32, 2), 0.1)},
        place / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"], "layers_to_transform": [0]}
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


def test_an_adapter_is_a_gated_child_of_its_base_and_seen_merged(repo, root, adapter, tmp_path):
    outcome = lifecycle.import_model(repo, adapter, adapter_of="main", branch="lora", author="a")

    snapshot = repo.snapshot(outcome.commit.snapshot)
    assert (outcome.commit.parents, outcome.commit.verdict.outcome) == ((root,), "accepted")
    assert (snapshot.kind, snapshot.base) == ("adapter", repo.commit(root).snapshot)
    moved = repo.view(outcome.commit_id).tensor(UP) - repo.view(root).tensor(UP)
    assert moved.mean().item() == pytest.approx(0.02, abs=1e-5)
    directory.export(repo, snapshot, tmp_path / "out")
    assert sha256(tmp_path / "out") == sha256(adapter)
    with pytest.raises(BadParameter):
        lifecycle.import_model(repo, adapter, adapter_of=root, author="a")


def test_a_weight_budget_holds_for_an_adapter_as_it_acts_on_its_base(repo, root, adapter, rules):
    rules('[[rule]]\nid = "budget"\nmetric = "delta.max_abs"\nmax = 0.01')
    with pytest.raises(GateRefused, match=r"the largest change of a weight is 0\.02, over 0\.01"):
        lifecycle.import_model(repo, adapter, adapter_of="main", branch="lora", author="a")
    rules('[[rule]]\nid = "budget"\nmetric = "delta.max_abs"\nmax = 0.03')
    lifecycle.import_model(repo, adapter, adapter_of="main", branch="lora", author="a")
    verdict = lifecycle.gate_rev(repo, "lora", author="a")
    assert verdict.rules[0].got == pytest.approx(0.02, abs=1e-5)


def test_a_whole_model_made_from_an_adapter_holds_what_the_adapter_had_merged_in(repo, root, adapter):
    lifecycle.import_model(repo, adapter, adapter_of="main", branch="lora", author="a")
    seen = repo.view(repo.resolve("lora"))

    outcome = lifecycle.run(repo, Scale(tensor=NORM, factor=1.01), ref="lora", author="a")

    snapshot = repo.snapshot(outcome.commit.snapshot)
    assert snapshot.kind == "model"
    whole = repo.view(outcome.commit_id)
    assert whole.names() == seen.names()
    assert (whole.tensor(UP) == seen.tensor(UP)).all()
    assert (whole.tensor(NORM) == seen.tensor(NORM) * 1.01).all()


def test_a_model_of_other_shapes_may_follow(repo, root, tmp_path):
    outcome = lifecycle.commit_directory(repo, tiny_model(tmp_path / "deep", layers=3), author="a")
    assert outcome.ref_moved
