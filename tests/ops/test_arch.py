"""Family tables: every tensor of a real model of each family has a role, and names survive renumbering."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc.ops.arch import blocks_of, family_of, layer_of, role_of, with_layer
from mlc.ops.arch.configs import edit_json
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView

FAMILIES = ("llama", "qwen3", "gpt2", "gptj", "neox", "bert", "vit")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_real_model_has_a_role_and_the_layers_are_counted(family, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, family, layers=3))
    table = family_of(view.config)
    assert table is not None
    assert [n for n in view.names() if role_of(table, n)[1] == "other"] == []
    assert blocks_of(table, view.names()) == 3
    layers = {role_of(table, n)[0] for n in view.names()}
    assert layers == {None, 0, 1, 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_do_not_depend_on_the_base_models_prefix(family, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, family))
    table = family_of(view.config)
    assert all(role_of(table, n) == role_of(table, n.removeprefix(table.prefix)) for n in view.names())


def test_roles_say_what_a_tensor_is_for():
    llama, gpt2 = family_of({"model_type": "qwen2"}), family_of({"model_type": "gpt2"})
    assert role_of(llama, "model.layers.11.self_attn.o_proj.weight") == (11, "attn.out")
    assert role_of(llama, "lm_head.weight") == (None, "head")
    assert role_of(gpt2, "h.3.mlp.c_proj.bias") == (3, "mlp.out")
    assert role_of(gpt2, "transformer.wpe.weight") == (None, "position")


def test_an_unknown_family_still_shows_the_layer():
    assert family_of({"model_type": "something-new"}) is None
    assert family_of(None) is None
    assert role_of(None, "decoder.layers.4.ffn.w1") == (4, "other")
    assert role_of(None, "rnn.weight_ih_l0") == (None, "other")


def test_a_tensor_can_be_moved_to_another_block_and_keeps_its_spelling():
    gpt2 = family_of({"model_type": "gpt2"})
    assert with_layer(gpt2, "h.3.ln_1.weight", 4) == "h.4.ln_1.weight"
    assert with_layer(gpt2, "transformer.h.3.ln_1.weight", 12) == "transformer.h.12.ln_1.weight"
    assert layer_of(gpt2, "transformer.wte.weight") is None
    with pytest.raises(ValueError, match="lies in no block"):
        with_layer(gpt2, "wte.weight", 1)


def test_the_tables_and_the_catalog_import_neither_torch_nor_transformers():
    code = (
        "import sys, mlc.ops.arch, mlc.ops.models, mlc.ops.data, mlc.ops.catalog as c;"
        "[c.describe(n) for n in c.CATALOG]; import mlc.ops.update.planning;"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'duckdb', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- editing a config in place ---

PRETTY = """{
  "model_type": "llama",
  "num_hidden_layers": 5,
  "layer_types": [
    "full",
    "sliding"
  ],
  "rope": {"theta": 1e4}
}
"""


def test_only_the_values_that_change_are_rewritten():
    edited = edit_json(PRETTY, {"num_hidden_layers": 6})
    assert edited == PRETTY.replace(": 5", ": 6")


def test_a_list_keeps_the_style_it_was_written_in():
    edited = edit_json(PRETTY, {"layer_types": ["full", "full", "sliding"]})
    assert '[\n    "full",\n    "full",\n    "sliding"\n  ],' in edited
    assert edit_json('{"a": [1,2]}', {"a": [1, 2, 3]}) == '{"a": [1, 2, 3]}'


def test_a_new_key_goes_behind_the_last_one_in_the_same_style():
    assert edit_json('{\n  "a": 1\n}\n', {"b": 2}) == '{\n  "a": 1,\n  "b": 2\n}\n'
    assert edit_json('{"a": 1}', {"b": [1]}) == '{"a": 1, "b": [1]}'
    assert edit_json("{}", {"b": True}) == '{"b": true}'


keys = st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3),
)


@given(st.dictionaries(keys, values, max_size=5), st.dictionaries(keys, values, max_size=3), st.sampled_from([None, 1, 2, 4]))
def test_an_edited_config_says_what_a_dictionary_update_says(config, changes, indent):
    edited = edit_json(json.dumps(config, indent=indent), changes)
    assert json.loads(edited) == {**config, **changes}


@pytest.mark.parametrize("text", ["[]", "3", '{"a" 1}', '{"a": 1 2}'])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - json names it in its own words
        edit_json(text, {"a": 1})
