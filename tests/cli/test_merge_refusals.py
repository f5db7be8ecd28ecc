"""What a merge refuses, typed as a stranger would: the code, the first thing that does not fit, a suggestion, nothing recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import sibling


@pytest.fixture(scope="module")
def laid(tmp_path_factory) -> Path:
    """A registry with siblings `a` and `b` of `main`, and versions that do not fit them. Not to be changed."""
    root = tmp_path_factory.mktemp("refusals")
    assert run_cli("init", root / "work", "-q").code == 0
    base = MemoryView.of(tiny_model(root / "base"))
    files = {f.path: base.file(f.path) or b"" for f in base.files()}
    tensors = {n: base.tensor(n) for n in base.names()}
    words = json.loads(files["tokenizer.json"])
    words["model"]["vocab"]["novel"] = 64
    config = json.loads(files["config.json"])
    more = torch.cat([tensors["model.embed_tokens.weight"], torch.ones(1, 16)])
    renamed = files["tokenizer.json"].replace(b'"w36"', b'"other36"')
    made = {
        "a": sibling(base, 1),
        "b": sibling(base, 2),
        "hole": MemoryView({n: x for n, x in tensors.items() if n != "model.norm.weight"}, files),
        "untied": MemoryView(tensors | {"lm_head.weight": torch.ones(64, 16)}, files),
        "longer": MemoryView(
            tensors | {"model.embed_tokens.weight": more},
            files | {"tokenizer.json": json.dumps(words).encode(), "config.json": json.dumps(config | {"vocab_size": 65}).encode()},
        ),
        "renamed": MemoryView(tensors, files | {"tokenizer.json": renamed}),
    }
    at = ("-R", root / "work")
    ok("import", root / "base", *at)
    for name, view in made.items():
        how = ("commit", view.save(root / name), "main") if name in "ab" else ("import", view.save(root / name))
        ok(*how, "--branch", name, *at)
    ok("import", tiny_model(root / "wide", intermediate_size=48), "--branch", "wide", *at)
    ok("import", tiny_model(root / "other", "gpt2"), "--branch", "other", *at)
    return root / "work"


@pytest.fixture
def work(laid, tmp_path, monkeypatch) -> Path:
    """A copy, with the current directory in it."""
    root = Path(shutil.copytree(laid, tmp_path / "work"))
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.setenv("MLC_AUTHOR", "Grace <grace@example.org>")
    return root


def refused(*words: str) -> tuple[int, str, str]:
    """(code, sentence, hint) of a call that must fail and leave no trace."""
    before = ok("log", "--all")
    answer = run_cli(*words, "--json")
    assert answer.code != 0, answer
    assert ok("log", "--all") == before
    assert ok("runs")["runs"] == []
    return answer.code, answer.error["message"], answer.error.get("hint") or ""


@pytest.mark.parametrize(
    ("words", "code", "said", "hint"),
    [
        (("a", "wide"), 6, "shapes differ: model.layers.0.mlp.down_proj.weight of wide is [16, 48], ", "mlc diff"),
        (("a", "other"), 6, "a is a llama, other a gpt2", "one architecture"),
        (
            ("a", "longer"),
            6,
            "vocabularies differ: model.embed_tokens.weight of longer is [65, 16], model.embed_tokens.weight of a is",
            "--tokenizer base or union",
        ),
        (("a", "renamed"), 6, "the same row of an embedding stands for different tokens", "--tokenizer base or union"),
        (("a", "untied"), 6, "untied has a head of its own, the head of a is tied", "written out"),
        (("a", "hole"), 6, "hole has no tensor model.norm.weight, which a has", "mlc diff"),
        (("a", "b", "--weights", "1,-1"), 2, "sum to zero", "normalize"),
        (("a", "b", "--method", "task-arithmetic", "--normalize", "--weights", "1,-1"), 2, "sum to zero", "normalize"),
        (("a", "b", "--method", "ties", "--density", "0"), 2, "outside (0, 1]", "0.5"),
        (("a", "b", "--method", "ties", "--density", "1.01"), 2, "outside (0, 1]", "0.5"),
        (("a", "b", "--method", "dare-linear", "--density", "-0.5"), 2, "outside (0, 1]", "0.5"),
        (("a", "b", "--method", "sce", "--set", "select_topk=0"), 2, "outside (0, 1]", "0.5"),
        (("a", "b", "--method", "opcm", "--set", "alpha=1"), 2, "outside [0, 1)", "alpha"),
        (("a", "wide", "--method", "opcm", "--base", "main"), 6, "shapes differ", "mlc diff"),
        (("a", "other", "--method", "ties", "--base", "main"), 6, "is a llama,", "one architecture"),
        (("a", "b", "--weights", "0.5"), 2, "a number for each of 2 ingredients, not 1", "--weights 0.5,0.5"),
        (("a", "b", "--weights", "nan,1"), 2, "finite", "help"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_first_thing_and_a_suggestion(work, words, code, said, hint):
    for told in (("merge", *words), ("merge", *words, "--dry-run")):
        answer = refused(*told)
        assert (answer[0], said in answer[1], hint in answer[2]) == (code, True, True), answer


def test_a_method_that_there_is_not_is_answered_by_the_names_of_all_of_them(work):
    code, said, hint = refused("merge", "a", "b", "--method", "opmc")
    assert (code, "'opmc'" in said, "did you mean opcm?" in hint) == (2, True, True)
    assert {"rmm", "fisher", "lcsc", "soup_greedy", "ties"} <= set(hint.replace(",", "").split())


def test_what_a_hint_of_a_merge_names_can_be_typed(work):
    assert "-t 0.5" in refused("merge", "a", "b", "--method", "slerp")[2]
    ok("merge", "a", "b", "--method", "slerp", "-t", "0.5", "--branch", "between")
    assert "--set normalize=false" in refused("merge", "a", "b", "--weights", "1,-1")[2]
    ok("merge", "a", "b", "--weights", "1,-1", "--set", "normalize=false", "--branch", "difference")


BLOCKS = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: WEIGHT}}\n- {model: b, parameters: {weight: 1}}\n"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (BLOCKS.replace("WEIGHT", "[{filter: self_atn, value: 1}, {value: 0.5}]"), 2, "filter 'self_atn' of 'weight' fits no tensor"),
        (BLOCKS.replace("WEIGHT", "[{filter: mlp, value: 1}]"), 2, "is not set for tensor model.embed_tokens.weight"),
        (BLOCKS.replace("WEIGHT", "-1"), 2, "sum to zero"),
        (BLOCKS.replace("WEIGHT", "1") + "int8_masks: true\n", 2, "line 5: the key 'int8_masks' is not supported"),
        (BLOCKS.replace("WEIGHT", "1") + "tokenizer: {source: base, pad_to_multiple: 8}\n", 2, "line 5: the key 'pad_to_multiple'"),
        (BLOCKS.replace("WEIGHT", "1").replace("model: b", "model: wide"), 6, "shapes differ"),
        (BLOCKS.replace("WEIGHT", "1").replace("model: b", "model: nowhere"), 3, "no version and no directory"),
        (BLOCKS.replace("linear", "ties"), 2, "weight is a float"),
        ("merge_method: ties\nbase_model: main\nparameters: {density: 2}\nmodels: [{model: a}, {model: b}]\n", 2, "line 3: density 2 lies"),
    ],
)
def test_a_merge_file_is_refused_with_the_key_and_the_line(work, text, code, said):
    Path("mergekit.yml").write_text(text)
    answer = refused("merge", "--config", "mergekit.yml")
    assert (answer[0], said in answer[1]) == (code, True), answer


def test_a_file_with_slices_filters_gradients_and_a_tokenizer_does_what_it_says(work):
    Path("slices.yml").write_text(
        "merge_method: linear\nslices:\n- sources:\n"
        "  - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: [1, 0]}, {value: 0.5}]}}\n"
        "  - {model: b, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}}\n"
        "- sources: [{model: a, layer_range: [0, 1], parameters: {weight: 1}}]\ntokenizer_source: base\ndtype: float32\n"
    )
    made = ok("merge", "--config", "slices.yml", "--branch", "stacked")["commit"]
    ok("export", "stacked", "out")
    found = MemoryView.of(Path("out"))
    assert found.config["num_hidden_layers"] == 3
    ok("export", "a", "a-out")
    ok("export", "b", "b-out")
    a, b = MemoryView.of(Path("a-out")), MemoryView.of(Path("b-out"))
    up, q = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.self_attn.q_proj.weight"
    assert torch.allclose(found.tensor(up.format(0)), a.tensor(up.format(0)), atol=1e-7)
    assert torch.allclose(found.tensor(up.format(1)), b.tensor(up.format(1)), atol=1e-7)
    assert torch.allclose(found.tensor(q.format(1)), (a.tensor(q.format(1)) + b.tensor(q.format(1))) / 2, atol=1e-6)
    assert found.tensor(up.format(2)).equal(a.tensor(up.format(0)))
    assert made["check"]["config"] == "slices.yml"


def test_a_tokenizer_rule_lets_differing_vocabularies_merge(work):
    made = ok("merge", "a", "longer", "--tokenizer", "union", "--branch", "both")["commit"]
    ok("export", made["id"], "out")
    found = MemoryView.of(Path("out"))
    assert found.config["vocab_size"] == len(found.tensor("model.embed_tokens.weight")) == 65
    assert "novel" in json.loads(found.file("tokenizer.json"))["model"]["vocab"] | {
        t["content"]: 0 for t in json.loads(found.file("tokenizer.json"))["added_tokens"]
    }


@pytest.mark.parametrize("words", [("a", "b"), ("a",), ()])
def test_passthrough_says_the_file_that_it_needs_and_that_file_works(work, words):
    code, message, hint = refused("merge", *words, "--method", "passthrough")
    assert code == 2
    assert "only a merge file can say which blocks" in message
    first, *lines = hint.splitlines()
    assert first.startswith("--config FILE.yml")
    assert len(lines) == 2
    Path("stack.yml").write_text("\n".join(lines).replace("feature", "b"))
    ok("merge", "--config", "stack.yml", "--branch", "stacked")
    ok("export", "stacked", "out")
    assert json.loads(Path("out", "config.json").read_text())["num_hidden_layers"] == 3
