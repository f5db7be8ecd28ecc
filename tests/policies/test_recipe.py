"""Recipes: an operation's options in a file, checked key by key."""

from __future__ import annotations

import pytest

from mlc.policies.recipe import load_recipe, merged, read_given
from mlc.registry.errors import BadParameter, BadRecipe
from mlc.tests.policies.operations import Scale

TOML = 'op = "update"\ndata = "new.txt"\nsteps = 20\nlr = 1\nreplay = "self:0.5"\n'
YAML = "op: update\ndata: new.txt\nsteps: 20\nlr: 1\nreplay:\n  - self:0.5\n"


@pytest.mark.parametrize(("name", "text"), [("r.toml", TOML), ("r.yaml", YAML), ("r.yml", YAML)])
def test_toml_and_yaml_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    recipe = load_recipe(tmp_path / name)

    assert recipe.op == "update"
    assert recipe.given == {"data": "new.txt", "steps": 20, "lr": 1.0, "replay": ["self:0.5"]}
    assert recipe.params["replay"] == ("self:0.5",)
    assert recipe.params["batch"] == 8  # defaults are filled in


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('data = "x"\nstep = 3', "r.toml, line 2, column 1: update has no option 'step'", "did you mean 'steps'?"),
        ('data = "x"\nseq-len = 3', "line 2, column 1: update has no option 'seq-len'", "did you mean 'seq_len'?"),
        ('data = "x"\nsteps = "many"', "line 2, column 1: steps: input should be a valid integer (found 'many')", None),
        ('data = "x"\nsteps = 1.5', "line 2, column 1: steps: input should be a valid integer", None),
        ('data = "x"\nsteps = true', "line 2, column 1: steps: input should be a valid integer (found True)", None),
        ('data = "x"\nreplay = ["a",\n  3]', "line 3, column 3: replay: input should be a valid string (found 3)", None),
        ("steps = 3", "the key 'data' is missing", "add data = ..."),
        ('op = "updaet"\ndata = "x"', "line 1, column 1: there is no operation 'updaet'", "did you mean 'update'?"),
        ("op = 3", "line 1, column 1: the recipe does not say which operation", 'op = "update"'),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(tmp_path, text, message, hint):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(BadRecipe) as caught:
        load_recipe(path, None if "op =" in text else "update")
    assert message in caught.value.message
    assert hint is None or caught.value.hint == hint
    assert caught.value.exit_code == 2


def test_an_unknown_key_of_a_yaml_recipe_has_its_place_too(tmp_path):
    (tmp_path / "r.yaml").write_text("data: x\n\n  \nstepps: 3\n")
    with pytest.raises(BadRecipe, match=r"r\.yaml, line 4, column 1: update has no option 'stepps'"):
        load_recipe(tmp_path / "r.yaml", "update")


def test_a_recipe_for_another_operation_is_refused(tmp_path):
    (tmp_path / "r.toml").write_text('op = "update"\ndata = "x"')
    with pytest.raises(BadRecipe) as caught:
        load_recipe(tmp_path / "r.toml", "edit")
    assert caught.value.hint == "mlc update --recipe r.toml"


def test_values_that_the_operation_refuses_are_refused(tmp_path):
    (tmp_path / "r.toml").write_text('op = "update"\ndata = "x"\nsteps = 0')
    with pytest.raises(BadParameter, match="--steps must be at least 1"):
        load_recipe(tmp_path / "r.toml")


def test_what_the_command_line_says_holds_over_the_recipe(tmp_path):
    (tmp_path / "r.toml").write_text("factor = 3.0\npasses = false")
    given = read_given(tmp_path / "r.toml", "scale", operation=Scale)
    assert given == {"factor": 3.0, "passes": False}
    assert merged(given, {"factor": 2.0, "tensor": None}) == {"factor": 2.0, "passes": False}
