"""The README of an evidence folder: what was done, what the numbers mean, how to check them, and what they do not prove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry.ids import CommitId, short
from ..registry.records import Commit, Json

if TYPE_CHECKING:
    from .impact import Impact

MEANINGS = {
    "forget": "share of the forget set that the model still answers as it was taught",
    "forget_probability": "mean probability of those answers, by token",
    "forget_loss": "mean loss on the forget set, in nats",
    "retain": "share of the retain set that the model answers rightly",
    "retain_probability": "mean probability of those answers, by token",
    "retain_loss": "mean loss on the retain set, in nats",
    "text_perplexity": "perplexity on plain text of the retain set",
    "mia_auc": "how well one tells members from non-members by their loss; 0.5 is guessing",
}
OUTCOMES = {
    "accepted": "It was **accepted** by the policy and its branch moved.",
    "refused": "It was **refused** by the policy: no branch moved, and this is evidence of a candidate only.",
    "ungated": "No policy judged it.",
}


def readme(
    commit_id: CommitId,
    commit: Commit,
    outcome: str,
    measured: dict[str, Json],
    done: dict[str, Json],
    found: Impact,
    purge: dict[str, Json],
) -> str:
    """The whole page, in Markdown."""
    parts = [
        _what(commit_id, commit, outcome, done),
        _numbers(measured),
        _check(commit_id, commit, purge),
        _carriers(found, purge),
        _LIMITS,
    ]
    return "\n".join(parts)


def _what(commit_id: CommitId, commit: Commit, outcome: str, done: dict[str, Json]) -> str:
    said = {k: v for k, v in done["params"].items() if v not in (None, "", [], ())}
    lines = [
        f"# Evidence of unlearning: commit {short(commit_id)}",
        "",
        f"Commit `{commit_id}`, recorded {commit.time}, made version `{commit.snapshot}` from {_list(commit.parents)}.",
        OUTCOMES[outcome],
        "",
        "## What was done",
        "",
        f"Operation `{commit.op.name}`, version {commit.op.version}, with these options (`method.json` has all of them):",
        "",
        *(f"- `{name}`: {_code(value)}" for name, value in sorted(said.items())),
        "",
        "It read, by digest:",
        "",
        *(f"- {r['role']}: {_code(r['name'])}, {r['bytes']} bytes, `{r['digest']}`" for r in done["inputs"]),
        "",
        "A digest that begins with `hmac:` was made with a key (its id comes next), so that a text cannot be guessed from it.",
        "",
    ]
    return "\n".join(lines)


def _numbers(measured: dict[str, Json]) -> str:
    before, after = measured["before"], measured["after"]
    names = [n for n in MEANINGS if n in after] + sorted(n for n in after if n not in MEANINGS)
    rows = [f"| {n} | {_number(before.get(n))} | {_number(after[n])} | {MEANINGS.get(n, '')} |" for n in names]
    other = [f"- `{key}`: {_number(value)}" for key, value in sorted(measured["other"].items()) if isinstance(value, int | float)]
    rules = [f"- {rule['rule']}: {rule['outcome']}. {rule['sentence']}" for rule in measured["verdict"]["rules"]]
    lines = ["## What was measured", "", "| measure | before | after | meaning |", "|---|---|---|---|", *rows, ""]
    lines += [*other, ""] if other else []
    lines += ["The policy said:", "", *rules, ""] if rules else []
    return "\n".join(lines)


def _check(commit_id: CommitId, commit: Commit, purge: dict[str, Json]) -> str:
    scope = next((key["scope"] for key in purge["keys"] if str(key["scope"]).startswith("request-")), None)
    key = f"`.mlc/keys/{scope}`" if scope else "the request key, which is not in the registry any more"
    return f"""## How to check it

1. The files. `manifest.json` names each by SHA-256 and nothing else may lie here:
   `jq -r '.files[] | .sha256 + "  " + .path' manifest.json | sha256sum -c`
2. The commit. The id is BLAKE3 over the line `mlc.commit.v1` and the bytes of `commit.json`:
   `(printf 'mlc.commit.v1\\n'; cat commit.json) | b3sum` gives `{commit_id}`.
   `measures.json`, `method.json` and (by its BLAKE3 digest) `items.jsonl` follow from that record.
3. The registry. `mlc show {short(commit_id)} --json` there shows the same record, `mlc fsck --level 3` rebuilds every tensor of it, and the
   journal's record number `journal.seq` of the manifest has the hash that the manifest names.
4. The numbers. `mlc.policies.lifecycle.replay(repository, "{short(commit_id)}")` runs the operation again on the parent; with the same
   data, machine and versions it reaches snapshot `{commit.snapshot}`.
5. The records. `items.jsonl` has one line for each record to forget. Its id is `hmac:<key id>:` and keyed BLAKE3 of the record's normal
   form: Unicode NFC, runs of white space as one space, prompt and answer joined by one space. The holder of {key}
   and of the forget file makes the same ids; nobody else can.
6. All of 1, 2 and 3 in Python: `mlc.policies.evidence.verify_evidence(folder, repository)`; 5: `recognised(repository, folder, file)`.

Nothing here is signed yet. Whoever owns the disk can write another registry: sign `manifest.json` and keep the signature elsewhere.
"""


def _carriers(found: Impact, purge: dict[str, Json]) -> str:
    rows = [f"| {short(c.id)} | {c.op} | {c.mark.state} | {c.mark.why} | {', '.join(c.refs) or '-'} |" for c in found.commits]
    n, objects = found.carriers, purge["objects"]
    carried = f"{n} version in the registry still carries it" if n == 1 else f"{n} versions in the registry still carry it"
    held = f"{objects['count']} tensors ({objects['bytes']} bytes) are held by nothing but these."
    head = ["| commit | operation | state | why | names |", "|---|---|---|---|---|"]
    return "\n".join(
        ["## What still carries the data", "", f"{carried}; {held}", f"State of the purge: **{purge['state']}**.", "", *head, *rows, ""]
    )


_LIMITS = """## What this does not prove

- **Not that the model equals one trained without these records.** The numbers say that stated questions were no longer answered, by stated
  measures, on these wordings. Another wording, language or context may still bring a record out.
- **Not that nothing is left in the weights.** Approximate unlearning often hides knowledge: training on a few of the records, rounding the
  weights or a long enough search can bring it back. Only attacks whose results stand above were tried.
- **Not that membership cannot be told.** A membership test is a bound from one side: a better test may succeed where this one guessed.
- **Not that the data is gone from this registry.** The versions listed above still hold it, byte for byte, until a purge has its own
  evidence; so may backups, remotes, exports and models that others derived from them.
- **Not who decided, or when.** Times and names are what the machine said. The list of carriers covers what this registry recorded: what a
  root import was trained on, nobody recorded.
- **Not that the forget set was complete.** It holds the records that somebody named; near copies of them elsewhere were not looked for.
"""


def _list(ids: Any) -> str:
    return ", ".join(f"`{i}`" for i in ids)


def _code(value: Any) -> str:
    """A value that cannot end its own quotation or line."""
    return "`" + "".join(c if c.isprintable() and c != "`" else "?" for c in str(value)) + "`"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
