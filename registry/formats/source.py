"""What a directory or file to import holds, understood before a byte is stored.

`scan` walks, parses every header, index and config strictly, and decides which safetensors files are weights. No tensor
is read. The result can be shown (a dry run), ingested, or thrown away.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputFile, InputNotFound
from . import configs, pickles
from .index import INDEX_SUFFIX, check_index, parse_index
from .limits import DEFAULT, Limits
from .names import shown
from .safetensors import Header, read_header
from .shards import ADAPTER_CONFIG, ADAPTER_WEIGHTS, choose_primary
from .walk import FoundFile, opened, read_exactly, single, walk


@dataclass(frozen=True, slots=True)
class Source:
    """A scanned directory or file. `weights` maps the path of each weight file to its header; `primary` comes first in it."""

    root: Path
    files: tuple[FoundFile, ...]  # all of them, sorted by path
    weights: dict[str, Header]
    primary: tuple[str, ...]  # the files a loader would take
    adapter_config: dict[str, Any] | None
    warnings: tuple[str, ...]
    limits: Limits
    converted: tuple[pickles.Converted, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)

    @property
    def tensors(self) -> int:
        """Number of tensors in the weight files."""
        return sum(len(header.entries) for header in self.weights.values())


def scan(path: Path, *, follow_cache: Path | None = None, limits: Limits = DEFAULT) -> Source:
    """Look at a directory of safetensors (with config, tokenizer, anything) or at one safetensors file.

    `follow_cache` names a folder that symbolic links may lead into (a Hugging Face cache); otherwise links are refused.
    Raises InputNotFound, or BadInputFile with the file and the cause.
    """
    root, files, notes = _find(Path(path), follow_cache, limits)
    return understand(root, files, notes=notes, limits=limits)


@contextmanager
def scan_converted(path: Path, *, follow_cache: Path | None = None, limits: Limits = DEFAULT) -> Iterator[Source]:
    """As `scan`, for `--unsafe-pickle`: where there are no safetensors, pickles are converted in a locked child process.

    Ingest the source before the context ends: the converted files are gone then. `converted` on the source says what was done.
    """
    root, files, notes = _find(Path(path), follow_cache, limits)
    if any(file.path.endswith(".safetensors") for file in files) or not any(pickles.is_pickle(file.path) for file in files):
        yield understand(root, files, notes=notes, limits=limits)
        return
    with pickles.conversions(files, limits=limits) as (found, done):
        notes += [f"{one.path} (SHA-256 {one.sha256}) is a pickle: converted to {one.result}, and not kept" for one in done]
        yield dataclasses.replace(understand(root, found, notes=notes, limits=limits), converted=tuple(done))


def _find(path: Path, follow_cache: Path | None, limits: Limits) -> tuple[Path, list[FoundFile], list[str]]:
    if path.is_dir():
        files, skipped = walk(path, follow_cache=follow_cache, limits=limits)
        return path.resolve(), files, [f"{folder} is a history of its own and was left out" for folder in skipped]
    if not os.path.lexists(path):
        raise InputNotFound(f"{path} does not exist", hint="name a directory of safetensors files, or one such file")
    return path.parent.resolve(), [single(path, follow_cache=follow_cache)], []


def understand(root: Path, files: list[FoundFile], *, notes: Iterable[str] = (), limits: Limits = DEFAULT) -> Source:
    """The Source of files already found. Raises BadInputFile."""
    warnings = list(notes)
    headers = {file.path: _header(file, limits) for file in files if file.path.endswith(".safetensors")}
    pickled = [file.path for file in files if pickles.is_pickle(file.path)]
    if not any(header.entries for header in headers.values()):
        raise pickles.refusal(pickled) if pickled else _no_weights(root)
    indexes = {file.path: _index(file, limits) for file in files if file.path.endswith(INDEX_SUFFIX)}
    for path, weight_map in indexes.items():
        warnings += check_index(path, weight_map, headers)
    primary = choose_primary(headers, indexes)
    weights = _weights(headers, primary, warnings, limits)
    parsed = _parse_configs(files, warnings, limits)
    warnings += [f"{path} is a pickle: kept as bytes, never opened" for path in pickled]
    warnings += [f"{file.path} is code: kept as bytes, never run" for file in files if file.path.endswith(".py")]
    is_adapter = ADAPTER_CONFIG in parsed and ADAPTER_WEIGHTS in weights
    return Source(root, tuple(files), weights, primary, parsed[ADAPTER_CONFIG] if is_adapter else None, tuple(warnings), limits)


def _weights(headers: dict[str, Header], primary: tuple[str, ...], warnings: list[str], limits: Limits) -> dict[str, Header]:
    """The headers of the files that count as weights. A file beside the primary ones whose names are taken stays opaque."""
    owner: dict[str, str] = {}
    weights: dict[str, Header] = {}
    for path in [*primary, *sorted(set(headers) - set(primary))]:
        names = [entry.name for entry in headers[path].entries]
        taken = next((name for name in names if name in owner), None)
        if taken is not None and path in primary:
            raise BadInputFile(f"tensor {shown(taken)} is in both {owner[taken]} and {path}", path=path)
        if taken is not None:
            warnings.append(f"{path} is kept as opaque bytes: {owner[taken]} already holds its tensor {shown(taken)}")
            continue
        owner.update(dict.fromkeys(names, path))
        weights[path] = headers[path]
    if len(owner) > limits.tensors_per_model:
        raise BadInputFile(f"the model has {len(owner)} tensors, more than the limit of {limits.tensors_per_model}", path=primary[0])
    return weights


def _header(file: FoundFile, limits: Limits) -> Header:
    with opened(file) as fd:
        return read_header(fd, path=file.path, limits=limits)


def _index(file: FoundFile, limits: Limits) -> dict[str, str]:
    return parse_index(read_small(file, limits.index_bytes), path=file.path, limits=limits)


def read_small(file: FoundFile, limit: int) -> bytes:
    """The content of a file that is interpreted; BadInputFile when it is larger than `limit` bytes."""
    if file.size > limit:
        raise BadInputFile(f"{file.path} has {file.size} bytes, more than the {limit} that are read", path=file.path)
    with opened(file) as fd:
        return bytes(read_exactly(fd, file.size, 0, file.path))


def _parse_configs(files: list[FoundFile], warnings: list[str], limits: Limits) -> dict[str, dict[str, Any]]:
    parsed = {}
    for file in files:
        name = file.path.rsplit("/", 1)[-1]
        if name in configs.CONFIGS or name in configs.TOKENIZERS:
            limit = limits.config_bytes if name in configs.CONFIGS else limits.tokenizer_bytes
            parsed[file.path] = configs.parse(file.path, read_small(file, limit), limits) or {}
            if keys := configs.asks_for_code(parsed[file.path]):
                warnings.append(
                    f"{file.path} asks for remote code ({', '.join(keys)}): ignored, nothing was run, the file is kept as bytes"
                )
    return parsed


def _no_weights(path: Path) -> BadInputFile:
    return BadInputFile(
        f"{path} holds no safetensors weights", path=str(path), hint="mlc import takes a directory of safetensors files, or one such file"
    )
