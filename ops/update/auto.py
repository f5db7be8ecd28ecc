"""`mlc update --auto`: how to learn new text without forgetting, chosen by short trials (proxies) on the text at hand.

Every candidate is trained on equally many tokens, 2 % of the run's budget for all of them together, and measured on held-out rows of new
and of old text, which costs at most as much again. Only what is measured against full tuning counts: which share of its gain on new text a
candidate has (`learnt`), and what its loss on old text would rise by at full tuning's gain (`at_par`): near a minimum a loss rises with the
square of the way, so that who has learnt half has four times as much ahead. Rule: of those that learn at least `--auto-keep`, the one with
the least rise at par; candidates that the noise cannot part from it are taken in the order of ORDER: experience on other texts.
See docs/decisions/0016.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadParameter, Incompatible
from ...registry.ids import record_digest
from ...registry.records import canonical

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...registry.view import ModelView
    from ..base import Run
    from .rows import Prepared
    from .train import Update

KIND = "autopilot"
FRACTION = 0.02  # of the budget, for all proxies together
BATCH, LEAST_STEPS, LEAST_ROW, USUAL_ROW = 4, 4, 8, 32
AMPLE = 16  # steps of each trial that a larger choice must leave
MEASURED, LEAST_MEASURED = 64, 8  # rows of new and of old text
FORWARD = 3  # tokens that are measured for the work of one that is trained on
BLENDS = (0.75, 0.5)
ORDER = ("self 50%", "block + self 50%", "self 25%", "block", "spu 10%", "spu 30%")  # blends and full tuning behind them
NOISE = 1.0  # standard errors within which two candidates are not told apart
SEEDS = 0.02  # by how much `learnt` of a short trial differs from seed to seed (six seeds, 4 steps): no error is taken to be smaller


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one proxy reads: `steps` of `batch` rows of `seq_len`; `tokens` of all proxies, `budget` of the run.

    measured: rows of new and of old text that every model is measured on.
    """

    steps: int
    batch: int
    seq_len: int
    tokens: int
    budget: int
    measured: int


def check_auto(op: Update) -> None:
    """What `Update` checks about `--auto`. Raises BadParameter."""
    if not 0 < op.auto_keep <= 1:
        raise BadParameter(f"--auto-keep is a share above 0, up to 1, not {op.auto_keep}", hint="0.75 is the default")
    if not op.auto:
        return
    set_by_hand = {
        "--expand": op.expand or op.where == "importance", "--tune": op.tune, "--adapter": op.adapter, "--protect": op.protect != "none",
        "--ema": op.ema != "none", "--blend": op.blend != 1, "--renew-embeddings": op.renew_embeddings, "--compat-with": op.compat_with,
        "--from stable": op.begin != "weights", "--mix": op.mix, "--select": op.select, "--replay": any(r.path is None for r in op.replays),
    }  # fmt: skip
    for flag, said in set_by_hand.items():
        if said:
            hint = (
                "name a file of old text with --replay FILE:RATIO, or leave it out"
                if flag == "--replay"
                else f"leave {flag} out, or --auto"
            )
            raise BadParameter(f"--auto chooses between replay, blend, spu and new blocks itself: {flag} has no part in that", hint=hint)


def candidates(op: Update, view: ModelView) -> dict[str, dict[str, Any]]:
    """Name -> options of every candidate that is trained; blends of them are measured besides. Old text is the user's, else sampled."""
    from .layout import expandable

    def replayed(share: float) -> tuple[str, ...]:
        known = sum(r.share for r in op.replays)
        return tuple(f"{r.path}:{r.share / known * share:g}" for r in op.replays) or (f"self:{share:g}",)

    kind = "replay" if op.replays else "self"
    found: dict[str, dict[str, Any]] = {
        "full": {"replay": ()},
        f"{kind} 25%": {"replay": replayed(0.25)},
        f"{kind} 50%": {"replay": replayed(0.5)},
        **{f"spu {rate:.0%}": {"replay": (), "protect": "spu", "protect_rate": rate} for rate in (0.1, 0.3)},
    }
    try:
        expandable(view)
    except Incompatible:
        return found
    return {**found, "block": {"replay": (), "expand": 1}, f"block + {kind} 50%": {"replay": replayed(0.5), "expand": 1}}


def afforded(op: Update, view: ModelView, length: int) -> tuple[dict[str, dict[str, Any]], Sizes]:
    """The candidates that are tried on a run with rows of `length`, and what each reads. Raises BadParameter.

    New blocks learn slowly at first, so that short trials can say of one kind of them only that: the other is left to longer ones.
    """
    asked = candidates(op, view)
    if _steps(op, length, len(asked))[0] < AMPLE:
        asked = {name: options for name, options in asked.items() if not name.startswith("block + ")}
    return asked, sizes(op, length, len(asked))


def sizes(op: Update, length: int, count: int) -> Sizes:
    """What each of `count` proxies may read of a run with rows of `length`. Raises BadParameter where that is too little."""
    budget = _budget(op, length)
    steps, row = _steps(op, length, count)
    if row < 2 or steps < LEAST_STEPS:
        each = int(budget * FRACTION / count)
        raise BadParameter(
            f"{FRACTION:.0%} of {budget:,} tokens are {each} for each of {count} trials: too few to tell anything",
            hint="more --steps or a larger --batch; without --auto, --replay self:0.5 is a good choice",
        )
    models = count * (1 + len(BLENDS)) + 1  # at most: not every candidate is blended
    rows = int(FORWARD * FRACTION * budget / (2 * models * row))
    return Sizes(steps, BATCH, row, count * steps * BATCH * row, budget, min(MEASURED, max(LEAST_MEASURED, rows)))


def _budget(op: Update, length: int) -> int:
    return op.steps * op.batch * op.grad_accum * length


def _steps(op: Update, length: int, count: int) -> tuple[int, int]:
    """(steps, tokens of a row) of each of `count` trials."""
    each = int(_budget(op, length) * FRACTION / count)
    row = min(length, max(USUAL_ROW, each // (BATCH * 4 * LEAST_STEPS)))
    while row > LEAST_ROW and each < BATCH * row * LEAST_STEPS:
        row //= 2
    return each // (BATCH * row), row


def decided(op: Update, view: ModelView, run: Run, *, aloud: bool = False) -> Update:
    """The update with what `--auto` chooses; itself where it is not asked to. `aloud`: say so in the record."""
    if not op.auto:
        return op
    found = picture(op, view, run)
    if aloud:
        run.record("auto", found)
        if not found["told_apart"]:
            run.note("the trials of --auto were too short to tell: the usual choice was taken")
    return chosen(op, found)


def chosen(op: Update, found: Mapping[str, Any]) -> Update:
    """The update with the options that were chosen."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in found["options"].items()}
    return replace(op, auto=False, **options)


def picture(op: Update, view: ModelView, run: Run) -> dict[str, Any]:
    """The table of the trials and the choice: an artifact, so that a resumed, replayed or checked run decides the same."""
    asked = {**op.params(), "snapshot": view.snapshot_id, "seed": run.seed, "threads": run.threads}
    key = record_digest("mlc.autopilot.v2", canonical(json.loads(json.dumps(asked))))
    return json.loads(run.artifact(KIND, key, lambda: canonical(_tried(op, view, run))))


# --- the rule --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one candidate: per measured row, the fall of the loss on new text and its rise on old text, in nats."""

    name: str
    options: dict[str, Any]
    gains: tuple[float, ...]
    rises: tuple[float, ...]


def judged(trials: Sequence[Trial], keep: float) -> dict[str, Any]:
    """`rows` of the table, the `choice` with its `options`, and whether the trials told anything apart. The first trial is full tuning.

    keep: the share of full tuning's gain that the choice must have. Standard errors are of differences over the same rows, so that rows
    which are hard for every candidate do not count as noise; that of `learnt` is at least what another seed would change.
    """
    full = trials[0]
    gain = _mean(full.gains)
    rows, scaled = [], []
    for trial in trials:
        learnt = _mean(trial.gains) / gain if gain > 0 else math.nan
        noise = _error([a - learnt * b for a, b in zip(trial.gains, full.gains, strict=True)]) / gain if gain > 0 else math.nan
        noise = max(noise, SEEDS) if trial is not full else noise
        sure = -NOISE if "blend" in trial.options else NOISE  # a blend is beside the run that it is of: it needs no benefit of the doubt
        scaled.append([r / learnt**2 for r in trial.rises] if learnt > 0 else [math.inf] * len(trial.rises))
        rows.append(
            {
                "name": trial.name,
                "options": trial.options,
                "new_gain": _mean(trial.gains),
                "new_gain_error": _error(trial.gains),
                "old_rise": _mean(trial.rises),
                "old_rise_error": _error(trial.rises),
                "learnt": learnt if math.isfinite(learnt) else None,
                "learnt_error": noise if math.isfinite(noise) else None,
                "at_par": max(0.0, _mean(scaled[-1])) if learnt > 0 else None,
                "eligible": learnt > 0 and learnt + sure * noise >= keep,
            }
        )
    told = gain > 2 * _error(full.gains)
    pool = [n for n, row in enumerate(rows) if row["eligible"]] if told else list(range(len(rows)))
    alike = pool
    if told:
        best = min(pool, key=lambda n: rows[n]["at_par"])
        alike = [n for n in pool if _alike(scaled[n], scaled[best])]
    choice = min(alike, key=lambda n: (_usual(trials[n].name), n))
    for n, row in enumerate(rows):
        row["alike"] = n in alike
    return {"rows": rows, "choice": trials[choice].name, "options": trials[choice].options, "told_apart": told}


def _alike(one: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the noise of the measured rows hides what one forgets beyond the best; what forgets nothing is alike in that."""
    more = [a - b for a, b in zip(one, best, strict=True)]
    return _mean(more) <= NOISE * _error(more) or _mean(one) <= 0


def _usual(name: str) -> int:
    place = name.replace("replay", "self")
    return ORDER.index(place) if place in ORDER else len(ORDER)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    if len(values) < 2:
        return math.inf
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


# --- the trials ------------------------------------------------------------------------------------------


class _Aside:
    """The `Run` of a trial: it reads what the real one reads, and leaves nothing."""

    def __init__(self, run: Run) -> None:
        self._run, self._made = run, dict[tuple[str, str], bytes]()
        self.seed, self.threads, self.id, self.scratch = run.seed, run.threads, run.id, run.scratch
        self.engine = None  # trials run in this process
        self.version, self.inherited, self.kept, self.pseudonym = run.version, run.inherited, run.kept, run.pseudonym

    def artifact(self, kind: str, key: str, compute: Callable[[], bytes]) -> bytes:
        """Computed, and kept as long as the trials last."""
        if (kind, key) not in self._made:
            self._made[kind, key] = compute()
        return self._made[kind, key]

    def progress(self, *_: Any, **__: Any) -> None:
        """The table is the progress."""

    def note(self, text: str) -> None:
        """Not of a trial."""

    record = input = save_state = progress

    def load_state(self) -> None:
        """A trial begins at the beginning."""


def _tried(op: Update, view: ModelView, run: Run) -> dict[str, Any]:
    import torch

    from ..engine.local import placed, threads
    from ..models import load_model
    from .limits import row_length
    from .riders import blended
    from .rows import prepare, read_apart

    (asked, size), aside = afforded(op, view, row_length(op, view)), _Aside(run)
    small = replace(op, auto=False, steps=size.steps, batch=size.batch, seq_len=size.seq_len, grad_accum=1, save_every=0, dedup="none")
    most = next(options for name, options in reversed(asked.items()) if name.endswith(" 50%"))
    rows: Any = prepare(replace(small, replay=most["replay"], holdout=op.holdout or 0.05), view, aside)  # type: ignore[arg-type]
    with threads(run.threads):
        parent = placed(load_model(view, dtype=torch.float32))
        rows = read_apart(rows, parent)
        new = _measured([(rows.held, rows.begins.get("data"))], size.measured)
        old = _measured([(part, rows.begins.get(f"old {label}")) for label, part in rows.old.items()], size.measured)
        start = {n: p.detach().clone() for n, p in parent.named_parameters()}
        before = _losses(parent, new), _losses(parent, old)
        trials: list[Trial] = []
        blends: list[Trial] = []
        for number, (name, options) in enumerate(asked.items()):
            run.progress("trials", number, len(asked))
            module = _trained(replace(small, **options), view, aside, rows)
            trials.append(_trial(name, options, module, (new, old), before))
            if "expand" in options or "protect" in options:
                continue
            ends = {n: p.detach().clone() for n, p in module.named_parameters()}
            for share in BLENDS:
                with torch.no_grad():
                    for n, parameter in parent.named_parameters():
                        parameter.copy_(blended(start[n], ends[n], share))
                blends.append(_trial(f"{name}, blend {share:g}", {**options, "blend": share}, parent, (new, old), before))
        run.progress("trials", len(asked), len(asked))
    measured = sum(len(part) for part, _ in (*new, *old)) * size.seq_len * (len(trials) + len(blends) + 1)
    cost = {"tokens": size.tokens, "budget": size.budget, "measured_tokens": measured, "steps": size.steps, "batch": size.batch}
    told = {"old_text": "self" if not op.replays else ", ".join(rows.old), "seq_len": size.seq_len, "keep": op.auto_keep}
    return {**judged([*trials, *blends], op.auto_keep), **cost, **told}


def _trained(op: Update, view: ModelView, run: Any, rows: Prepared) -> nn.Module:
    """The model after the short run of one candidate: its own shares of the same rows, rate held, no warming up."""
    from ..data.mixing import Mixture, Source
    from ..engine import LocalEngine
    from ..engine.local import placed
    from .protect import protection
    from .session import method_of, objective_of, resolve

    used = rows.mixture.sources[: 1 + len(op.replays)]
    shares = (1 - sum(r.share for r in op.replays), *(r.share for r in op.replays))
    mixture = Mixture([Source(s.name, s.rows, share) for s, share in zip(used, shares, strict=True)], batch=op.batch, seed=run.seed)
    own = replace(rows, mixture=mixture, old=rows.old if op.replays else {})
    method = method_of(op, view, run, own)
    placed(method.module)
    settings = replace(resolve(op, view, run), warmup=0, decay="constant", keep_stable=False)
    guard = protection(op, view, run, own, method.module, settings.lr)
    LocalEngine().train(method.module, mixture, settings, run, objective=objective_of(op, view, run, own), masks=guard.masks)
    return method.module


_Parts = list[tuple["Tensor", int | None]]  # rows that are measured, and what begins a document in them


def _measured(parts: _Parts, most: int) -> _Parts:
    """The first `most` rows of all parts."""
    found: _Parts = []
    for rows, begin in parts:
        if (room := most - sum(len(part) for part, _ in found)) > 0:
            found.append((rows[:room], begin))
    return found


def _trial(name: str, options: dict[str, Any], module: Any, rows: tuple[_Parts, _Parts], before: tuple[list[float], list[float]]) -> Trial:
    new, old = (_losses(module, parts) for parts in rows)
    gains = tuple(a - b for a, b in zip(before[0], new, strict=True))
    rises = tuple(b - a for a, b in zip(before[1], old, strict=True))
    return Trial(name, {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}, gains, rises)


def _losses(module: Any, parts: _Parts) -> list[float]:
    import torch

    from ..engine.local import read_losses

    module.eval()
    where = next(module.parameters()).device
    found: list[float] = []
    with torch.no_grad():
        for rows, begin in parts:
            for part in rows.split(16):
                found += read_losses(module, part.to(where), begin).double().mean(1).tolist()
    return found
