"""Chapters of docs/evidence.md: what one script's JSON says, as Markdown. Each takes the document that the script prints, or None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

ABSENT = "Left out: not measured for this edition (the script is named above).\n"


def table(head: list[str], rows: Iterable[list[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]) + "\n"


def said(value: Any, digits: int = 3) -> str:
    """A number as the tables have it; `-` for what was not measured."""
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def columns(rows: Iterable[Mapping[str, Any]], keys: Mapping[str, str], digits: int = 3) -> str:
    """A table of some keys of every row; keys: name -> heading."""
    return table(list(keys.values()), ([said(row.get(key), digits) for key in keys] for row in rows))


# --- edits -----------------------------------------------------------------------------------------------


def edits(found: dict[str, Any] | None) -> str:
    """`edits.py`: facts written into the small fact models."""
    if not found:
        return ABSENT
    shown = {
        "model": "model", "edits": "edits", "subjects": "subjects", "seed": "seed", "efficacy": "efficacy", "exact_match": "exact",
        "held_out_wordings": "held-out wordings", "neighbourhood": "neighbourhood", "other_subjects": "other subjects",
        "same_subject": "same subject", "perplexity_ratio": "perplexity x", "write_fraction": "write", "refused": "refused",
    }  # fmt: skip
    order = sorted(found["rows"], key=lambda r: (r["model"], r["subjects"], r["edits"], r["seed"]))
    groups = [list(own) for _, own in groupby(order, key=lambda r: (r["model"], r["subjects"], r["edits"]))]
    order = [row for own in groups for row in (*own, *_mean(own))]
    missed = "; ".join(f"{m['model']}, {m['subjects']}, seed {m['seed']}: {', '.join(m['misses'])}" for m in found["missed"])
    return columns(order, shown) + f"\nFloors at 20 edits missed by: {missed or 'none'}.\n"


def _mean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of means, where there are several seeds that were not refused."""
    if len(rows) < 2 or any("refused" in row for row in rows):
        return []
    rates = [key for key, value in rows[0].items() if isinstance(value, float)]
    return [{**rows[0], "seed": "mean", **{key: sum(row[key] for row in rows) / len(rows) for key in rates}}]


def wide(found: list[dict[str, Any]] | None) -> str:
    """`wide_edits.py`: a hundred facts, batches one after the other, one taken back."""
    if not found:
        return ABSENT
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_part.setdefault(row["part"], []).append({k: v for k, v in row.items() if k != "part" and not isinstance(v, dict | list)})
    return "\n".join(f"**{part}**\n\n" + columns(rows, {key: key.replace("_", " ") for key in rows[0]}) for part, rows in by_part.items())


def reverts(found: dict[str, Any] | None) -> str:
    """`reverts.py`: single facts of an edit taken back."""
    if not found:
        return ABSENT
    rows = []
    for row in sorted(found["rows"], key=lambda r: (r["model"], r["subjects"], r["seed"])):
        back = [revert for revert in row["reverts"] if "refused" not in revert]
        whole = sum(revert["lost"] == 0 and revert["restored"] >= 0.95 for revert in back)
        moved = max((revert.get("moved", 0.0) for revert in back), default=None)
        least = min((revert["restored"] for revert in back), default=None)
        rows.append([
            row["model"], row["subjects"], row["seed"], said(row["efficacy"], 2), f"{whole} of {len(row['reverts'])}", said(least, 4),
            sum(revert["lost"] for revert in back), sum(bool(revert["corrected"]) for revert in back), said(moved), row["rollback_exact"],
        ])  # fmt: skip
    head = ["model", "subjects", "seed", "efficacy of the edit", "back, the others hold", "least restored", "others lost"]
    return table([*head, "reverts corrected", "most of R moved", "rollback exact"], rows)


# --- merges and patches ----------------------------------------------------------------------------------


def merges(found: dict[str, Any] | None) -> str:
    """`merges.py`: every method on siblings and on forks that learnt people; running merges."""
    if not found:
        return ABSENT
    parts = []
    for name, key in (
        ("Siblings of stories260k: perplexity on each text (next tokens lost)", "perplexity"),
        ("Forks of facts-small: recall of each fork's people", "recall"),
    ):
        world = found["siblings" if key == "perplexity" else "facts"]
        texts = [text for text, one in next(iter(world.values())).items() if key in one]
        rows = [[method, *(f"{said(line[t][key])} ({said(line[t].get('nfr'))})" for t in texts)] for method, line in world.items()]
        parts.append(f"**{name}**\n\n" + table(["version", *texts], rows))
    nats = found["chains"]["nats"]
    rows = [[name, said(one["mean"]), said(one.get("sd"))] for name, one in nats.items() if isinstance(one, dict)]
    return "\n".join(
        [
            *parts,
            "**Eight forks merged one after the other, ten orders: gain in nats, mean and deviation**\n\n"
            + table(["method", "mean", "sd"], rows),
        ]
    )


def patches(found: dict[str, Any] | None) -> str:
    """`patches.py` and `typos.py`: robustness as a signature."""
    if not found:
        return ABSENT
    rows = []
    for run in (*found["digits"], *found["typos"]):
        ternary, moved, pairs = (
            run["ternary"],
            run.get("transfer, ternary", {}),
            run.get("pairs, ternary, norm", run.get("pairs, ternary", {})),
        )
        kept = pairs.get("kept") or f"{sum(min(both) >= 0.4 for both in pairs.values())} of {len(pairs)}"
        worst = ternary.get("worst", min(ternary["each"].values()))
        loss = " / ".join(said(v, 2) for v in ternary["clean_loss"])
        cells = [
            said(ternary["recovered"]),
            said(worst),
            ternary["bytes_percent"],
            loss,
            said(run["4-bit"]["recovered"]),
            said(moved.get("recovered")),
            kept,
        ]
        rows.append([run.get("model", "typos on facts-small"), run["seed"], *cells])
    head = [
        "model",
        "seed",
        "ternary: gap recovered",
        "worst kind",
        "% of fp32 bytes",
        "clean points lost, mean / max",
        "4-bit",
        "transfer",
        "pairs",
    ]
    return table(head, rows)


def mergekit(found: dict[str, Any] | None) -> str:
    """`bench_merge.py`: CPU and memory beside mergekit."""
    if not found:
        return ABSENT
    rows = []
    for method in ("linear", "ties"):
        one = found[method]
        for stored in ("whole", "forks"):
            ours = one[stored]
            cells = [
                ours["cpu_s"],
                ours["cpu_ratio"],
                ours["above_imports_mib"],
                ours["two_threads"]["above_imports_mib"],
                ours["same_bytes_with_two_threads"],
            ]
            rows.append([method, stored, *cells])
        rows.append([f"{method}, mergekit", "-", one["mergekit"]["cpu_s"], 1, one["mergekit"]["above_imports_mib"], "-", "-"])
    return table(["merge", "ingredients", "CPU s", "of mergekit's", "MiB above imports", "with two threads", "same bytes with two"], rows)


# --- updates, answers, vectors ---------------------------------------------------------------------------


def cure(found: dict[str, Any] | None) -> str:
    """`cure.py`: each way of adversarial training per seed, the means, and how often CURE's claim holds."""
    if not found:
        return ABSENT
    seeds = [(run["seed"], run["rows"]) for run in found["runs"]]
    rows = [
        [name, seed, *(said(one[name][key]) for key in ("natural", "robust", "nrr"))]
        for name in found["means"]
        for seed, one in (*seeds, ("mean", found["means"]))
    ]
    passed = "; ".join(f"against {name} in {count}" for name, count in found["passed"].items())
    return table(["method", "seed", "natural", "robust", "NRR"], rows) + f"\nCURE's claim holds {passed} seeds.\n"


def updates(found: dict[str, Any] | None) -> str:
    """`updates.py`: what is learned and what is forgotten, control by control."""
    if not found:
        return ABSENT
    shown = {
        "row": "update", "seeds": "seeds", "new_loss": "new text, nats", "loss_ratio": "of full", "forgetting": "stories forgotten, nats",
        "forgetting_held": "held half", "forgetting_own": "own text", "lost": "earlier text lost, nats", "negative_flips": "BLiMP flips",
        "trained_share": "trained share",
        "stored_bytes": "bytes stored", "seconds": "s", "behind": "behind the front",
    }  # fmt: skip
    return "\n".join(f"**{text}**\n\n" + columns(rows, shown) for text, rows in found["summary"].items())


def compat(found: dict[str, Any] | None) -> str:
    """`compat.py`: negative flips of treated and untreated updates."""
    if not found:
        return ABSENT
    shown = {
        "nfr": "negative flips",
        "nfr_ratio": "of untreated",
        "nfr_ratio_worst": "worst seed",
        "outside_ratio": "outside the anchors",
        "accuracy": "accuracy",
        "learned": "learned",
        "loss_ratio": "new loss x",
    }
    parts = []
    for name, one in found.items():
        rows = [{"arm": arm, **values} for arm, values in one["mean"].items()]
        parts.append(f"**{name}**, seeds {', '.join(one['runs'])}\n\n" + columns(rows, {"arm": "arm", **shown}))
    return "\n".join(parts)


def embeddings(found: dict[str, Any] | None) -> str:
    """`embeddings.py`: top-1 of queries of one version in the gallery of another."""
    if not found:
        return ABSENT
    rows = []
    for seed, arms in found["tables"].items():
        for arm, one in arms.items():
            top1 = one.get("top1", {**one, "old_old": None})
            rows.append([seed, arm, said(top1["old_old"]), said(top1["new_old"]), said(top1["new_new"]), one.get("compatible", "-")])
    links = [
        [
            link["version"],
            said(link["new_new"]),
            said(link["alone"]),
            p["commit"],
            said(p["top1_old"]),
            said(p["top1"]),
            said(p["lower95"]),
            p["compatible"],
        ]
        for link in found["chain"]
        for p in link["pairs"]
    ]
    chain = table(
        [
            "version",
            "in its own gallery",
            "untouched",
            "gallery of",
            "its own queries",
            "the new queries",
            "gain in mAP, at least",
            "compatible",
        ],
        links,
    )
    return (
        table(["seed", "method", "old in old", "new in old", "new in new", "compatible"], rows)
        + "\n**Three upgrades, one after the other**\n\n"
        + chain
    )


def gates(found: dict[str, Any] | None) -> str:
    """`gates.py`: simulated verdicts."""
    if not found:
        return ABSENT
    rows = [[world, said(share, 4)] for world, share in found["refused"].items()]
    lead = f"{found['simulations']:,} simulated verdicts of {found['n']:,} examples, alpha {found['alpha']:g}.\n\n"
    return lead + table(["world", "refused"], rows) + f"\nAt 1 % background the gate says: {found['at 1 % background the gate says']}.\n"


def provenance(found: dict[str, Any] | None) -> str:
    """`provenance.py`: does a version descend from a recorded training run?"""
    if not found:
        return ABSENT
    rows = found["rows"]
    return columns(rows, {key: key.replace("_", " ") for key in rows[0] if not isinstance(rows[0][key], dict | list)}, digits=6)


CHAPTERS: dict[str, tuple[str, str, Callable[[Any], str]]] = {  # key -> title, what was done, renderer
    "edits": (
        "Facts edited",
        "`edits.py`: `mlc edit` on the small fact models, `--layers auto`; facts drawn with the seed, learnt from a prompt and three "
        "wordings, asked in wordings that nobody saw.",
        edits,
    ),
    "reverts": (
        "Single facts taken back",
        "`reverts.py`: one of twenty facts is taken back, ten different ones in turn, each from the whole edit. Restored: share of the "
        "preference for the answer before; asked for is .95, and that no other fact of the edit turns.",
        reverts,
    ),
    "wide": (
        "A hundred facts",
        "`wide_edits.py` on the model that `wider.py` makes: names of several tokens; in nine of ten training rows what stands behind a "
        "name sees only the name's last token, and that past the first block only: so the model keeps facts where large models keep them.",
        wide,
    ),
    "merges": ("Merges", "`merges.py`; its docstring says what every column is.", merges),
    "mergekit": (
        "Merges beside mergekit 0.1.5",
        "`bench_merge.py`: two bf16 Llamas of 490 MB, importing the libraries left out on both sides; ours is committed and hashed.",
        mergekit,
    ),
    "patches": (
        "Robustness patches",
        "`patches.py` (digits, six corruptions) and `typos.py`; strength 1, chosen on other seeds.",
        patches,
    ),
    "cure": (
        "CURE beside its baselines",
        "`cure.py`: a clean CNN on digits made robust by each method of `patch train` in 1,000 steps; robust is PGD-20. Epsilon, rate and "
        "weights were chosen on other seeds, CURE's weight after seeds 0 to 2 had been seen with the paper's weight of 1.",
        cure,
    ),
    "updates": (
        "What updates keep",
        "`updates.py`: stories260k learns one book and then another, 150 steps of 8 rows of 128 tokens each, through the conductor.",
        updates,
    ),
    "compat": ("Old answers kept", "`compat.py`; its docstring says what is asked.", compat),
    "embeddings": (
        "Old galleries searched",
        "`embeddings.py`: all-MiniLM-L6-v2 is the old encoder, the new ones are trained from nothing; 60 people that no training saw.",
        embeddings,
    ),
    "gates": ("The gate's own errors", "`gates.py`.", gates),
    "provenance": ("Where a version comes from", "`provenance.py`: the order test of `mlc provenance`.", provenance),
}


def chapters(found: Mapping[str, Any]) -> str:
    """All chapters, in order; what is missing says so."""
    return "\n".join(f"## {title}\n\n{lead}\n\n{render(found.get(key))}" for key, (title, lead, render) in CHAPTERS.items())
