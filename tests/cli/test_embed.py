"""Encoders through the program: search suites, galleries, alignment, verdicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import tiny_model
from mlc.tests.ops.encoders import labelled_texts, tiny_encoder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("encoders") / "work"
    assert run_cli("init", root, "-q").code == 0
    at = ("-R", root)
    ok("import", tiny_encoder(root / "old", width=12, seed=1), "--branch", "old", *at)
    ok("import", tiny_encoder(root / "new", width=32, seed=2), "--branch", "new", *at)
    ok("import", tiny_model(root / "writer"), "--branch", "writer", *at)
    rows = [json.loads(line) for line in labelled_texts(root / "texts.jsonl").read_text().splitlines()]
    search = [{"query" if i % 2 else "gallery": row["text"], "relevance": row["label"], "id": i} for i, row in enumerate(rows)]
    (root / "search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in search))
    (root / "search.toml").write_text('name = "search"\nkind = "retrieval"\ndata = "search.jsonl"\n')
    (root / "passages.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "text": row["text"]}) + "\n" for i, row in enumerate(rows[:20]))
    )
    done = ok("align", "new", "--to", "old", "--data", root / "texts.jsonl", "--steps", "150", "--lr", "0.003", "--old-weight", "1", *at)
    assert done["commit"]["op"]["name"] == "align.embeddings"
    return root


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_an_aligned_encoder_says_what_it_may_search_and_the_verdict_is_in_the_commit(work):
    shown = ok("show", "new")["commit"]
    [pair] = shown["check"]["compat"]["pairs"]
    answer = ok("compat", "old", "new")
    assert answer["compatible"] is True
    assert answer["verdict"] == pair
    assert (pair["slice"], pair["lower95"] > 0) == ([0, 12], True)
    assert "may be searched" in run_cli("compat", "old", "new").out
    assert ok("compat", "new~1", "new")["verdict"] is None
    assert run_cli("compat", "new~1", "new", "--exit-code").code == 5
    assert ok("compat", "old", "old")["compatible"] is True


def test_a_search_suite_is_an_evaluation_and_can_be_asked_across_versions(work):
    alone = ok("eval", "new~1", "--suite", "search.toml")
    assert set(alone["metrics"]) == {"accuracy", "cmc5", "map"}
    assert alone["n"] == 240
    assert ok("eval", "new~1", "--suite", "search.toml")["cached"] is True
    crossed = ok("compat", "old", "new", "--suite", "search.toml")["verdict"]
    assert crossed["metrics"]["old_old"] == ok("eval", "old", "--suite", "search.toml")["metrics"]
    assert crossed["gain"] == pytest.approx(crossed["map"] - crossed["map_old"], abs=1e-9)
    assert run_cli("eval", "writer", "--suite", "search.toml").code == 6


def test_a_gallery_is_searched_by_its_maker_and_by_what_was_aligned_to_it(work):
    assert ok("embed", "old", "--data", "passages.jsonl", "--out", "g.safetensors")["size"] == 12
    own = ok("embed", "old", "--data", "passages.jsonl", "--gallery", "g.safetensors", "-k", "1")
    assert [row["nearest"][0][0] for row in own["results"]] == [row["id"] for row in own["results"]]
    crossed = ok("embed", "new", "--data", "passages.jsonl", "--gallery", "g.safetensors", "-k", "3")
    assert crossed["slice"] == [0, 12]
    assert {len(row["nearest"]) for row in crossed["results"]} == {3}
    refused = run_cli("embed", "new~1", "--data", "passages.jsonl", "--gallery", "g.safetensors")
    assert refused.code == 6
    assert "not known to be compatible" in refused.err


def test_what_was_aligned_comes_back_from_its_export(work):
    ok("export", "new", "out")
    assert {"2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"} <= {
        str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file()
    }
    ok("import", "out", "--branch", "again")
    ok("embed", "new", "--data", "passages.jsonl", "--out", "a.safetensors")
    ok("embed", "again", "--data", "passages.jsonl", "--out", "b.safetensors")
    from safetensors.torch import load_file

    assert load_file("a.safetensors")["vectors"].equal(load_file("b.safetensors")["vectors"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("align", "writer", "--to", "old", "--data", "texts.jsonl", "--extra", "4"), 2, "for encoders"),
        (("align", "new~1", "--to", "old", "--data", "texts.jsonl", "--alpha", "2", "--branch", "x"), 2, "for models that answer"),
        (("align", "new~1", "--to", "writer", "--data", "texts.jsonl", "--branch", "x"), 6, "no encoder"),
        (("align", "new", "--to", "old", "--data", "texts.jsonl"), 6, "head already"),
        (("align", "new~1", "--to", "nowhere", "--data", "texts.jsonl", "--branch", "x"), 3, "nowhere"),
        (("align", "new~1", "--to", "old", "--data", "passages.jsonl", "--branch", "x"), 2, "line 1"),
        (("compat", "old", "new", "--suite", "plain.toml"), 2, "kind"),
        (("compat", "writer", "new", "--suite", "search.toml"), 6, "no encoder"),
        (("embed", "new", "--data", "passages.jsonl"), 2, "--out"),
        (("embed", "new", "--data", "gone.jsonl", "--out", "x.safetensors"), 3, "gone.jsonl"),
        (("embed", "new", "--data", "search.jsonl", "--out", "x.safetensors"), 2, "line 1"),
        (("embed", "new", "--data", "passages.jsonl", "--gallery", "texts.jsonl"), 2, "gallery"),
        (("embed", "writer", "--data", "passages.jsonl", "--out", "x.safetensors"), 6, "no encoder"),
    ],
)
def test_what_does_not_fit_gives_its_exit_code_and_one_sentence(work, words, code, said):
    (work / "plain.toml").write_text('name = "plain"\nkind = "cloze"\ndata = "plain.jsonl"\n')
    (work / "plain.jsonl").write_text('{"prompt": "w1", "answer": "w2"}\n')
    before = ok("refs")
    answer = run_cli(*words)
    assert answer.code == code, answer
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert ok("refs") == before


def test_a_gallery_of_a_version_that_nobody_knows_is_refused(work):
    import torch

    from mlc.ops.embed.gallery import Gallery

    (work / "strange.safetensors").write_bytes(Gallery(torch.eye(12), [str(i) for i in range(12)], "f" * 64, "0" * 64).to_bytes())
    answer = run_cli("embed", "old", "--data", "passages.jsonl", "--gallery", "strange.safetensors")
    assert answer.code == 3
    assert "does not know" in answer.err
