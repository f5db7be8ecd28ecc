"""mlc.toml: defaults without a file, values with one, and a place for every complaint."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlc.policies.settings import Remote, Settings, template
from mlc.registry.errors import BadRecipe, InputNotFound


def read(tmp_path, text: str) -> Settings:
    (tmp_path / "mlc.toml").write_text(text, encoding="utf-8")
    return Settings.read(tmp_path)


def test_without_a_file_everything_is_the_default(tmp_path):
    settings = Settings.read(tmp_path)

    assert settings == Settings.default(tmp_path)
    assert (settings.default_branch, settings.suites, settings.seeds, settings.batch_tokens) == ("main", (), (0,), 8192)
    assert settings.policy_paths() is None


def test_every_key_of_the_handbook_is_read(tmp_path):
    settings = read(
        tmp_path,
        """
        [registry]
        default_branch = "trunk"
        link = "copy"
        cache_bytes = 5
        [eval]
        suites = ["suites/*.toml"]
        seeds = [3, 4]
        batch_tokens = 100
        [policy]
        files = []
        protected = ["@champion"]
        [remote.origin]
        url = "dir:///x"
        sign = true
        [limits]
        header_bytes = 77
        """,
    )

    assert (settings.default_branch, settings.link, settings.cache_bytes) == ("trunk", "copy", 5)
    assert (settings.suites, settings.seeds, settings.batch_tokens) == (("suites/*.toml",), (3, 4), 100)
    assert settings.policy_paths() == []
    assert settings.is_protected("champion")
    assert settings.is_protected("@champion")
    assert not settings.is_protected("main")
    assert settings.remotes == {"origin": Remote("dir:///x", True)}
    assert settings.limits.header_bytes == 77


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[registry]\ndefault_brnch = 'x'", "mlc.toml, line 2, column 1: unknown key 'default_brnch'", "did you mean 'default_branch'?"),
        ("[remote.origin]\nurl='x'\n sgin=true", "mlc.toml, line 3, column 2: unknown key 'sgin'", "did you mean 'sign'?"),
        ("[remot.origin]\nsign=true", "mlc.toml, line 1, column 2: unknown key 'remot'", "did you mean 'remote'?"),
        ("eval = {suites = ['a'], sedes = [1]}", "mlc.toml, line 1, column 25: unknown key 'sedes'", "did you mean 'seeds'?"),
        ("\n[limits]\nheader_byte = 3", "mlc.toml, line 3, column 1: unknown key 'header_byte'", "did you mean 'header_bytes'?"),
        ("[limits]\nheader_bytes = 0", "mlc.toml, line 2, column 1: header_bytes must be at least 1", None),
        ("[eval]\nsuites = ['a',\n 3]", "mlc.toml, line 3, column 2: eval.suites: input should be a valid string (found 3)", None),
        ("[eval]\nbatch_tokens = true", "line 2, column 1: eval.batch_tokens: input should be a valid integer (found True)", None),
        ("[registry]\nlink = 'soft'", "line 2, column 1: registry.link: input should be 'auto', 'copy', 'hardlink' or 'reflink'", None),
        ("[registry]\ndefault_branch = 'Main'", "line 2, column 1: registry.default_branch: string should match", None),
        ("[remote.origin]\nsign = true", "mlc.toml, line 1, column 2: the key 'url' is missing", "add url = ..."),
        ("x = ", "mlc.toml, line 1, column 1: not valid TOML", None),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(tmp_path, text, message, hint):
    with pytest.raises(BadRecipe) as caught:
        read(tmp_path, text)

    assert message in caught.value.message
    assert caught.value.hint == hint or hint is None
    assert caught.value.details["line"] >= 1


def test_suites_are_found_in_the_order_listed_and_missing_ones_are_named(tmp_path):
    (tmp_path / "suites").mkdir()
    for name in ("b", "a"):
        (tmp_path / "suites" / f"{name}.toml").touch()
    settings = read(tmp_path, '[eval]\nsuites = ["suites/b.toml", "suites/*.toml"]')

    assert [path.name for path in settings.suite_files()] == ["b.toml", "a.toml"]
    with pytest.raises(InputNotFound, match=r"the suite suites/c\.toml is named in mlc\.toml but not there"):
        read(tmp_path, '[eval]\nsuites = ["suites/c.toml"]').suite_files()


@pytest.mark.parametrize("name", ["minimal", "demo"])
def test_the_files_that_init_writes_are_valid(tmp_path, name):
    for place, text in template(name).items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)

    settings = Settings.read(tmp_path)

    assert [path.name for path in settings.policy_paths() or []] == ["default.toml"]
    assert settings.suites == (("suites/*.toml",) if name == "demo" else ())


def test_settings_without_a_file_import_no_pydantic(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mlc.policies.settings import Settings; "
        f"Settings.read(Path({str(tmp_path)!r})); print([m for m in ('pydantic', 'torch', 'duckdb', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
