"""One file per verb. This table is all that `mlc --help` and completion read; a module is imported when its verb is called.

Each module holds `app`, a `Verb` (cli/options.py). A test compares the summaries here with the docstrings there.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a verb stands in the help, which module holds it, and its one line."""

    panel: str
    module: str
    summary: str


START, HISTORY, CHANGE, JUDGE, CARE = (
    "Start and move content",
    "Look at history",
    "Change a model",
    "Measure and decide",
    "Keep house",
)

VERBS: dict[str, Entry] = {
    "init": Entry(START, "init", "Make a registry in a directory."),
    "import": Entry(START, "import_", "Bring a model directory or one safetensors file under version control."),
    "commit": Entry(START, "commit", "Record a directory that another tool changed."),
    "export": Entry(START, "export", "Write a version out again, byte for byte."),
    "demo": Entry(START, "demo", "Walk through the whole job on the embedded model."),
    "status": Entry(HISTORY, "status", "Show the current branch, its tip and what is unfinished."),
    "log": Entry(HISTORY, "log", "Show the commits behind a version, newest first."),
    "show": Entry(HISTORY, "show", "Show one commit: what was done, measured and decided."),
    "diff": Entry(HISTORY, "diff", "Compare two versions: behaviour, weights and config."),
    "compat": Entry(HISTORY, "compat", "Say whether a version's vectors may be searched in an older version's gallery."),
    "drift": Entry(HISTORY, "drift", "Show how answers moved from version to version."),
    "impact": Entry(HISTORY, "impact", "Find every version that still carries a data set."),
    "provenance": Entry(HISTORY, "provenance", "Test whether a version descends from a recorded training run."),
    "refs": Entry(HISTORY, "refs", "List branches, tags and aliases."),
    "branch": Entry(HISTORY, "branch", "List, start, move or remove branches."),
    "tag": Entry(HISTORY, "tag", "List, set or remove tags."),
    "alias": Entry(HISTORY, "alias", "List, set or remove aliases such as @champion."),
    "switch": Entry(HISTORY, "switch", "Make another branch the current one."),
    "update": Entry(CHANGE, "update", "Train a version further on new text."),
    "align": Entry(CHANGE, "align", "Train a version towards the right answers of an older one."),
    "edit": Entry(CHANGE, "edit", "Write facts into a version's weights, checked and reversible."),
    "unlearn": Entry(CHANGE, "unlearn", "Make a version forget records, measured and with evidence."),
    "patch": Entry(CHANGE, "patch", "Take robustness from one model, lay it over others, and take it off to the byte."),
    "merge": Entry(CHANGE, "merge", "Merge several versions into one."),
    "unmerge": Entry(CHANGE, "unmerge", "Take one ingredient out of a merge, to the byte."),
    "retract": Entry(CHANGE, "retract", "Take the new blocks of an update out, to the byte."),
    "rollback": Entry(CHANGE, "rollback", "Return a branch to an earlier version's content, proven by digest."),
    "revert": Entry(CHANGE, "revert", "Take one commit's change back."),
    "undo": Entry(CHANGE, "undo", "Take the last move of refs back."),
    "redo": Entry(CHANGE, "redo", "Repeat a move that was undone."),
    "runs": Entry(CHANGE, "runs", "List unfinished runs that can be resumed."),
    "eval": Entry(JUDGE, "eval", "Measure a version on a suite."),
    "embed": Entry(JUDGE, "embed", "Turn texts into vectors: a gallery to keep, or a search in one."),
    "gate": Entry(JUDGE, "gate", "Ask the policy whether one version may follow another."),
    "accept": Entry(JUDGE, "accept", "Promote a refused candidate with a waiver and a reason."),
    "policy": Entry(JUDGE, "policy", "Check, explain and try the rules of the gate."),
    "recipe": Entry(JUDGE, "recipe", "Check or show a recipe file."),
    "sql": Entry(CARE, "sql", "Ask the catalog a question in SQL, read-only."),
    "fsck": Entry(CARE, "fsck", "Verify the registry, down to every tensor's bytes."),
    "reindex": Entry(CARE, "reindex", "Rebuild the catalog from objects and journal."),
    "du": Entry(CARE, "du", "Show what the registry stores and what sharing saves."),
    "doctor": Entry(CARE, "doctor", "Check this machine and this registry for trouble."),
}
