"""Selection and dampening of weights by two importances, for the SSD family.

Elementwise over the weights that may change: a weight is selected when its importance to the forget set exceeds `alpha` times its
reference importance (strictly), and is then multiplied by beta = min(damping * reference / forget, 1) (Foster et al. 2308.07707).
What is not selected keeps its bits; the product is rounded once to fp32, and once more when it is stored in a narrower dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.dampen import dampen
from ...registry.errors import CheckFailed
from ..models import slot as parameter_of
from .exclusion import Slot

TINY = 1e-20  # importances below this share of the median are rounding dust and count as zero (card SSD, numerics)
# The mixture is rounded up by half a millionth: then float rounding can never select a weight that F_f <= F_D / share rules out.
UPWARD = 1 + 2**-21
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def mixed(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Importance of the union of both sets: share * forget + (1 - share) * retain per element, exact for per-sample means.

    share: |D_f| / |D| in (0, 1]. fp32 in and out, same shapes; within 1e-6 of the real number and never below it.
    """
    return {
        name: (forget[name].double() * share + retain[name].double() * (1 - share)).mul_(UPWARD).float() for name in sorted(forget)
    }  # fmt: skip


def dust(importance: Mapping[str, Tensor]) -> float:
    """The value up to which an importance counts as zero: TINY times the median of the positive ones; 0 when there are none."""
    positive = [v[v > 0].flatten() for v in importance.values()]
    values = torch.cat(positive) if positive else torch.empty(0)
    return TINY * values.median().item() if values.numel() else 0.0


class Dampener:
    """Applies any strength to a module, each time from the weights it came with, and says what it selected.

    module: fp32, holding the original weights; forget, reference: importances fp32 by parameter name; damping: lambda.
    """

    def __init__(
        self,
        module: nn.Module,
        slots: Iterable[Slot],
        forget: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
        *,
        damping: float = 1.0,
    ) -> None:
        self.slots, self.damping, self.reference = tuple(slots), damping, reference
        self.parameters = {s.name: parameter_of(module, s.name) for s in self.slots}
        self.originals = {name: p.detach().clone() for name, p in self.parameters.items()}
        floor = dust({s.name: forget[s.name] for s in self.slots})
        self.forget = {s.name: torch.where(forget[s.name] > floor, forget[s.name], 0.0) for s in self.slots}
        self.weights = sum(p.numel() for p in self.parameters.values())

    def apply(self, alpha: float) -> int:
        """Put the dampened weights into the module; returns how many are selected."""
        total = 0
        with torch.no_grad():
            for place in self.slots:
                data, count = self._dampened(place, alpha)
                self.parameters[place.name].copy_(data)
                total += count
        return total

    def restore(self) -> None:
        """Put the original weights back into the module."""
        with torch.no_grad():
            for name, data in self.originals.items():
                self.parameters[name].copy_(data)

    def values(self, alpha: float) -> dict[str, Tensor]:
        """Parameter name -> dampened value, for those in which an element changes."""
        found = {place.name: self._dampened(place, alpha)[0] for place in self.slots}
        return {name: data for name, data in found.items() if not torch.equal(data, self.originals[name])}

    def mask(self, place: Slot, alpha: float) -> Tensor:
        """Bool mask of the selected weights of one tensor, in its shape: forget > alpha * reference."""
        return self.forget[place.name] > self.reference[place.name] * alpha

    def require_some(self, alpha: float, hint: str) -> None:
        """Raise CheckFailed when the strength selects no weight, every weight, or only such as keep their value."""
        count = sum(int(self.mask(s, alpha).sum()) for s in self.slots)
        if count == 0:
            raise CheckFailed(f"selected 0 of {self.weights} weights: the result would be the parent", hint=hint, selected=0)
        if count == self.weights:
            raise CheckFailed(f"selected all {count} of {self.weights} weights: nothing would be left to keep", hint=hint, selected=count)
        if not self.values(alpha):
            raise CheckFailed(
                f"selected {count} of {self.weights} weights, and the damping leaves each at its value",
                hint="--damping 1 is the default; smaller dampens more",
            )

    def report(self, alpha: float) -> dict[str, Any]:
        """What was selected: counts in all and per role, and the quantiles of the factors. Numbers only."""
        roles: dict[str, list[int]] = {}
        factors = []
        for place in self.slots:
            mask = self.mask(place, alpha)
            tally = roles.setdefault(place.role, [0, 0])
            tally[0] += int(mask.sum())
            tally[1] += mask.numel()
            forget, reference = self.forget[place.name][mask], self.reference[place.name][mask]
            factors.append((self.damping * reference / forget).clamp_(max=1.0))
        selected = sum(count for count, _ in roles.values())
        return {
            "selected": selected,
            "weights": self.weights,
            "selected_fraction": round(selected / self.weights, 9),
            "by_role": {role: {"selected": count, "weights": size} for role, (count, size) in sorted(roles.items())},
            "beta_quantiles": _quantiles(torch.cat(factors)),
        }

    def packed_masks(self, alpha: float) -> bytes:
        """safetensors bytes: per stored name the mask as bits (uint8, eight weights to a byte, first weight in the lowest bit)."""
        from safetensors.torch import save

        return save({place.stored[0]: pack_bits(self.mask(place, alpha)) for place in self.slots})

    def ratios(self) -> list[Tensor]:
        """forget / reference per tensor, fp32; 0 where the forget importance is (near) 0, infinity where only the reference is."""
        forget = [(self.forget[s.name], self.reference[s.name]) for s in self.slots]
        return [torch.where(few > 0, few / every, 0.0) for few, every in forget]

    def _dampened(self, place: Slot, alpha: float) -> tuple[Tensor, int]:
        return dampen(self.originals[place.name], self.forget[place.name], self.reference[place.name], alpha, self.damping)


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as uint8 [ceil(n / 8)], row-major, the first element in the lowest bit."""
    flat = mask.flatten().to("cpu", torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _quantiles(factors: Tensor) -> list[float]:
    """The factors at QUANTILES, by nearest rank, so that no value is reported that is not there."""
    if not factors.numel():
        return []
    ordered = factors.sort().values
    return [round(ordered[math.floor(q * (len(ordered) - 1))].item(), 6) for q in QUANTILES]
