"""Weights in pickle files: refused, because reading them can run code; converted in a locked child process on request.

The child reads one open descriptor with `weights_only=True`, given explicitly, and writes safetensors to another; it has no network, no
environment, bounded time and memory, and no second attempt. What it wrote is scanned like any file from a stranger.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputFile
from .limits import DEFAULT, Limits
from .names import shown
from .walk import FoundFile, opened

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")  # what trainers leave beside a model
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    "from mlc.registry.formats.pickle_child import main; main(*map(int, sys.argv[2:]))"
)


@dataclass(frozen=True, slots=True)
class Converted:
    """A pickle that became a safetensors file. `sha256` and `bytes` are the pickle's."""

    path: str
    sha256: str
    bytes: int
    result: str


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


@contextmanager
def conversions(files: list[FoundFile], *, limits: Limits = DEFAULT) -> Iterator[tuple[list[FoundFile], list[Converted]]]:
    """`files` with every pickle of weights replaced by its conversion, which lives in a private folder until the context ends.

    Raises BadInputFile when a pickle is anything but a table of tensors.
    """
    with tempfile.TemporaryDirectory(prefix="mlc-pickle-") as folder:
        scratch, kept, done = Path(folder).resolve(), [], []
        for number, file in enumerate(files):
            if is_pickle(file.path) and not file.path.rsplit("/", 1)[-1].startswith(_NO_WEIGHTS):
                place = f"{number}.safetensors"
                done.append(_convert(file, scratch / place, limits))
                kept.append(FoundFile(done[-1].result, (scratch / place).stat().st_size, scratch, place))
            elif file.path.endswith(".bin.index.json"):
                place = f"{number}.json"
                (scratch / place).write_bytes(_renamed_index(file, limits))
                kept.append(FoundFile(_renamed(file.path), (scratch / place).stat().st_size, scratch, place))
            else:
                kept.append(file)
        yield sorted(kept, key=lambda file: file.path), done


def _renamed(path: str) -> str:
    """pytorch_model-00001-of-00002.bin -> model-00001-of-00002.safetensors, its index likewise; otherwise only the suffix changes."""
    folder, slash, name = path.rpartition("/")
    name = name.removeprefix("pytorch_") if name.startswith("pytorch_model") else name
    if name.endswith(".bin.index.json"):
        return folder + slash + name.removesuffix(".bin.index.json") + ".safetensors.index.json"
    return folder + slash + name.rpartition(".")[0] + ".safetensors"


def _renamed_index(file: FoundFile, limits: Limits) -> bytes:
    from .index import write_index
    from .source import read_small
    from .strict_json import read_object

    content = read_object(read_small(file, limits.index_bytes), path=file.path, limit=limits.index_bytes, limits=limits)
    weight_map, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadInputFile(f"{file.path} has no weight_map of tensor names to shards", path=file.path)
    return write_index({name: _renamed(shard) for name, shard in weight_map.items()}, metadata if isinstance(metadata, dict) else {})


def _convert(file: FoundFile, target: Path, limits: Limits) -> Converted:
    with opened(file) as source:
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            answer = _run_child(source, out, file, limits)
        finally:
            os.close(out)
        if answer is not None:
            raise BadInputFile(f"{file.path} cannot be converted: {answer}", path=file.path, hint="ask its author for safetensors")
        with os.fdopen(os.dup(source), "rb") as stream:
            stream.seek(0)
            return Converted(file.path, hashlib.file_digest(stream, "sha256").hexdigest(), file.size, _renamed(file.path))


def _run_child(source: int, out: int, file: FoundFile, limits: Limits) -> str | None:
    """None when the child converted everything, else why not."""
    memory = limits.pickle_memory + 4 * file.size
    numbers = [source, out, memory, limits.pickle_seconds, 4 * file.size + (1 << 30)]
    try:
        result = subprocess.run(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path), *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"LANG": "C.UTF-8"},  # nothing of ours: no token can leak into what a pickle might run
            cwd="/",
            pass_fds=(source, out),
            timeout=limits.pickle_seconds,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {limits.pickle_seconds} seconds"
    return _verdict(result.returncode, result.stdout)


def _verdict(code: int, answer: bytes) -> str | None:
    if code < 0:
        return f"the conversion was stopped by signal {-code}, as happens when it needs too much memory or time"
    try:
        said: Any = json.loads(answer)
    except ValueError:
        said = None
    if code == 0 and said == {"done": True}:
        return None
    return (
        ascii(said["fault"])[1:-1][:200]
        if isinstance(said, dict) and isinstance(said.get("fault"), str)
        else "the conversion ended without an answer"
    )
