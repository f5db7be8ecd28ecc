"""Runs in a process of its own, for one pickle: lock the doors, read the tensors, write safetensors, say how it went.

The last thing it does before it reads is to forbid itself any new descriptor: no file can be opened and no socket made.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

NOBODY = 65534
CLONE_NEWNET, PR_SET_NO_NEW_PRIVS = 0x40000000, 38
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where trainers put the tensors


def main(source: int, out: int, memory: int, seconds: int, size: int) -> None:
    """Convert the pickle at descriptor `source` into safetensors at `out`; one JSON object on descriptor 1 says how it went."""
    import torch

    from .safetensors import write_header
    from .torch_bytes import from_tensor

    torch.set_num_threads(1)
    _warm_up()
    stream = os.fdopen(source, "rb")
    try:
        lock_down(memory, seconds, size)
        content = torch.load(stream, map_location="cpu", weights_only=True)
        plain = {name: from_tensor(tensor) for name, tensor in tensors_of(content).items()}
        header = write_header([(name, word, shape) for name, (word, shape, _) in plain.items()], {"format": "pt"})
        for part in (header.raw, *(plain[entry.name][2] for entry in header.entries)):
            _write(out, part)
    except (
        UnpicklingError,
        Refused,
        MemoryError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        OSError,
        AttributeError,
    ) as fault:
        _write(1, json.dumps({"fault": _sentence(fault)}).encode())
    else:
        _write(1, b'{"done": true}')


def _warm_up() -> None:
    """Load both formats of torch once from memory: what it imports lazily can no longer be opened when the doors are locked."""
    import torch

    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}, buffer, _use_new_zipfile_serialization=zipped)
        buffer.seek(0)
        torch.load(buffer, map_location="cpu", weights_only=True)


class Refused(ValueError):
    """The pickle holds something else than a table of tensors."""


def lock_down(memory: int, seconds: int, size: int) -> None:
    """No network, no privilege, bounded memory, time and output, and not one new descriptor."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _leave_the_network()
    if os.geteuid() == 0:  # root could lift every limit again
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    free = os.dup(0)  # the lowest number that is free: a limit there forbids every new descriptor and keeps the open ones
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))


def _leave_the_network() -> None:
    """Linux: an empty network of our own where that is allowed. Elsewhere the descriptor limit alone stands."""
    libc = ctypes.CDLL(None)
    for name, arguments in (("unshare", (CLONE_NEWNET,)), ("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))):
        if hasattr(libc, name):
            getattr(libc, name)(*arguments)


def tensors_of(content: Any) -> dict[str, Any]:
    """The table of tensors in a loaded checkpoint: itself, or what lies under one of the usual keys. Raises Refused."""
    import torch

    for key in (None, *WRAPPERS):
        table = content if key is None else content.get(key) if isinstance(content, Mapping) else None
        if isinstance(table, Mapping) and table and all(isinstance(item, torch.Tensor) for item in table.values()):
            if not all(isinstance(name, str) for name in table):
                raise Refused("a tensor has a name that is not text")
            return dict(table)
    raise Refused("it is not a table of tensors by name")


def _sentence(fault: BaseException) -> str:
    if isinstance(fault, UnpicklingError):
        return "it asks for more than tensors, and nothing else is loaded"
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]
