"""`update --expand 1` on several families, through the command line: equality at insertion, and what training left alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mlc.tests.benchmarks import walk
from mlc.tests.factories import tiny_model

WORDS = "the river stone near amber harbour speaks north of the lamp in south one two red blue was opens sells is on a "


def sources(place: Path) -> dict[str, Path]:
    """Model directories: two real ones when the material is here, and random Qwen3 and GPT-2."""
    found = {"random Qwen3": tiny_model(place / "qwen3", "qwen3", layers=4), "random GPT-2": tiny_model(place / "gpt2", "gpt2", layers=4)}
    real = walk.MATERIAL / "models"
    return {**{name: real / name for name in ("stories260k", "facts-deep") if (real / name).is_dir()}, **found}


def main() -> list[dict[str, Any]]:
    """One row per model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        text = place / "text.txt"
        text.write_text(WORDS * 200)
        for name, source in sources(place).items():
            registry = walk.Registry(place / f"registry-{name.replace(' ', '-')}")
            registry.mlc("import", str(source))
            data = walk.MATERIAL / "data" / "oz" / "oz-train.txt" if "random" not in name else text
            done = registry.mlc("update", "--data", str(data), "--expand", "1", "--steps", "20", "--seq-len", "32", "--seed", "0")
            commit = done["json"]["commit"] or {"check": done["json"]["check"]}
            insertion = commit["check"]["insertion"]
            rows.append({
                "model": name, "exit": done["exit"], "positions": insertion["positions"], "copies_of": insertion["copies_of"],
                "max_logit_difference": insertion["max_logit_difference"],
                "old_tensors_unchanged": commit["check"]["expansion"],
            })  # fmt: skip
    return rows


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
