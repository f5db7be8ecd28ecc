"""`mlc patch` as it is typed: documents, exit codes, and sentences for people."""

from __future__ import annotations

import pytest

from mlc.tests.cli.running import ok, run_cli

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def robust(lenient):
    """A branch `robust` that moves one tensor of main."""
    from safetensors.torch import load_file, save_file

    ok("export", "main", lenient.root / "moved")
    path = lenient.root / "moved" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, UP: tensors[UP] * 1.01}, path, metadata={"format": "pt"})
    ok("commit", lenient.root / "moved", "--branch", "robust")
    return lenient


def test_a_patch_is_taken_laid_over_listed_and_removed(robust):
    took = ok("patch", "extract", "robust", "main", "--name", "fog", "--bits", "ternary", "--strength", "1.25", "-m", "why")
    patch = took["patch"]
    assert (patch["name"], patch["bits"], patch["density"], patch["strength"], patch["message"]) == ("fog", "ternary", 0.4, 1.25, "why")
    assert patch["bytes"] < patch["full_bytes"] == 4 * 32 * 16
    assert "nothing is projected out" in took["warnings"][0]
    clean = ok("show", "main")["commit"]

    laid = ok("patch", "apply", "fog", "-m", "foggy")
    commit = laid["commit"]
    assert commit["op"]["name"] == "patch"
    assert commit["check"]["patches"] == [{"name": "fog", "signature": patch["signature"], "strength": 1.25}]
    assert commit["delta"]["tensors_changed"] == 1
    assert [(a["kind"], a["digest"]) for a in commit["artifacts"]] == [("signature", patch["signature"])]
    listed = ok("patch", "list")
    assert listed["applied"] == [{"name": "fog", "signature": patch["signature"], "strength": 1.25}]
    assert (listed["clean"], [p["name"] for p in listed["patches"]]) == (clean["id"], ["fog"])
    assert ok("patch", "show", "fog")["patch"]["changes"] == [{"name": UP, "shape": [32, 16], "how": "added"}]

    off = ok("patch", "remove", "fog")["commit"]
    assert off["snapshot"] == clean["snapshot"]
    assert ok("patch", "list")["applied"] == []


def test_people_read_what_a_patch_weighs_and_what_lies_over_a_version(robust):
    assert run_cli("patch", "list").out == "No patch yet.\n"
    made = run_cli("patch", "extract", "robust", "main", "--name", "fog")
    assert "Patch fog\n" in made.out
    assert "% of the same tensors in float32" in made.out
    assert "8-bit; all layers, for strength 1" in made.out
    assert "warning: the robust version was trained from the clean one" in made.err
    assert "next: mlc patch apply fog --branch fog" in made.err
    assert "Patches: fog at 0.5; 1 tensor changed against the clean version" in run_cli("patch", "apply", "fog", "--strength", "0.5").out
    table = run_cli("patch", "list").out
    assert "*   fog" in table
    assert "0.5" in table
    assert "shifted" not in run_cli("patch", "show", "fog").out
    assert "is the clean one again" in run_cli("patch", "remove", "fog").out


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("extract", "robust", "main", "--name", "fog", "--bits", "3"), 2, "BadParameter"),
        (("extract", "robust", "main", "--name", "fog", "--density", "0"), 2, "BadParameter"),
        (("extract", "robust", "main"), 2, "UsageError"),
        (("extract", "nowhere", "main", "--name", "fog"), 3, "RefNotFound"),
        (("apply", "fog"), 3, "NotFound"),
        (("apply", "fog", "--strength", "much"), 2, "BadParameter"),
        (("remove", "fog"), 3, "NotFound"),
        (("show", "fog"), 3, "NotFound"),
        (("apply",), 2, "UsageError"),
    ],
)
def test_wrong_words_have_their_exit_codes_and_a_way_on(lenient, words, code, kind):
    ok("branch", "robust", "main")
    answer = run_cli("patch", *words, "--json")
    assert (answer.code, answer.error["kind"], answer.error["exit_code"]) == (code, kind, code)
    assert answer.error["hint"]
    assert answer.out == ""
