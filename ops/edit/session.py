"""One edit from beginning to end: facts, layers, room, targets, and block by block what is written.

Everything is derived from the model before the long work begins: layer by tracing, weight of ordinary keys from the write fraction, rate
from the hidden state; and facts that the layer cannot hold apart are refused before a single target is optimised.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import BadInputFile, CheckFailed
from ...registry.ids import blob_digest
from ...registry.records import canonical
from ..base import Change, Run
from ..data.facts import Fact, FactSet
from ..engine.local import threads
from ..evaluate.coder import Coder
from ..models import load_tokenizer
from . import capacity, derivation, keep, solve
from .conflicts import alike, spared
from .contexts import Contexts, contexts_of
from .covariance import Moment, moments, ordinary_rows
from .layers import auto_layers
from .measure import bench_of, present, rivals
from .polish import Ordinary, polish, sample
from .prompts import Group, Prompter, Row, collate, groups_of, prefixes_of
from .requests import inputs, requested
from .site import Editable, check_span, stored_name
from .targets import FIRST, Settings, Targets, find_targets, hidden_at, parts_of, radii, second

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..evaluate.bench import Bench
    from .edit import Edit

DRIFT = 15.0  # weight of the drift certificate in the correction, per unit of --kl and subject, shared by the subject's facts
BEYOND = ("beyond", "beyond_hidden")
SHOWN = 12  # ids of facts in a hint; all are in the details of the error
ASKED = 64  # facts that a model is asked to see whether it computes at all


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an edit works with."""

    model: Editable
    facts: tuple[Fact, ...]
    groups: list[Group]
    layers: tuple[int, ...]
    moments: dict[int, Moment]
    settings: Settings
    digest: str  # of the facts
    prefixes: list[str]
    text: Tensor  # rows of ordinary text, int64 [n, length]
    rivals: dict[str, str]  # id of each fact -> the answer that it is to replace
    beyond: int | None = None  # the next block, where subjects with several facts have a second target

    @property
    def written(self) -> tuple[int, ...]:
        """All blocks that are written into, ascending."""
        return self.layers if self.beyond is None else (*self.layers, self.beyond)

    @property
    def subjects(self) -> list[str]:
        """Names in the order of the groups."""
        return [g.subject for g in self.groups]


@dataclass(frozen=True, slots=True)
class Written:
    """One layer's part: factors as they are added, and what the closed form says of them."""

    up: Tensor  # R [d1, u] float32
    down: Tensor  # A^T [u, d0] float32
    keys: Tensor  # K [d0, u] float64
    spread: Tensor  # contexts [d0, n] float64
    earlier: Tensor | None  # keys of earlier edits [d0, e] float64
    residual: Tensor  # [d1, u] float64, what was to be written
    weight: float
    fraction: float
    drift: float
    used: float
    rank: int


def facts_of(op: Edit) -> FactSet:
    """The facts that `op` names."""
    return requested(op)


def settings_of(op: Edit) -> Settings:
    """How targets are optimised."""
    return Settings(op.steps, op.lr, op.clamp, op.kl, op.weight_decay, op.batch, op.precision)


def result_key(op: Edit, view: ModelView, digest: str, seed: int) -> str:
    """What names the artifacts of this edit: the parent, the facts, every option, the seed."""
    return blob_digest(canonical({"parent": view.snapshot_id, "facts": digest, "params": op.params(), "seed": seed, "version": op.version}))


def apply(op: Edit, view: ModelView, run: Run) -> Iterator[Change]:
    """Write the facts and yield the changed matrices."""
    with threads(run.threads):
        ready = prepare(op, view, run)
        written, changes = _write_all(op, ready, run)
    run.record("edit", _told(op, ready, written))
    yield from changes


def prepare(op: Edit, view: ModelView, run: Run) -> Prepared:
    """Everything up to the second moments. Raises what the files, the model and its room give cause for."""
    given = facts_of(op)
    for record in inputs(op, given):
        run.input(record)
    model = Editable(view)
    coder = Coder(load_tokenizer(view))
    bench = bench_of(model.module, coder, "present answers", run.progress)
    _refuse_unknown(given, coder)
    _refuse_present(given, bench)
    said = dict(zip([f.id for f in given.facts], rivals(given.facts, bench), strict=True))
    prompter = Prompter(coder, _window(view))
    _refuse_broken(model, [prompter.row(f.prompt, f.subject, fact=f) for f in given.facts[:ASKED]])
    prefixes = prefixes_of(view, run, model.module, coder, op.prefixes) if op.prefixes else []
    groups = groups_of(given.facts, prompter, prefixes)
    width = model.weight(0).shape[1]
    capacity.check_count(len(groups), width, op.over_capacity)
    settings = settings_of(op)
    span = op.span
    if span is None:
        traced = auto_layers(model, groups, prompter, settings, run, given.digest)
        run.record("layers", asdict(traced) | {"reached": {str(k): v for k, v in traced.reached.items()}})
        span = traced.layers
    check_span(span, model.count)
    layers = tuple(range(span[0], span[1] + 1))
    # What stands behind the subject in the last block nobody reads any more.
    again = op.span is None and span[1] + 2 < model.count and any(map(second, groups))
    beyond = span[1] + 1 if again else None
    rows = ordinary_rows(op.covariance, view, run, width)
    found = moments(model, (*layers, *([beyond] if beyond is not None else [])), rows, run)
    return Prepared(model, given.facts, groups, layers, found, settings, given.digest, prefixes, rows, said, beyond)


def _refuse_unknown(given: FactSet, coder: Coder) -> None:
    """Raise BadInputFile for an answer that the vocabulary cannot write, and for a subject of which it knows nothing."""
    if coder.unknown is None:
        return
    answers, subjects = coder.encode([f.target_new for f in given.facts]), coder.encode([f.subject for f in given.facts])
    for fact, answer, subject in zip(given.facts, answers, subjects, strict=True):
        what = fact.target_new if coder.unknown in answer else fact.subject if set(subject) == {coder.unknown} else None
        if what is not None:
            raise BadInputFile(
                f"{given.name}, line {fact.line}: the vocabulary of this model has no token for {what!r}, or for a part of it",
                hint=f"--skip {shlex.quote(fact.id)} leaves it out",
                line=fact.line,
            )


def _refuse_present(given: FactSet, bench: Bench) -> None:
    """Raise BadInputFile for a fact whose new answer is what the model says already."""
    found = [fact for fact, said in zip(given.facts, present(given.facts, bench), strict=True) if said]
    if found:
        more = f" (and in {len(found) - 1} more lines)" if len(found) > 1 else ""
        message = f"{given.name}, line {found[0].line}: the model already answers so{more}"
        ids = [fact.id for fact in found]
        raise BadInputFile(message, hint=_left_out(ids, len(given.facts)), line=found[0].line, ids=ids)


def _left_out(ids: list[str], count: int) -> str:
    if len(ids) == count:
        return "it knows all of these facts: there is nothing to write"
    typed = " ".join(f"--skip {shlex.quote(one)}" for one in ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")
    return f"{typed} leaves {'it' if len(ids) == 1 else 'them'} out"


@torch.no_grad()
def _refuse_broken(model: Editable, rows: list[Row]) -> None:
    """Raise CheckFailed for a model whose answers are no numbers."""
    if not bool(torch.isfinite(model.logits(collate(rows))).all()):
        raise _not_finite("answers of this model")


def _write_all(op: Edit, ready: Prepared, run: Run) -> tuple[dict[int, Written], list[Change]]:
    view, model, key = ready.model.view, ready.model, result_key(op, ready.model.view, ready.digest, run.seed)
    metrics = {layer: _metric(op, ready.moments[layer], layer, run) for layer in ready.written}
    memory = run.inherited(keep.MEMORY)
    earlier: dict[int, Tensor | None] = {}
    for layer in ready.written:
        seen = contexts_of(model, layer, ready.groups)
        earlier[layer] = _earlier(op, ready, layer, metrics[layer], seen.keys, memory, run)
        found = _room(op, ready, metrics[layer], seen, earlier[layer])
        if found.used > 1 and op.span is not None and not op.over_capacity:
            _refuse_confused(seen.keys, metrics[layer], layer)
        capacity.check_room(found, len(ready.groups), layer, op.over_capacity)
    targets = _targets(ready, run, key)
    before = [part.before for part in parts_of(model, ready.layers[-1], ready.groups, ready.settings.kl)]
    text = sample(model, ready.text)
    written: dict[int, Written] = {}
    changes: list[Change] = []
    for n, layer in enumerate(ready.written):
        run.progress("write", n, len(ready.written))
        part = _write(op, ready, targets, layer, metrics[layer], earlier[layer], before, text, run)
        written[layer] = part
        name = stored_name(model.family, view, layer)
        data, left, right = derivation.edited(view.tensor(name), part.up.cpu(), part.down.cpu(), model.transposed(layer))
        place: Any = model.out(layer)
        place.weight.data.copy_(data.to(torch.float32))
        changes.append(derivation.change(view, name, data, left, right))
    _keep(op, ready, run, key, written, targets, memory)
    return written, changes


def _refuse_confused(keys: Tensor, metric: solve.Metric, layer: int) -> None:
    """Raise CheckFailed for a block whose keys do not tell most of the subjects apart: no number of facts is few enough there."""
    others = [torch.cat([keys[:, :i], keys[:, i + 1 :]], 1) for i in range(keys.shape[1])]
    confused = sum(bool(alike(keys[:, i : i + 1], rest, metric.spread)) for i, rest in enumerate(others))
    if 2 * confused > keys.shape[1]:
        raise CheckFailed(
            f"layer {layer} does not carry these facts: it hardly tells {confused} of {keys.shape[1]} subjects from another one",
            hint="--layers auto finds where this model keeps its facts",
        )


def _earlier(op: Edit, ready: Prepared, layer: int, metric: solve.Metric, keys: Tensor, memory: bytes | None, run: Run) -> Tensor | None:
    """Keys of earlier edits that this one is to spare."""
    held, names = keep.remembered(memory, layer, len(metric.moment), ready.subjects) if op.memory else (None, [])
    if held is None:
        return None
    return spared([g.facts for g in ready.groups], keys, held, names, metric.spread, op.on_conflict, run)


def _metric(op: Edit, moment: Moment, layer: int, run: Run) -> solve.Metric:
    if not bool(torch.isfinite(moment.matrix).all()):
        raise _not_finite(f"keys of layer {layer}")
    metric = solve.memit_metric(moment.matrix) if op.method == "memit" else solve.alphaedit_metric(moment.matrix, op.threshold)
    if metric.ridge:
        run.note(f"layer {layer}: {moment.keys:,} keys of text do not span its {len(moment.matrix):,} dimensions; a ridge was added")
    if not metric.rank:
        raise CheckFailed(
            f"layer {layer} leaves no direction free at --threshold {op.threshold:g}", hint="--threshold 0.1, or --method memit"
        )
    return metric


def _room(op: Edit, ready: Prepared, metric: solve.Metric, seen: Contexts, earlier: Tensor | None) -> capacity.Room:
    weight = solve.weight_for(metric, seen.keys, op.share)
    return capacity.room(metric, seen.keys, weight, seen.spread, seen.owner, earlier)


def _targets(ready: Prepared, run: Run, key: str) -> Targets:
    """z of all subjects at the last edited block: an artifact, so that what was refused need not be optimised again."""

    def compute() -> bytes:
        tell = lambda done, total: run.progress("targets", done, total)  # noqa: E731
        again = ready.beyond is not None
        found = find_targets(ready.model, ready.layers[-1], ready.groups, ready.settings, tell, beyond=again)
        tensors = {"hidden": found.hidden, "z": found.z, "change": found.change}
        tensors |= {name: t for name in BEYOND if (t := getattr(found, name)) is not None}
        ids = [[f.id for f in g.facts] for g in ready.groups]
        numbers = {"losses": found.losses, "steps": found.steps, "lr": found.lr}
        return keep.pack(tensors, subjects=ready.subjects, ids=ids, layer=ready.layers[-1], **numbers)

    tensors, about = keep.unpack(run.artifact(keep.TARGETS, key, compute))
    where = ready.model.device
    held = {name: t.to(where) for name, t in tensors.items() if name != "z"}
    return Targets(**held, losses=tuple(about["losses"]), steps=tuple(about["steps"]), lr=about["lr"])


def _write(
    op: Edit,
    ready: Prepared,
    targets: Targets,
    layer: int,
    metric: solve.Metric,
    earlier: Tensor | None,
    before: list[Tensor | None],
    text: Ordinary,
    run: Run,
) -> Written:
    """The factors of one layer, on the model as it is now; where a target stands, they are corrected on what they do."""
    model, again = ready.model, layer == ready.beyond
    seen = contexts_of(model, layer, ready.groups)
    weight = solve.weight_for(metric, seen.keys, op.share)
    beside = seen.spread if earlier is None else torch.cat([seen.spread, earlier], 1)
    written = solve.factors(metric, seen.keys, weight, beside)
    residual = wanted = _wanted(ready, targets, layer)
    if again or layer == ready.layers[-1]:
        hidden, change = (targets.beyond_hidden, targets.beyond) if again else (targets.hidden, targets.change)
        assert hidden is not None
        assert change is not None
        radius = polish_slack(op.share) * torch.maximum(FIRST * radii(hidden, ready.groups, op.clamp), change.norm(dim=1))
        if again:
            radius *= change.norm(dim=1) > 0
        gram = written.T @ metric.moment @ written
        scale = op.kl * DRIFT * len(ready.groups) ** 2 / len(ready.facts) / _energy(model, layer, metric)
        tell = lambda done, total: run.progress("correct", done, total)  # noqa: E731
        beyond = None if again else targets.beyond
        sensed = text if layer == ready.written[-1] else None  # a second block mends what the first leaves far
        residual = polish(
            model, layer, ready.groups, residual, written, radius, targets.lr, ready.settings, (gram, scale), tell,
            before=before, beyond=beyond, ordinary=sensed,
        ).residual.cpu()  # fmt: skip
    up, down = residual.float(), written.T.float().contiguous()
    if not (bool(torch.isfinite(up).all()) and bool(torch.isfinite(down).all())):
        raise CheckFailed(f"layer {layer}: the equations have no finite solution", hint="--strength 0.8, or more text with --covariance")
    w = model.weight(layer).double().cpu()
    found = capacity.room(metric, seen.keys, weight, seen.spread, seen.owner, earlier)
    fraction = solve.joint_fractions(seen.keys, written).mean().item()
    drift = solve.drift(up.double(), down.double(), w, metric.moment)
    return Written(up, down, seen.keys, seen.spread, earlier, wanted, weight, fraction, drift, found.used, metric.rank)


def _not_finite(what: str) -> CheckFailed:
    return CheckFailed(
        f"the {what} are not finite: this version does not compute", hint="mlc log tells which version did; mlc rollback goes there"
    )


def _wanted(ready: Prepared, targets: Targets, layer: int) -> Tensor:
    """Residuals [d1, u] float64 to be written at `layer`: its part of what is still missing at the target, or the second change."""
    if layer == ready.beyond:
        assert targets.beyond is not None
        return targets.beyond.T.double().cpu()
    missing = targets.z - hidden_at(ready.model, ready.layers[-1], ready.groups)
    return missing.T.double().cpu() / (ready.layers[-1] - layer + 1)


def polish_slack(share: float) -> float:
    """How much longer than the clamp a residual may be: what is lost in writing, and a quarter for contexts that differ."""
    return 1.25 / share


def _energy(model: Editable, layer: int, metric: solve.Metric) -> float:
    w = model.weight(layer).double().cpu()
    return max(((w @ metric.moment) * w).sum().item(), 1e-30)


def _keep(op: Edit, ready: Prepared, run: Run, key: str, written: dict[int, Written], targets: Targets, memory: bytes | None) -> None:
    ids = [[f.id for f in g.facts] for g in ready.groups]
    about = {"subjects": ready.subjects, "ids": ids, "layers": list(ready.written), "beyond": ready.beyond, "method": op.method}
    again = {"moments": {str(n): m.key for n, m in ready.moments.items()}, "params": op.params(), "prefixes": ready.prefixes}
    requests = {"facts": [asdict(f) for f in ready.facts]}
    numbers = {str(n): {"fraction": w.fraction, "drift": w.drift, "used": w.used, "weight": w.weight} for n, w in written.items()}
    factors = {f"layer.{n}.{side}": getattr(w, side) for n, w in written.items() for side in ("up", "down")}
    run.artifact(keep.FACTORS, key, lambda: keep.pack(factors, **about, numbers=numbers))
    keys = {f"layer.{n}.{what}": getattr(w, what) for n, w in written.items() for what in ("keys", "residual")}
    spread = {f"layer.{n}.spread": w.spread.float() for n, w in written.items()}
    spread |= {f"layer.{n}.earlier": w.earlier.float() for n, w in written.items() if w.earlier is not None}
    owner = contexts_of(ready.model, ready.layers[0], ready.groups).owner
    run.artifact(keep.KEYS, key, lambda: keep.pack({**keys, **spread, "owner": owner}, **about, **again, **requests, numbers=numbers))
    keyed = {n: contexts_of(ready.model, n, ready.groups).keys for n in written}
    grown = keep.grown(memory, keyed, ready.subjects, ready.facts, [ready.rivals[f.id] for f in ready.facts])
    run.artifact(keep.MEMORY, blob_digest(grown), lambda: grown)


def _told(op: Edit, ready: Prepared, written: dict[int, Written]) -> dict[str, Any]:
    return {
        "facts": len(ready.facts),
        "subjects": len(ready.groups),
        "layers": list(ready.written),
        "weights": {str(n): w.weight for n, w in written.items()},
        "covariance_keys": {str(n): m.keys for n, m in ready.moments.items()},
        "rank": {str(n): w.rank for n, w in written.items()},
    }


def _window(view: ModelView) -> int | None:
    config = view.config or {}
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    return limit if isinstance(limit, int) else None
