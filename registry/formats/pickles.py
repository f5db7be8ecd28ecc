"""Weights in pickle files: refused, because reading them can run code; converted in a locked child process on request."""

from __future__ import annotations

from ..errors import BadInputFile
from .names import shown

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


def is_pickle(path: str) -> bool:
    """Whether the name is one that weights in pickle form go by."""
    return path.lower().endswith(SUFFIXES)


def refusal(paths: list[str]) -> BadInputFile:
    """The error for a source whose only weights are pickles."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return BadInputFile(
        f"the weights are in a pickle file ({shown(paths[0])}{more}), and a pickle can run code when it is read",
        hint="mlc import --unsafe-pickle SRC converts it in a locked child process",
        path=paths[0],
    )
