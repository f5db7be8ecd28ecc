"""`mlc align`: bring a version back to what an older one got right. The options are the fields of the operation."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...ops.catalog import load
from ...registry.errors import BadParameter
from ..conduct import conduct
from ..context import Session
from ..operations import begin, given, joined, options_of
from ..options import RESUMED, Mutation, Resume, Rev

OPERATION = load("align")
METAVARS = {"to": "REV", "data": "FILE", "method": "NAME", "text": "FILE:RATIO", "adapter": "lora:R"}
Options = options_of(OPERATION, METAVARS)
EMBEDDINGS = load("align.embeddings")  # the same verb for encoders: its further options, those of the same name having the same sense
SHARED = {field.name for field in dataclasses.fields(OPERATION)}
FURTHER = {"extra": "N", "old_weight": "X", "scale": "X"}
EncoderOptions = options_of(EMBEDDINGS, FURTHER, SHARED)
OPTIONAL_VALUES = RESUMED

EPILOG = """Examples:
  mlc align main --to main~1 --data questions.jsonl
  mlc align v2 --to v1 --data questions.jsonl --text new.txt:0.5 --branch v2-aligned
  mlc align v2 --to v1 --data suite.toml --method muscle-student --adapter lora:16 --branch compat
  mlc align main --to @champion --data images.jsonl --method focal-logits
  mlc align encoder-v2 --to encoder-v1 --data labelled.jsonl --method oca      vectors for the old gallery
  mlc align --resume                                      go on after a kill"""


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    encoder: EncoderOptions,  # type: ignore[valid-type]
    how: Mutation,
    rev: Rev = None,
    resume: Resume = None,
) -> None:
    """Train a version towards the right answers of an older one."""

    def pinned(values: dict[str, Any]) -> dict[str, Any]:
        """What a name means later must not change what was aligned to."""
        return {**values, "to": session.repo.resolve(values["to"])} if values.get("to") else values

    def measured(check: dict[str, Any]) -> None:
        if found := check.get("compat"):
            top1 = check["top1"]
            words = f"{100 * top1['old_old']:.1f} % to {100 * top1['new_old']:.1f} %, a gain in mAP of at least {found['lower95']:+.4f}"
            session.line(f"Searching the old gallery, top-1: {words}.")
        if (before := check.get("nfr_before")) is not None and (after := check.get("nfr_after")) is not None:
            words = f"{100 * before:.2f} % to {100 * after:.2f} %"
            session.line(f"Lost answers on {check['examples']} {check['measured_on']}: {words}.")

    kind = EMBEDDINGS if resume is None and _encodes(session, rev) else OPERATION
    options = joined(operation, encoder)
    _check_options(kind, options)
    verb = "compat" if kind is EMBEDDINGS else "diff"
    conduct(
        session,
        lambda: begin(session, kind, options, how, rev, resume, pinned),
        hint=lambda commit: f"mlc {verb} {commit['op']['params']['to'][:12]} {commit['short']}" + (" --flips" if verb == "diff" else ""),
        measured=measured,
    )


def _encodes(session: Session, rev: str | None) -> bool:
    """Whether the version turns texts into vectors: a bare body without a head that writes or classifies."""
    from ..differences import config_file

    repo = session.repo
    config = config_file(repo, repo.snapshot(repo.commit(repo.resolve(rev)).snapshot)) or {}
    return any(str(name).endswith(("Model", "ForMaskedLM")) for name in config.get("architectures") or ())


def _check_options(kind: Any, options: Any) -> None:
    """Options of the other kind of model are refused: what is ignored in silence is believed to have had an effect."""
    known = {field.name for field in dataclasses.fields(kind)}
    for name in given(options):
        if name not in known:
            other = "encoders" if kind is OPERATION else "models that answer"
            raise BadParameter(f"--{name.replace('_', '-')} is for {other}; this version is none", hint="mlc align --help")
