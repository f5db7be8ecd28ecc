"""One edit of many is taken back: whether its fact is as before, the others stay, and a rollback gives the first bytes.

    python tests/benchmarks/reverts.py --models facts-small,facts-deep --edits 20 --seeds 31

Needs the optional material. For facts that have a subject of their own and for subjects with several facts, of which one goes and the
others stay. Prints one JSON object per row: `lost` counts other facts that turned, `corrected` those that the closed form alone would have
lost; `refused` says why a fact cannot be taken back alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlc.tests.benchmarks.edits import MATERIAL, draw, write


def row(model: str, count: int, seed: int, several: bool, place: Path, taken: int = 1, **options: Any) -> dict[str, Any]:
    """Edit, take `taken` facts back, each on a branch of its own, roll back."""
    from mlc.ops.edit.edit import Edit
    from mlc.policies import lifecycle
    from mlc.policies.unedit import revert_facts
    from mlc.registry.errors import CheckFailed
    from mlc.registry.repository import Repository

    repo = Repository.init(place / "work")
    root = lifecycle.import_model(repo, MATERIAL / "models" / model, author="bench").commit_id
    edits = draw(model, count, seed, several)
    op = Edit(facts=str(write(place / "facts.jsonl", edits)), **options)
    edit = lifecycle.run(repo, op, author="bench", seed=seed)
    found: dict[str, Any] = {"model": model, "edits": count, "subjects": "several facts each" if several else "one fact each", "seed": seed}
    written = repo.commit(edit.commit_id).check
    found |= {"layers": written["layers"], "efficacy": written["efficacy"], "reverts": []}
    for fact in [e["id"] for e in edits[:: max(1, count // taken)]][:taken]:
        try:
            check = revert_facts(repo, edit.commit_id, (fact,), ref=edit.commit_id, branch=f"without-{fact}").commit.check
            about = {"fact": fact, "lost": len(check["turned"]), "corrected": len(check["corrected"]), **check.get("correction", {})}
            found["reverts"].append(about | {k: check[k] for k in ("restored", "efficacy_before", "efficacy", "others")})
        except CheckFailed as fault:
            values = fault.details.get("check", {})
            found["reverts"].append(
                {"fact": fact, "refused": fault.message, "restored": values.get("restored"), "efficacy": values.get("efficacy")}
            )
    back = lifecycle.rollback(repo, root).commit
    found["rollback_exact"] = back.snapshot == repo.commit(root).snapshot
    return found


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", default="facts-small,facts-deep")
    ask.add_argument("--edits", type=int, default=20)
    ask.add_argument("--seeds", default="31")
    ask.add_argument("--subjects", default="one,several")
    ask.add_argument("--taken", type=int, default=10, help="facts taken back, each from the whole edit")
    ask.add_argument("--out", type=Path, help="file of the rows, written anew after each")
    given = ask.parse_args()
    rows = []
    for model in given.models.split(","):
        for seed in map(int, given.seeds.split(",")):
            for kind in given.subjects.split(","):
                with tempfile.TemporaryDirectory() as place:
                    rows.append(row(model, given.edits, seed, kind == "several", Path(place), given.taken))
                print(json.dumps(rows[-1]))
                sys.stdout.flush()
                if given.out:
                    given.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
