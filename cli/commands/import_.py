"""`mlc import`: bytes come in as they are; nothing from them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...registry.errors import RemoteError
from ..conduct import conduct
from ..context import Session
from ..options import Mutation


def run(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A directory of safetensors with config and tokenizer, or one file.")],
    how: Mutation,
    adapter_of: Annotated[str | None, typer.Option(metavar="REV", help="SRC is a PEFT adapter that sits on REV.")] = None,
    follow_cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Follow links that end inside DIR, such as a hub cache.")] = None,
    unsafe_pickle: Annotated[bool, typer.Option("--unsafe-pickle", help="Convert pickled weights in a locked child process.")] = False,
) -> None:
    """Bring a model directory or one safetensors file under version control."""
    from ...policies import lifecycle

    if source.startswith("hf://"):
        name = source.removeprefix("hf://").partition("@")[0]
        raise RemoteError("Models are not fetched from the hub yet.", hint=f"hf download {name} --local-dir DIR, then mlc import DIR")
    conduct(
        session,
        lambda: lifecycle.import_model(
            session.repo,
            source,
            adapter_of=adapter_of,
            follow_cache=follow_cache,
            unsafe_pickle=unsafe_pickle,
            **how.arguments(session, "import"),
        ),
        hint=lambda commit: "mlc show" if commit["metrics"] else "mlc eval --suite FILE",
    )
