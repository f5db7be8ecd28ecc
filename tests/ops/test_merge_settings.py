"""Parameters are looked up and evaluated as mergekit does, and a merge file that is not understood is refused with key and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc.ops.merge.config import parse_config, read_config
from mlc.ops.merge.merge import Merge
from mlc.ops.merge.settings import evaluate, resolve
from mlc.ops.merge.table import METHODS, Param, method_of
from mlc.registry.errors import BadParameter, BadRecipe, InputNotFound, UsageError

WEIGHT, FLAG = Param("weight", float, each=True), Param("normalize", bool, True)


@pytest.mark.parametrize(
    ("setting", "t", "value"),
    [
        (0.5, 0.3, 0.5),
        ([0.0, 1.0], 0.25, 0.25),
        ([0.0, 1.0], 1.0, 1.0),
        ([0.0, 1.0, 0.0], 0.75, 0.5),
        ([0.2], 1.0, 0.2),
        ("1e-4", 0.0, 1e-4),  # YAML reads 1e-4 as text
    ],
)
def test_a_gradient_is_piecewise_linear_over_the_layers(setting, t: float, value: float):
    assert evaluate(WEIGHT, setting, "x", t) == pytest.approx(value)


def test_a_gradient_of_truths_is_not_mixed():
    assert [evaluate(FLAG, [True, False], "x", t) for t in (0.0, 0.5, 1.0)] == [True, True, False]


def test_the_first_filter_that_occurs_in_the_name_holds_and_a_star_fits_all():
    setting = [{"filter": "mlp", "value": [0, 1]}, {"filter": "attn", "value": 0.2}, {"filter": "*", "value": 0.9}]
    names = ("layers.0.mlp.up", "layers.0.self_attn.q", "norm")
    assert [evaluate(WEIGHT, setting, name, 0.5) for name in names] == [0.5, 0.2, 0.9]
    assert evaluate(WEIGHT, [{"filter": "mlp", "value": 1}], "norm", 0.0) is None
    assert evaluate(WEIGHT, {"value": 3}, "norm", 0.0) == 3


def test_the_source_comes_before_the_slice_before_the_recipe_before_the_default():
    method = method_of("ties")
    scopes = [{"density": [{"filter": "q_proj", "value": 0.1}]}, {"density": 0.2}, {"density": 0.3, "weight": 1}]
    assert resolve(method, "q_proj", 0, scopes, each=True) == {"weight": 1, "density": 0.1}
    assert resolve(method, "norm", 0, scopes, each=True)["density"] == 0.2
    assert resolve(method, "norm", 0, scopes[2:], each=True)["density"] == 0.3
    assert resolve(method, "norm", 0, [{"weight": 1}], each=True)["density"] == 1.0
    assert resolve(method, "norm", 0, [], each=False) == {"normalize": True, "rescale": False, "lambda": 1.0, "int8_mask": False}


def test_a_required_parameter_that_no_filter_reaches_is_named_with_the_tensor():
    with pytest.raises(BadParameter, match=r"'weight' of m1 is not set for tensor norm"):
        resolve(method_of("ties"), "norm", 0, [{"weight": [{"filter": "mlp", "value": 1}]}], each=True, who="m1")


@pytest.mark.parametrize(
    ("name", "value"), [("density", 0), ("density", 1.2), ("density", -1), ("weight", "much"), ("weight", True), ("normalize", 0.5)]
)
def test_a_value_that_cannot_work_is_refused(name: str, value):
    scope = {"weight": 1, name: value}
    with pytest.raises(BadParameter, match=name):
        resolve(method_of("ties"), "w", 0, [scope], each=name != "normalize")


def test_models_and_slices_become_the_same_recipe(tmp_path: Path):
    path = tmp_path / "m.yml"
    path.write_text("merge_method: ties\nbase_model: b\ndtype: float32\nmodels:\n- model: a\n  parameters: {weight: 1e-1}\n- model: b\n")
    recipe = read_config(path)
    assert recipe.whole
    assert recipe.names() == ("a", "b")
    base, sources = recipe.inputs(recipe.slices[0])
    assert (base, [s.model for s in sources]) == ("b", ["a"])
    sliced = parse_config(
        b"merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [1, 3]}]\n"
    )
    assert [s.sources[0].layers for s in sliced.slices] == [(0, 2), (1, 3)]


LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINEAR + "dtypes: float32", r"line 3: the key 'dtypes' is not supported here"),
        (LINEAR + "dtype: int4", r"line 3: dtype 'int4' is unknown"),
        (LINEAR + "modules: {}", r"line 3: the key 'modules'"),
        (LINEAR + "slices: []", "exactly one of 'models' and 'slices'"),
        (LINEAR + "dtype: float32\ndtype: float16", r"line 4: the key 'dtype' is given twice"),
        (LINEAR + "tokenizer: {source: union, tokens: {x: {}}}", r"line 3: the key 'tokenizer.tokens' is not supported"),
        (LINEAR + "tokenizer: {source: union}\ntokenizer_source: base", "cannot both be given"),
        ("merge_method: linear", "exactly one of 'models' and 'slices'"),
        ("merge_method: linear\nmodels: a", r"line 2: the key 'models' holds a list"),
        ("merge_method: linear\nmodels:\n- model: a\n  weight: 1", r"line 4: the key 'weight' is not supported here"),
        ("merge_method: linear\nmodels:\n- parameters: {}", "the key 'model' is missing"),
        ("merge_method: linear\nmodels: [{model: a+lora}]", "adapters behind a '\\+'"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [1, {value: 2}]}}]", "mixes numbers and filters"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: x}]}}]", "a filter of 'weight' is"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a}]}]", r"layer_range is \[FIRST, END\]"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]", r"layer_range is \[FIRST, END\]"),
        ("merge_method: [linear", "line 1"),
        (LINEAR.replace("linear", "lineer"), r"line 1: there is no merge method 'lineer'"),
        (LINEAR.replace("weight", "wieght"), r"line 2: linear has no parameter 'wieght'"),
        (LINEAR.replace("weight: 1", "weight: [1, {x: 1}]"), r"line 2: the parameter 'weight' mixes"),
        (LINEAR.replace("weight: 1", "weight: [[1]]"), r"line 2: weight is a float, not \[1\]"),
        (LINEAR.replace("weight: 1", "weight: {value: {x: 1}}"), r"line 2: weight is a float"),
        (LINEAR.replace("weight: 1", "weight: .nan"), r"line 2: weight is a float, not nan"),
        (
            "merge_method: ties\nbase_model: b\nparameters:\n  density: [0.5, 1.5]\nmodels: [{model: a}]",
            r"line 4: density 1.5 lies outside",
        ),
        ("- 1\n- 2", "a merge file is a mapping"),
        ("1: 2", "is not a word"),
        ("merge_method: !!python/object:os.system x", "line 1"),
    ],
)
def test_a_merge_file_that_is_not_understood_is_refused_with_its_key(text: str, said: str):
    with pytest.raises(BadRecipe, match=said):
        parse_config(text.encode())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINEAR.replace("linear", "ties"), "ties needs a base"),
        ("merge_method: slerp\nbase_model: b\nparameters: {t: 0.5}\nmodels: [{model: a}, {model: c}, {model: b}]", "at most 1"),
        ("merge_method: model_stock\nbase_model: b\nmodels: [{model: a}]", "at least 2"),
    ],
)
def test_a_merge_that_the_method_cannot_do_is_refused(text: str, said: str):
    with pytest.raises(BadParameter, match=said):
        parse_config(text.encode())


def test_a_merge_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path):
    with pytest.raises(InputNotFound, match=r"there is no file"):
        read_config(tmp_path / "none.yml")
    with pytest.raises(BadRecipe, match="not UTF-8"):
        parse_config(b"\xff\xfe")
    (tmp_path / "big.yml").write_bytes(b"#" * (1 << 20 | 1))
    with pytest.raises(BadRecipe, match="is no merge file"):
        read_config(tmp_path / "big.yml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ingredients": ()}, "needs ingredients"),
        ({"method": "lineare"}, "no merge method"),
        ({"weights": (1.0,)}, "a number for each of 2 ingredients, not 1"),
        ({"method": "karcher", "weights": (1.0, 2.0)}, "takes no weights"),
        ({"method": "ties", "base": "c", "density": (1.5,)}, "outside"),
        ({"method": "ties", "base": "c", "density": (0.0,)}, "outside"),
        ({"method": "ties"}, "needs a base"),
        ({"scope": "layer"}, "--scope is tensor or model"),
        ({"scope": "model"}, "no trim by magnitude"),
        ({"rng": "none"}, "--rng is keyed or mergekit"),
        ({"settings": ("gamma",)}, "is not NAME=VALUE"),
        ({"settings": ("gamma=1",)}, "linear has no parameter 'gamma'"),
        ({"dtype": "int8"}, "no type to merge in"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(options, said: str):
    with pytest.raises(UsageError, match=said):
        Merge(**{"ingredients": ("a", "b"), **options})


def test_versions_of_a_file_can_be_pinned_in_their_order(tmp_path: Path):
    path = tmp_path / "m.yml"
    path.write_text("merge_method: task_arithmetic\nbase_model: main\nmodels: [{model: x, parameters: {weight: 1}}]\n")
    recipe = Merge(ingredients=("1" * 64, "2" * 64), config=str(path)).recipe()
    assert recipe.names() == ("1" * 64, "2" * 64)
    assert recipe.base == "2" * 64
    with pytest.raises(BadParameter, match="names 2 versions, 1 are given"):
        Merge(ingredients=("1",), config=str(path)).recipe()


def test_every_method_of_the_table_can_be_asked_for():
    for name, method in METHODS.items():
        count = max(method.least, 1)
        models = tuple(f"m{i}" for i in range(count))
        base = "base" if method.base == "required" else None
        settings = ("t=0.5",) if method.param("t") else ()
        assert Merge(ingredients=models, method=name, base=base, settings=settings).recipe().method == name
