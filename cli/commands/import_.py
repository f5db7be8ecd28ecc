"""`mlc import`: bytes come in as they are; nothing from them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from ..conduct import conduct
from ..context import Session
from ..options import Mutation


def run(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A directory of safetensors with config and tokenizer, or one file.")],
    how: Mutation,
    adapter_of: Annotated[str | None, typer.Option(metavar="REV", help="SRC is a PEFT adapter that sits on REV.")] = None,
) -> None:
    """Bring a model directory or one safetensors file under version control."""
    from ...policies import lifecycle

    conduct(
        session,
        lambda: lifecycle.import_model(session.repo, source, adapter_of=adapter_of, **how.arguments(session)),
        hint=lambda commit: "mlc show" if commit["metrics"] else "mlc eval --suite FILE",
    )
