"""What an rmm merge keeps, as bytes: per module a mean, basis vectors and coefficients; and each ingredient's own scale and config.

Factors are put into a common gauge first where that loses less (independently trained factors are not aligned); where nothing is lost
they stay as they are, in float64, so that each ingredient comes back to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ...registry.errors import CheckFailed, NotFound
from ..base import Change, SetFile, SetTensor
from ..engine.local import threads
from .lowrank import CONFIG, Factors, config_of, configs, cut, factors, module_of, product_norm, stacked
from .reversible import BASIS
from .rmm import Basis, aligned, fit, rebuild, smallest, stack, unstack

if TYPE_CHECKING:
    from ...registry.formats.peft import LowRank
    from ...registry.view import EffectiveView
    from ..base import Run
    from .reversible import Rebuild, Rmm

Views = Mapping[str, "EffectiveView"]
HEADER = "mlc"  # the key of what is said beside the tensors


class Fitted:
    """The bases of all modules, as they are stored, and what they lose."""

    def __init__(self, op: Rmm, views: Views, gauge: bool) -> None:
        self.op, self.views, self.gauge = op, views, gauge
        self.lead = next(iter(views.values()))
        self.found: dict[str, Basis] = {}
        self.lost, self.whole = [0.0] * len(views), [0.0] * len(views)
        self.exact = not gauge
        for target, term in sorted(self.lead.plan.added.items()):
            self._add(target, term)

    @property
    def errors(self) -> list[float]:
        """Per ingredient: the norm of what its products lose over the norm of its products, all modules together."""
        return [math.sqrt(lost / whole) if whole else 0.0 for lost, whole in zip(self.lost, self.whole, strict=True)]

    def _add(self, target: str, term: LowRank) -> None:
        own = [factors(view, view.plan.added[target]) for view in self.views.values()]
        scales = [view.plan.added[target].scale for view in self.views.values()]
        positions = stack([aligned(*pair) for pair in own] if self.gauge else [(up.double(), down.double()) for up, down in own])
        found = smallest(positions, self.op.error) if self.op.p is None else fit(positions, self.op.p)
        self.found[target] = found = found if lossless(found) else _narrow(found)
        for at, ((up, down), scale) in enumerate(zip(own, scales, strict=True)):
            again = _pair(found, at, len(up))
            self.exact &= all(torch.equal(x.to(y.dtype), y) for x, y in zip(again, (up, down), strict=True))
            difference = torch.cat([up.double(), -again[0]], dim=1), torch.cat([down.double(), again[1]])
            self.lost[at] += (scale * product_norm(*difference)) ** 2
            self.whole[at] += (scale * product_norm(up, down)) ** 2

    def packed(self) -> bytes:
        """Safetensors: `mean`, `basis` and `coefficients` of every module; in the header names, shapes, ingredients and configs."""
        tensors: dict[str, Tensor] = {}
        for target, basis in self.found.items():
            for part in ("mean", "basis", "coefficients"):
                tensors[f"{target}/{part}"] = getattr(basis, part).contiguous()
        said = {
            "ingredients": list(self.op.ingredients),
            "configs": [(view.own.file(CONFIG) or b"{}").decode() for view in self.views.values()],
            "errors": self.errors,
            "exact": self.exact,
            "modules": {target: self._names(term) for target, term in self.lead.plan.added.items()},
        }
        return save(tensors, metadata={HEADER: json.dumps(said, sort_keys=True)})

    def _names(self, term: LowRank) -> dict[str, Any]:
        entries = self.lead.own.entry(term.up), self.lead.own.entry(term.down)
        return {"names": [e.name for e in entries], "shapes": [list(e.shape) for e in entries], "dtypes": [e.dtype for e in entries]}

    def said(self) -> dict[str, Any]:
        """What the commit's check says."""
        stored = sum(t.numel() for b in self.found.values() for t in (b.mean, b.basis, b.coefficients))
        single = sum(math.prod(self.lead.own.entry(n).shape) for t in self.lead.plan.added.values() for n in (t.up, t.down))
        return {
            "p": max((b.basis.shape[2] for b in self.found.values()), default=0),
            "error": max(self.errors),
            "errors": dict(zip(self.op.ingredients, self.errors, strict=True)),
            "exact": self.exact,
            "aligned": self.gauge,
            "ratio": stored / (single * len(self.views)) if single else 0.0,  # numbers kept, over those of all ingredients
        }


def lossless(found: Basis) -> bool:
    """Whether the basis spans all that was given, to float64's own rounding."""
    return found.relative_error < 1e-14


def merged(op: Rmm, views: Views, run: Run) -> Iterator[Change]:
    """Keep the basis; yield the mean of all ingredients at the rank of one."""
    with threads(1):
        best = Fitted(op, views, gauge=False)
        lead = best.lead
        fits = all(min(_sides(lead, term)) >= lead.own.entry(term.down).shape[0] for term in lead.plan.added.values())
        if not best.exact and fits:
            best = min(best, Fitted(op, views, gauge=True), key=lambda one: (one.said()["ratio"], max(one.errors)))
        run.artifact(BASIS, f"{'/'.join(view.snapshot_id for view in views.values())}/{op.p}/{op.error!r}", best.packed)
        run.record("rmm", best.said())
        ranks, lost, whole = dict[str, int](), 0.0, 0.0
        for done, (target, term) in enumerate(sorted(lead.plan.added.items()), 1):
            parts = [(factors(v, v.plan.added[target]), v.plan.added[target].scale / len(views)) for v in views.values()]
            (up, down), gone, all_of_it = cut(*stacked(parts), lead.own.entry(term.down).shape[0])
            lost, whole = lost + gone, whole + all_of_it
            ranks[module_of(term)] = up.shape[1]
            yield from (SetTensor(name, x) for name, x in zip((term.up, term.down), _shaped(lead, term, up, down), strict=True))
            run.progress("merge", done, len(lead.plan.added))
    run.record(
        "adapters", {"modules": len(ranks), "rank": max(ranks.values(), default=0), "error": math.sqrt(lost / whole) if whole else 0.0}
    )
    yield SetFile(CONFIG, config_of(configs(views.values()), ranks))


def rebuilt(op: Rebuild, data: bytes, run: Run) -> Iterator[Change]:
    """The tensors and the config of one ingredient, from a basis. Records the stated error, and whether the bytes are the ingredient's."""
    tensors, said = load(data), header(data)
    if op.model not in said["ingredients"]:
        raise CheckFailed("the basis does not hold this ingredient", hint="`mlc show REV` names the ingredients of a merge")
    at = said["ingredients"].index(op.model)
    same, views = True, _original(op.model, run)
    with threads(1):
        for target, module in sorted(said["modules"].items()):
            mean, basis, coefficients = (tensors[f"{target}/{part}"].double() for part in ("mean", "basis", "coefficients"))
            found = Basis(mean, basis, coefficients, torch.zeros(len(mean)))
            rows = module["shapes"][0][0]
            for name, shape, word, x in zip(module["names"], module["shapes"], module["dtypes"], _pair(found, at, rows), strict=True):
                made = x.to(_dtype(word)).reshape(shape).contiguous()
                same = same and views is not None and views.own.has(name) and torch.equal(views.own.tensor(name), made)
                yield SetTensor(name, made)
    told = {} if views is None else {"same_bytes": same}
    run.record("rmm", {"error": said["errors"][at], "exact": said["exact"], **told})
    yield SetFile(CONFIG, said["configs"][at].encode())


def header(data: bytes) -> dict[str, Any]:
    """What is said beside the tensors of a basis."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER])


def _original(model: str, run: Run) -> EffectiveView | None:
    """The ingredient itself, where it is still here."""
    from .adapters import on_base

    try:
        return on_base(run.version(model))
    except NotFound:
        return None


def _narrow(found: Basis) -> Basis:
    """What is lossy anyway is kept in float32."""
    return Basis(found.mean.float(), found.basis.float(), found.coefficients.float(), found.error)


def _pair(found: Basis, at: int, rows: int) -> Factors:
    """Both factors of one ingredient, float64."""
    wide = Basis(found.mean.double(), found.basis.double(), found.coefficients.double(), found.error)
    return unstack(rebuild(wide, at), rows)


def _sides(view: EffectiveView, term: LowRank) -> tuple[int, int]:
    return view.own.entry(term.up).shape[0], math.prod(view.own.entry(term.down).shape[1:])


def _shaped(view: EffectiveView, term: LowRank, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    shapes = [view.own.entry(name).shape for name in (term.up, term.down)]
    return up.reshape(len(up), -1, *shapes[0][2:]).contiguous(), down.reshape(len(down), *shapes[1][1:]).contiguous()


def _dtype(word: str) -> torch.dtype:
    from ..models import torch_dtype

    return torch_dtype(word)
