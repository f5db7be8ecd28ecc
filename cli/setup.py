"""What `mlc init` puts beside `.mlc`: settings, the default policy, and for the demo template the embedded model and its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..registry.repository import Repository

DEMO = Path(__file__).parent / "demo"


def lay_out(directory: Path, template: str, branch: str) -> tuple[Repository, list[str]]:
    """Make the registry; returns it and the files written. A file that is already there is left as it is."""
    from ..policies.settings import template as settings_template
    from ..registry.repository import Repository

    repo = Repository.init(directory.absolute(), default_branch=branch)
    files = {name: text.encode() for name, text in settings_template(template).items()}
    if template == "demo":
        files |= {place: source.read_bytes() for place, source in _demo_files()}
    written = []
    for name, data in files.items():
        target = repo.root / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            written.append(name)
    return repo, written


def _demo_files() -> list[tuple[str, Path]]:
    """(place in the registry, file in the package): the model, the suites with their data, and the texts to train on."""
    found = [(f"model/{path.name}", path) for path in sorted((DEMO / "model").iterdir())]
    for path in sorted((DEMO / "data").iterdir()):
        of_a_suite = (DEMO / "data" / f"{path.stem}.toml").is_file()
        found.append((f"suites/{path.name}" if of_a_suite else path.name, path))
    return [(place, path) for place, path in found if path.suffix != ".md"]
