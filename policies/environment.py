"""What a commit says about the machine it was made on: versions, device, threads. No names of hosts or people."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..registry.records import Json


def environment(*, forward: bool = False) -> dict[str, Json]:
    """The record. With `forward`, what decides the bits of a forward pass is named too (torch is loaded by then)."""
    found: dict[str, Json] = {
        "mlc": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": sys.platform,
    }
    if forward:
        import torch

        found |= {
            "torch": str(torch.__version__),
            "transformers": installed("transformers"),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    return found


def installed(package: str) -> str | None:
    """The version of an installed package without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
