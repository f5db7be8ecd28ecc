"""The operation over whole models: streamed, the same bytes for any order and number of threads, stored as a recipe, or refused."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import torch

from mlc.ops.base import CopyTensor, SetFile
from mlc.ops.merge.merge import Merge
from mlc.ops.merge.table import METHODS
from mlc.registry.delta.derived import derive
from mlc.registry.errors import BadParameter, CheckFailed, Incompatible, ShapeMismatch, VocabularyMismatch
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import apart, family, merged, run_of, sets, sibling

ORDERLESS = ("linear", "task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "sce", "model_stock", "karcher")


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return family(tmp_path_factory.mktemp("halves"), dtype="bfloat16")


def options(method: str) -> dict:
    found: dict = {"method": method}
    if METHODS[method].base == "required":
        found["base"] = "base"
    if METHODS[method].param("density"):
        found["density"] = (0.5,)
    if METHODS[method].param("weight"):
        found["weights"] = (0.6, 0.4)
    return found


# --- identities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_linear_merge_of_a_model_with_itself_is_that_model(versions, halves, kind: str):
    known = versions if kind == "float32" else halves
    twins = {"m1": known["m1"], "copy": known["m1"]}
    assert merged(twins, "m1", "copy", weights=(0.6, 0.7)).snapshot_id == known["m1"].snapshot_id


def test_what_is_equal_everywhere_is_not_read(versions):
    known = {"m1": versions["m1"], "copy": MemoryView({n: versions["m1"].tensor(n) for n in versions["m1"].names()}, {})}
    changes = list(Merge(ingredients=("m1", "copy")).apply(known["m1"], run_of(known)))
    assert changes == []
    assert known["copy"].reads == []


def test_two_names_of_one_version_are_two_ingredients(versions):
    pinned = Merge(ingredients=("m1", "m1"), weights=(0.25, 0.75)).recipe()
    assert [source.parameters["weight"] for source in pinned.slices[0].sources] == [0.25, 0.75]
    assert merged(versions, "m1", "m1", weights=(0.25, 0.75)).snapshot_id == versions["m1"].snapshot_id


def test_an_ingredient_that_is_the_base_is_not_merged_and_its_weight_not_used():
    for weights in ((0.5, 0.3, 0.2), (0.3, 0.2)):
        recipe = Merge(
            ingredients=("base", "a", "b"), method="ties", base="base", weights=weights, density=(0.1, 0.2, 0.3)[: len(weights)]
        ).recipe()
        base, sources = recipe.inputs(recipe.slices[0])
        assert base == "base"
        assert [source.parameters["weight"] for source in sources] == [0.3, 0.2]


def test_a_merge_follows_the_weights_of_its_ingredients(versions):
    name = "model.layers.0.mlp.up_proj.weight"
    result = merged(versions, "m1", "m2", weights=(3.0, 1.0))
    mean = 0.75 * versions["m1"].tensor(name) + 0.25 * versions["m2"].tensor(name)
    assert torch.allclose(result.tensor(name), mean, atol=1e-6)
    assert merged(versions, "m1", "m2", weights=(0.0, 1.0)).digests() == versions["m2"].digests()


@pytest.mark.parametrize("method", ORDERLESS)
def test_the_order_in_which_ingredients_are_named_gives_the_same_bytes(halves, method: str):
    one = options(method)
    other = one | ({"weights": one["weights"][::-1]} if "weights" in one else {})
    assert merged(halves, "m1", "m2", **one).digests() == merged(halves, "m2", "m1", **other).digests()


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "slerp", "karcher"])
def test_several_threads_give_the_bytes_of_one(versions, method: str):
    chosen = options(method) if method != "slerp" else {"method": "slerp", "t": 0.3}
    results = [merged(versions, "m1", "m2", threads=count, **chosen).snapshot_id for count in (1, 3)]
    assert results[0] == results[1]


def test_the_seed_decides_the_masks_and_nothing_else_does(versions):
    chosen = options("dare_linear")
    first = merged(versions, "m1", "m2", seed=1, **chosen)
    assert first.snapshot_id == merged(versions, "m1", "m2", seed=1, **chosen).snapshot_id
    assert apart(first, merged(versions, "m1", "m2", seed=2, **chosen)) > 0
    running = [merged(versions, "m1", "m2", seed=1, rng="mergekit", threads=n, **chosen).snapshot_id for n in (1, 2)]
    assert running[0] == running[1] != first.snapshot_id


@pytest.mark.parametrize("method", ORDERLESS)
def test_sixteen_bit_models_are_merged_in_float32_and_rounded_once(halves, method: str):
    if METHODS[method].random:
        return
    known = {n: MemoryView({k: v.tensor(k).float() for k in v.names()}, {}) for n, v in halves.items()}
    wide, narrow = merged(known, "m1", "m2", **options(method)), merged(halves, "m1", "m2", **options(method))
    for name in narrow.names():
        assert narrow.tensor(name).dtype == torch.bfloat16
        if method not in ("breadcrumbs", "ties"):  # digests of another type may turn the order of the sum, not more
            assert torch.allclose(narrow.tensor(name).float(), wide.tensor(name), rtol=2**-7, atol=1e-6)


def test_types_are_set_by_options_and_written_into_the_config(halves):
    result = merged(halves, "m1", "m2", out_dtype="float32")
    assert {result.tensor(n).dtype for n in result.names()} == {torch.float32}
    assert result.config["dtype"] == "float32"
    assert result.file("config.json").count(b"\n") == halves["m1"].file("config.json").count(b"\n")
    mixed = {"m1": halves["m1"], "w": MemoryView({n: halves["m2"].tensor(n).float() for n in halves["m2"].names()}, {})}
    assert {merged(mixed, "m1", "w").tensor(n).dtype for n in mixed["m1"].names()} == {torch.float32}


# --- streaming and storage -------------------------------------------------------------------------------


def test_tensors_come_one_at_a_time_by_name_and_nothing_is_read_ahead(versions):
    known = {n: MemoryView({k: v.tensor(k) for k in v.names()}, {}) for n, v in versions.items()}
    changes = Merge(ingredients=("m1", "m2"), method="nuslerp").apply(known["m1"], run_of(known))
    first = next(changes)
    assert len(known["m1"].reads) == len(known["m2"].reads) == 1
    names = [first.name, *(c.name for c in changes)]
    assert names == sorted(names)


def test_the_input_is_not_changed_and_torch_has_its_threads_back(versions):
    before, threads = {n: v.digests() for n, v in versions.items()}, torch.get_num_threads()
    merged(versions, "m1", "m2", **options("ties"))
    assert {n: v.digests() for n, v in versions.items()} == before
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["linear", "soup", "task_arithmetic", "ties"])
def test_a_sum_is_stored_as_its_recipe_which_gives_every_bit(versions, halves, kind: str, method: str):
    known = versions if kind == "float32" else halves
    chosen = {k: v for k, v in options(method).items() if k != "density" or method == "ties"}
    chosen |= {"lam": 0.7} if method == "task_arithmetic" else {}
    by_digest = {v.entry(n).digest: v.tensor(n) for v in known.values() for n in v.names()}
    changes = sets(Merge(ingredients=("m1", "m2"), **chosen).apply(known["m1"], run_of(known)))
    assert len(changes) == len(known["m1"].names())
    for change in changes.values():
        assert change.derived is not None
        again = derive(change.derived, lambda digest, rows: by_digest[digest][rows], change.data.dtype, change.data.shape)
        assert again.equal(change.data)


def test_what_is_no_plain_sum_is_stored_as_bytes(versions):
    for chosen in (
        options("dare_ties"),
        options("ties") | {"parity": True},
        options("linear") | {"parity": True},
        options("linear") | {"dtype": "bfloat16"},
    ):
        changes = sets(Merge(ingredients=("m1", "m2"), **chosen).apply(versions["m1"], run_of(versions)))
        assert {change.derived for change in changes.values()} == {None}


def test_a_plan_reads_no_tensor_and_covers_what_is_touched(versions):
    view = MemoryView({n: versions["m1"].tensor(n) for n in versions["m1"].names()}, {})
    op = Merge(ingredients=("m1", "m2"), **options("ties"))
    plan = op.plan(view)
    assert view.reads == []
    assert plan.summary == "merge 3 versions by ties, 20 tensors, one at a time"
    for change in op.apply(versions["m1"], run_of(versions)):
        assert any(fnmatch.fnmatchcase(change.name, pattern) for pattern in plan.touches)
    assert type(op).from_params(json.loads(json.dumps(op.params()))) == op
    assert op.check(versions["base"], versions["m1"], run_of(versions)).values["tensors_changed"] == 20


def test_buffers_that_are_no_floats_must_be_equal(versions):
    def with_buffer(view, value):
        return MemoryView({n: view.tensor(n) for n in view.names()} | {"steps": torch.tensor([value])}, {})

    known = {"a": with_buffer(versions["m1"], 3), "b": with_buffer(versions["m2"], 3)}
    assert merged(known, "a", "b").tensor("steps").tolist() == [3]
    known["b"] = with_buffer(versions["m2"], 4)
    with pytest.raises(Incompatible, match=r"steps \(I64\) differs"):
        merged(known, "a", "b")


def test_a_head_that_repeats_its_embedding_is_merged_once(versions):
    def with_head(view):
        tensors = {n: view.tensor(n) for n in view.names()}
        return MemoryView(
            tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, {"config.json": view.file("config.json")}
        )

    known = {name: with_head(view) for name, view in versions.items()}
    result = merged(known, "m1", "m2", **options("dare_ties"))
    assert result.tensor("lm_head.weight").equal(result.tensor("model.embed_tokens.weight"))


# --- a trim over whole models ----------------------------------------------------------------------------


def test_a_trim_over_the_model_keeps_the_greatest_of_all_tensors(versions):
    base, x = versions["base"], versions["m1"]
    result = merged(versions, "m1", method="ties", base="base", density=(0.2,), scope="model")
    deltas = torch.cat([(x.tensor(n) - base.tensor(n)).abs().reshape(-1) for n in sorted(x.names())])
    moved = torch.cat([(result.tensor(n) != base.tensor(n)).reshape(-1) for n in sorted(x.names())])
    k = int(0.2 * len(deltas))
    assert abs(int(moved.sum()) - k) <= 2  # a kept difference may round to nothing
    assert float(deltas[moved].min()) >= float(deltas.sort(descending=True).values[k - 1])


def test_equals_at_the_cut_are_taken_by_tensor_and_place():
    base = MemoryView({name: torch.zeros(4) for name in "abc"}, {})
    x = MemoryView({name: torch.tensor([1.0, 2.0, 1.0, 0.5]) for name in "abc"}, {})
    known = {"base": base, "x": x}
    result = merged(known, "x", method="ties", base="base", density=(0.5,), scope="model")
    assert [result.tensor(n).tolist() for n in "abc"] == [[1.0, 2.0, 1.0, 0.0], [1.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]


# --- files, slices and vocabularies ----------------------------------------------------------------------


def configured(directory: Path, text: str) -> str:
    (directory / "merge.yml").write_text(text)
    return str(directory / "merge.yml")


def test_a_gradient_runs_over_the_layers_and_what_lies_outside_takes_its_start(versions, tmp_path):
    text = "merge_method: linear\nparameters: {normalize: false}\nmodels:\n- {model: m1, parameters: {weight: [1, 0]}}\n"
    path = configured(tmp_path, text + "- {model: m2, parameters: {weight: [0, 1]}}\n")
    run = run_of(versions)
    result = versions["m1"].after(Merge(config=path).apply(versions["m1"], run))
    for name in result.names():
        assert result.tensor(name).equal(versions["m2" if ".layers.1." in name else "m1"].tensor(name)), name
    assert [(record.role, record.name) for record in run.inputs] == [("config", "merge.yml")]


def test_layers_are_stacked_under_new_numbers(versions, tmp_path):
    text = (
        "merge_method: passthrough\nslices:\n- sources: [{model: m1, layer_range: [0, 2]}]\n- sources: [{model: m2, layer_range: [1, 2]}]\n"
    )
    op = Merge(config=configured(tmp_path, text))
    changes = list(op.apply(versions["m1"], run_of(versions)))
    result = versions["m1"].after(changes)
    assert result.config["num_hidden_layers"] == 3
    for name in result.names():
        source = ("m2", name.replace("layers.2", "layers.1")) if ".layers.2." in name else ("m1", name)
        source = ("m2", name) if name == "model.norm.weight" else source  # the last slice brings the last norm
        assert result.tensor(name).equal(versions[source[0]].tensor(source[1])), name
    shallow = configured(tmp_path, "merge_method: passthrough\nslices:\n- sources: [{model: m1, layer_range: [1, 2]}]\n")
    changes = list(Merge(config=shallow).apply(versions["m1"], run_of(versions)))
    moved = [change for change in changes if isinstance(change, CopyTensor)]
    assert len(moved) == 9
    assert all(change.source == change.name.replace("layers.0", "layers.1") for change in moved)
    assert versions["m1"].after(changes).config["num_hidden_layers"] == 1


def test_slices_may_merge_what_they_stack(versions, tmp_path):
    text = """
merge_method: slerp
base_model: m1
parameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}
slices:
- sources: [{model: m1, layer_range: [0, 2]}, {model: m2, layer_range: [0, 2]}]
"""
    result = versions["m1"].after(Merge(config=configured(tmp_path, text)).apply(versions["m1"], run_of(versions)))
    up = "model.layers.{}.mlp.up_proj.weight"
    assert torch.allclose(result.tensor(up.format(0)), versions["m1"].tensor(up.format(0)), atol=1e-6)
    assert torch.allclose(result.tensor(up.format(1)), versions["m2"].tensor(up.format(1)), atol=1e-6)


@pytest.fixture(scope="module")
def tongues(versions):
    """m2 with its last two tokens exchanged, and one token more than m1."""
    from tokenizers import Tokenizer

    view = versions["m2"]
    data = json.loads(view.file("tokenizer.json"))
    words = data["model"]["vocab"]
    words["w36"], words["w37"] = words["w37"], words["w36"]
    words["novel"] = 64
    config = view.file("config.json").replace(b'"vocab_size": 64', b'"vocab_size": 65')
    text = json.dumps(data).encode()
    assert Tokenizer.from_str(text.decode()).get_vocab_size() == 65
    files = {f.path: view.file(f.path) for f in view.files()} | {"tokenizer.json": text, "config.json": config}
    tensors = {n: view.tensor(n) for n in view.names()}
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([rows, rows[:1] + 1])
    return {"m1": versions["m1"], "m2": MemoryView(tensors, files)}, words


def test_differing_vocabularies_need_a_rule(tongues):
    known, _ = tongues
    with pytest.raises(VocabularyMismatch, match="the vocabularies differ") as caught:
        merged(known, "m1", "m2")
    assert "--tokenizer base or union" in caught.value.hint


def test_equal_shapes_with_other_tokens_need_a_rule_too(tongues):
    known, _ = tongues
    short = MemoryView({n: known["m1"].tensor(n) for n in known["m1"].names()}, {"tokenizer.json": known["m2"].file("tokenizer.json")})
    short = MemoryView(
        {n: short.tensor(n) for n in short.names()},
        {"config.json": known["m1"].file("config.json"), "tokenizer.json": known["m1"].file("tokenizer.json").replace(b'"w3"', b'"w33x"')},
    )
    with pytest.raises(VocabularyMismatch, match="the tokenizers of m1 and other differ"):
        merged({"m1": known["m1"], "other": short}, "m1", "other")


@pytest.mark.parametrize("rule", ["base", "union", "m2"])
def test_rows_are_matched_by_token(tongues, rule: str):
    known, words = tongues
    result = merged(known, "m1", "m2", weights=(1.0, 1.0), tokenizer=rule)
    name = "model.embed_tokens.weight"
    mine, a, b = (view.tensor(name) for view in (result, known["m1"], known["m2"]))
    vocabulary = json.loads(result.file("tokenizer.json"))
    assert len(mine) == result.config["vocab_size"] == (64 if rule == "base" else 65)
    where = {token: vocabulary["model"]["vocab"][token] for token in ("w36", "w37", "the")}
    old = json.loads(known["m1"].file("tokenizer.json"))["model"]["vocab"]
    for token, row in where.items():
        assert torch.allclose(mine[row], (a[old[token]] + b[words[token]]) / 2, atol=1e-6)
    if rule != "base":
        assert torch.allclose(mine[64], b[64], atol=1e-6)  # only one has it


def test_a_chat_template_is_written_into_the_settings(versions, tmp_path):
    text = "merge_method: linear\nchat_template: '{{ messages }}'\nmodels:\n- {model: m1, parameters: {weight: 1}}\n"
    changes = list(Merge(config=configured(tmp_path, text)).apply(versions["m1"], run_of(versions)))
    assert [change.path for change in changes if isinstance(change, SetFile)] == ["tokenizer_config.json"]
    assert json.loads(versions["m1"].after(changes).file("tokenizer_config.json"))["chat_template"] == "{{ messages }}"


# --- refusals --------------------------------------------------------------------------------------------


def without(view: MemoryView, *names: str) -> MemoryView:
    return MemoryView({n: view.tensor(n) for n in view.names() if n not in names}, {f.path: view.file(f.path) for f in view.files()})


def test_other_architectures_and_sizes_are_refused(versions, tmp_path):
    other = family(tmp_path, 0, kind="gpt2")["base"]
    with pytest.raises(Incompatible, match="m1 is a llama, other a gpt2"):
        merged({"m1": versions["m1"], "other": other}, "m1", "other")
    wide = family(tmp_path / "w", 0, hidden_size=32)["base"]
    with pytest.raises(ShapeMismatch, match=r"model.embed_tokens.weight of wide is \[64, 32\]") as caught:
        merged({"m1": versions["m1"], "wide": wide}, "m1", "wide")
    assert caught.value.exit_code == 6
    assert "mlc diff" in caught.value.hint


def test_a_missing_tensor_is_named(versions):
    known = {"m1": versions["m1"], "hole": without(versions["m2"], "model.norm.weight")}
    with pytest.raises(Incompatible, match=r"hole has no tensor model.norm.weight, which m1 has"):
        merged(known, "m1", "hole")


def test_a_tied_head_does_not_merge_with_one_of_its_own(versions):
    view = versions["m2"]
    own = MemoryView(
        {n: view.tensor(n) for n in view.names()} | {"lm_head.weight": torch.zeros(64, 16)}, {"config.json": view.file("config.json")}
    )
    with pytest.raises(Incompatible, match="own has a head of its own, the head of m1 is tied"):
        merged({"m1": versions["m1"], "own": own}, "m1", "own")


def test_weights_that_sum_to_zero_are_refused_where_they_divide(versions):
    with pytest.raises(BadParameter, match="sum to zero"):
        merged(versions, "m1", "m2", weights=(1.0, -1.0))
    assert merged(versions, "m1", "m2", weights=(1.0, -1.0), normalize=False).names()
    assert merged(versions, "m1", "m2", method="task_arithmetic", base="base", weights=(1.0, -1.0)).names()


def test_an_epsilon_beyond_the_density_is_refused(versions):
    with pytest.raises(BadParameter, match="must lie between 0 and 1"):
        merged(versions, "m1", "m2", method="della", base="base", density=(0.1,))


def test_a_result_that_overflows_is_refused(versions):
    with pytest.raises(CheckFailed, match="became infinite"):
        merged(versions, "m1", "m2", weights=(3e38, 3e38), normalize=False, parity=True)  # what storage computes, storage refuses


def test_what_is_no_number_cannot_be_ranked(versions):
    view = versions["m2"]
    broken = MemoryView({n: torch.full_like(view.tensor(n), float("nan")) for n in view.names()}, {})
    known = {**versions, "broken": broken}
    for scope in ("tensor", "model"):
        with pytest.raises(CheckFailed, match=r"embed_tokens.weight"):
            merged(known, "m1", "broken", **options("ties"), scope=scope)


def test_the_result_must_follow_one_of_the_merged(versions, tmp_path):
    path = configured(tmp_path, "merge_method: linear\nmodels: [{model: m1, parameters: {weight: 1}}]\n")
    with pytest.raises(Incompatible, match="none of the merged versions"):
        list(Merge(config=path).apply(versions["m2"], run_of(versions)))


def test_a_range_beyond_the_layers_is_refused(versions, tmp_path):
    text = "merge_method: passthrough\nslices: [{sources: [{model: m1, layer_range: [0, 3]}]}]\n"
    with pytest.raises(BadParameter, match="goes beyond the 2 layers of m1"):
        list(Merge(config=configured(tmp_path, text)).apply(versions["m1"], run_of(versions)))


@pytest.mark.parametrize("kind", ["gpt2", "neox", "bert", "vit"])
def test_other_families_merge_as_well(tmp_path, kind: str):
    known = family(tmp_path, 2, kind=kind)
    result = merged(known, "m1", "m2", **options("ties"))
    assert set(result.names()) == set(known["m1"].names())
    assert 0 < apart(result, known["base"]) < 1
    assert sibling(known["base"], 1).snapshot_id == known["m1"].snapshot_id
