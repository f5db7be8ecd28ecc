"""Rows of other people's fact files, told in our own words: CounterFact, its EasyEdit layout, known-1000, ParaRel and fact worlds.

Each layout is known by a key that no other has. What comes out is a row as `read_facts` takes it; what is wrong with it is said there.
A file that only states facts (known-1000, ParaRel, an object without alternatives) gives facts to assert: the object is what is written.
Where a layout writes whole prompts, the subject that stands in them once is taken out; our own rows must say `{}` themselves.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile

SLOT = "{}"
PATTERNS = "patterns.json"  # beside a ParaRel file: relation -> patterns with [X] and [Y]

Row = dict[str, Any]


def own_words(row: Row, path: Path) -> Row:
    """`row` with our own keys. Raises BadInputFile when a ParaRel row has no patterns; leaves rows of unknown layout as they are."""
    if isinstance(row.get("requested_rewrite"), dict):
        return _counterfact(row)
    if "ground_truth" in row and "target_new" in row:
        return _slotted(_easyedit(row))
    if "attribute" in row and "target_new" not in row:
        return _slotted({**_renamed(row, {"known_id": "id", "relation_id": "relation"}), "target_new": row["attribute"]})
    if "object" in row and "target_new" not in row:
        return _slotted(_stated(row, path))
    return row


def _counterfact(row: Row) -> Row:
    asked = row["requested_rewrite"]
    new, true = (_named(asked.get(key)) for key in ("target_new", "target_true"))
    found = {**_renamed(asked, {"relation_id": "relation"}), "target_new": new, "target_true": true, "id": row.get("case_id")}
    found["paraphrases"] = row.get("paraphrase_prompts", [])
    beside = row.get("neighborhood_prompts", [])
    found["neighbourhood"] = [[prompt, true] for prompt in beside] if true and isinstance(beside, list) else []
    return {key: value for key, value in found.items() if value is not None}


def _easyedit(row: Row) -> Row:
    found = _renamed(row, {"case_id": "id", "ground_truth": "target_true", "relation_id": "relation"})
    if row.get("rephrase_prompt"):
        found["paraphrases"] = [row["rephrase_prompt"]]
    if row.get("locality_prompt") and row.get("locality_ground_truth"):
        found["neighbourhood"] = [[row["locality_prompt"], row["locality_ground_truth"]]]
    return found


def _stated(row: Row, path: Path) -> Row:
    others = row.get("alternatives")
    if others:
        first = others[0] if isinstance(others, list) else others
        row = {**row, "target_new": first, "target_true": row["object"]}
    else:
        row = {**row, "target_new": row["object"]}
    if "prompt" in row or "prompt_template" in row:
        return row
    wordings = _wordings(path.parent / PATTERNS).get(str(row.get("relation")), ())
    if not wordings:
        return row
    return {**row, "prompt": wordings[0], "paraphrases": wordings[1:]}


def _slotted(row: Row) -> Row:
    """With `{}` in place of the subject of a whole prompt; as it is where the subject does not stand in it just once."""
    prompt, subject = row.get("prompt"), row.get("subject")
    if not isinstance(prompt, str) or not isinstance(subject, str) or SLOT in prompt or not subject or prompt.count(subject) != 1:
        return row
    return {**row, "prompt": prompt.replace(subject, SLOT)}


def _renamed(row: Row, names: dict[str, str]) -> Row:
    return {names.get(key, key): value for key, value in row.items()}


def _named(value: Any) -> Any:
    return value.get("str") if isinstance(value, dict) else value


@cache
def _read_patterns(path: Path, _: int) -> dict[str, list[str]]:
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:
        raise BadInputFile(f"{path} is not valid JSON", path=str(path)) from fault
    if not isinstance(told, dict):
        raise BadInputFile(f"{path} should map relations to patterns", path=str(path))
    return {relation: [p for p in map(_prompt, patterns) if p] for relation, patterns in told.items() if isinstance(patterns, list)}


def _wordings(path: Path) -> dict[str, list[str]]:
    """relation -> prompts with one `{}`, from patterns whose answer comes last; {} where there is no such file."""
    try:
        return _read_patterns(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


def _prompt(pattern: Any) -> str | None:
    """`[X] was born in [Y] .` -> `{} was born in`; None where the answer does not come last, or something stands twice."""
    if not isinstance(pattern, str) or pattern.count("[X]") != 1 or pattern.count("[Y]") != 1:
        return None
    text = re.sub(r"[\s.]+$", "", pattern)
    return text.removesuffix("[Y]").strip().replace("[X]", SLOT) if text.endswith("[Y]") else None
