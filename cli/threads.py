"""How much of the machine a calculation may take, said to the thread library before it is loaded.

A container often shows 64 cores and grants two; a thread pool that believes the first stands in its own way. And threads
that spin while they wait take the core from the one they wait for: on a busy machine training took twice as long.
What the user has set in the environment holds.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": microseconds granted in each period, or "max 100000"


def say(environment: MutableMapping[str, str], quota: Path = QUOTA) -> None:
    """Set what the OpenMP libraries read, where it is not set."""
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    granted = _granted(quota)
    if granted is not None and granted < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(granted))


def _granted(quota: Path) -> int | None:
    """Whole cores that the control group may use; None when it is not limited."""
    try:
        most, period = quota.read_text(encoding="ascii").split()[:2]
        return max(1, round(int(most) / int(period)))
    except (OSError, ValueError):
        return None
