"""From facts to rows of tokens: where the subject ends, where the answer stands, and which sampled beginnings go in front.

Rows are padded on the right and go through a causal model without a mask, so a row's numbers do not depend on its neighbours. The last
token of the subject is found by character offsets, so that a token that swallows the border still counts as the subject's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile
from ..data.facts import SLOT

if TYPE_CHECKING:
    from torch import Tensor

    from ...registry.view import ModelView
    from ..base import Run
    from ..data.facts import Fact
    from ..evaluate.coder import Coder

KIND = "edit-prefixes"
SEEDS = ("The", "Therefore", "Because", "I", "You")
LENGTH = 10  # tokens of a sampled beginning
SORT = "{} is a"  # what a subject is: asked so that an edit does not change it


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens, the last token of the subject, and the places whose next token is scored (`targets`; empty for the last place alone)."""

    ids: tuple[int, ...]
    at: int
    places: tuple[int, ...]
    targets: tuple[int, ...] = ()
    first: int = 0  # where the subject begins


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors: ids int64 [n, width]; the subject's tokens, first and at int64 [n]; flat over scored places: row, place, target."""

    ids: Tensor
    first: Tensor
    at: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """One subject with all its facts: they share a key, hence one target vector."""

    subject: str
    facts: tuple[Fact, ...]
    bare: tuple[Row, ...]  # each fact's own prompt, nothing in front
    asked: tuple[tuple[Row, float], ...]  # prompts with the new answer, and their weights (sum 1)
    kept: tuple[Row, ...] = ()  # other questions about the subject: the model's own answers are to stay
    keys: tuple[tuple[Row, float], ...] = field(default=())  # contexts whose keys are averaged, with weights (sum 1)


def collate(rows: Sequence[Row]) -> Batch:
    """The rows padded to one width."""
    import torch

    ids = torch.zeros(len(rows), max(len(r.ids) for r in rows), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    counts = torch.tensor([len(r.places) for r in rows])
    return Batch(
        ids,
        torch.tensor([r.first for r in rows]),
        torch.tensor([r.at for r in rows]),
        torch.repeat_interleave(torch.arange(len(rows)), counts),
        torch.tensor([p for r in rows for p in r.places]),
        torch.tensor([t for r in rows for t in (r.targets or (0,) * len(r.places))]),
    )


class Prompter:
    """Turns a template, a subject and an answer into a row."""

    def __init__(self, coder: Coder, window: int | None) -> None:
        self.coder, self.window = coder, window
        self.lead = tuple(coder.prefix)

    def row(self, template: str, subject: str, answer: str | None = None, *, fact: Fact | None = None) -> Row:
        """The row that asks `template` (one `{}`) about `subject`; with an answer, its tokens are what is scored.

        Raises BadInputFile (with the fact's line) for an answer that leaves no token or a row beyond the model's window.
        """
        head = template.replace(SLOT, subject).rstrip()
        begin = template.index(SLOT)
        ids, first, at = self._tokens(head, begin, begin + len(subject))
        lead = self.lead or (() if ids else tuple(self.coder.start))
        if answer is None:
            return self._checked(Row((*lead, *ids), len(lead) + at, (len(lead) + len(ids) - 1,), (), len(lead) + first), fact)
        full, _, _ = self._tokens(f"{head} {answer.strip()}", begin, begin + len(subject))
        border = next((i for i, (a, b) in enumerate(zip(full, ids, strict=False)) if a != b), min(len(full), len(ids)))
        if border == len(full) or not border + len(lead):
            raise _bad(fact, "the new answer leaves no token behind its prompt")
        places = tuple(range(len(lead) + border - 1, len(lead) + len(full) - 1))
        at, first = min(at, len(full) - 2), min(first, len(full) - 2)
        return self._checked(Row((*lead, *full[:-1]), len(lead) + at, places, full[border:], len(lead) + first), fact)

    def _checked(self, row: Row, fact: Fact | None) -> Row:
        if self.window is not None and len(row.ids) >= self.window:
            raise _bad(fact, f"prompt and answer are {len(row.ids) + 1} tokens; the model reads {self.window}")
        return row

    def _tokens(self, text: str, begin: int, end: int) -> tuple[tuple[int, ...], int, int]:
        coded: Any = self.coder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = coded["offset_mapping"]
        inside = [i for i, (a, b) in enumerate(spans) if a < end and b > begin] or [0]
        return tuple(coded["input_ids"]), inside[0], inside[-1]


def groups_of(facts: Sequence[Fact], prompter: Prompter, prefixes: Sequence[str]) -> list[Group]:
    """One group per subject, in the order of their names, so that the order of the file changes nothing.

    What is asked: each fact's prompt bare and behind every prefix, and its other wordings; half of the key's weight lies on the bare
    prompts, the rest is spread over the other contexts (MEMIT, section 4.3). What is kept: prompts of the file's other relations.
    """
    by_subject: dict[str, list[Fact]] = {}
    for fact in sorted(facts, key=lambda f: (f.kind, f.target_new, f.id)):
        by_subject.setdefault(normal(fact.subject), []).append(fact)
    questions = {f.kind: f.prompt for f in sorted(facts, key=lambda f: (f.kind, f.prompt))}
    return [_group(tuple(members), questions, prompter, prefixes) for _, members in sorted(by_subject.items())]


def _group(facts: tuple[Fact, ...], questions: dict[str, str], prompter: Prompter, prefixes: Sequence[str]) -> Group:
    subject, share = facts[0].subject, 1 / len(facts)
    bare, asked, keys = [], [], []
    for fact in facts:
        fronts = [f"{prefix}. {fact.prompt}" for prefix in prefixes]
        others = [prompter.row(t, subject, fact.target_new, fact=fact) for t in (*fronts, *fact.wordings)]
        own = prompter.row(fact.prompt, subject, fact.target_new, fact=fact)
        bare.append(own)
        asked += [(row, share / (1 + len(others))) for row in (own, *others)]
        keys += [(own, share * (0.5 if others else 1.0)), *((row, share * 0.5 / len(others)) for row in others)]
    edited = {f.kind for f in facts}
    kept = [prompter.row(t, subject) for kind, t in questions.items() if kind not in edited]
    kept.append(prompter.row(SORT, subject))
    return Group(subject, facts, tuple(bare), tuple(asked), tuple(kept), tuple(keys))


def normal(subject: str) -> str:
    """A subject's name for comparing: white space collapsed, case folded."""
    return " ".join(subject.split()).casefold()


def prefixes_of(view: ModelView, run: Run, module: Any, coder: Coder, count: int) -> list[str]:
    """`count` sampled beginnings, an artifact of (snapshot, seed, count): the same for every fact and every retry."""
    data = run.artifact(
        KIND, f"{view.snapshot_id}/{run.seed}/{count}", lambda: json.dumps(_sampled(module, coder, run.seed, count)).encode()
    )
    return list(json.loads(data))


def _sampled(module: Any, coder: Coder, seed: int, count: int) -> list[str]:
    import torch

    device = next(module.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    found = []
    for number in range(count):
        ids = [*coder.prefix, *coder.encode([SEEDS[number % len(SEEDS)]])[0]]
        first = len(coder.prefix)
        with torch.no_grad():
            while len(ids) - first < LENGTH:
                logits = module(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1].float()
                ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        # Braces would be taken for the subject's place, a line break for the end of the text.
        found.append(" ".join(coder.decode(ids).replace("{", " ").replace("}", " ").split()))
    return found


def _bad(fact: Fact | None, reason: str) -> BadInputFile:
    where = f"line {fact.line}: " if fact is not None else ""
    return BadInputFile(where + reason, hint="shorten the prompt or the answer", **({"line": fact.line} if fact is not None else {}))
