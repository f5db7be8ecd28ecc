"""Runs in a process of its own, because torch chooses the capability when it starts: checks every tensor of a registry."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mlc.registry.maintenance.fsck import fsck
from mlc.registry.repository import Repository

if __name__ == "__main__":
    repo = Repository.open(Path(sys.argv[1]))
    derived = sum(info.codec == "derived" for info in repo.objects.iter_infos())
    print(torch.backends.cpu.get_cpu_capability(), derived, fsck(repo, 3).clean)
