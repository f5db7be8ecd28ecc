"""`mlc policy`: the rules of the gate, before they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..context import Session
from ..options import complete_rev
from ..render.text import count

Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Policy files.", show_default="those in force here")]


WORDS = {"number": "number", "integer": "whole number", "string": "text", "array": "list of texts"}


def group() -> None:
    """Check, explain and try the rules of the gate."""


def _rules(session: Session, files: list[Path] | None) -> tuple[list[Any], list[str]]:
    """Rules, and the names of the files they stand in."""
    from ...policies.rules.load import load_files, load_policy

    rules, records = load_files(files) if files else load_policy(session.settings)
    return rules, [record.name for record in records]


def check(session: Session, files: Files = None) -> None:
    """Read policy files and say whether every key and value is valid."""
    rules, names = _rules(session, files)
    document = {"valid": True, "files": names, "rules": [rule.id for rule in rules]}
    session.show(document, lambda: session.line(f"{', '.join(names) or 'No policy file'}: {count(len(rules), 'rule')}, all valid."))
    session.hint("mlc policy explain")


def explain(session: Session, files: Files = None) -> None:
    """Say each rule as one sentence."""
    rules, names = _rules(session, files)
    document = {
        "files": names,
        "rules": [{"id": rule.id, "sentence": rule.explain(), "action": rule.action, "note": rule.note} for rule in rules],
    }

    def render() -> None:
        for rule in document["rules"]:
            name, _, sentence = rule["sentence"].partition(": ")  # type: ignore[union-attr]
            session.line(f"{session.paint.cyan(name)}: {sentence}")
            if rule["note"]:
                session.line(session.paint.dim(f"  {rule['note']}"))

    session.show(document, render)
    session.hint("mlc policy test A B")


def schema(session: Session) -> None:
    """Print the keys of a policy file: a table, or JSON Schema under --json."""
    from ...policies.schemas import PolicyFile

    document = PolicyFile.model_json_schema()
    session.show(document, lambda: _render_schema(session, document["$defs"]["RuleTable"]))
    session.hint("mlc policy check FILE")


def test(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="The version before: any rev.", autocompletion=complete_rev)],
    b: Annotated[str, typer.Argument(metavar="B", help="The version that would follow it.", autocompletion=complete_rev)],
) -> None:
    """Say what the gate would decide if B followed A; nothing is recorded."""
    from ..judging import judge_pair

    judge_pair(session, candidate=b, against=a)


def _render_schema(session: Session, table: dict[str, Any]) -> None:
    from ..render.console import print_table

    rows = [
        (name, _kind(spec), "" if spec.get("default") is None else str(spec["default"]), spec.get("description", ""))
        for name, spec in table["properties"].items()
    ]
    session.line("Each [[rule]] has these keys:")
    print_table(session.console(), ("key", "value", "default", ""), rows, styles={"key": "cyan"})


def _kind(spec: dict[str, Any]) -> str:
    if "enum" in spec:
        return " | ".join(spec["enum"])
    if "anyOf" in spec:
        return " | ".join(_kind(part) for part in spec["anyOf"] if part.get("type") != "null")
    word: str = spec.get("type", "")
    return WORDS.get(word, word)


SUBVERBS = {"check": check, "explain": explain, "schema": schema, "test": test}
