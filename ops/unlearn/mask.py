"""Which weights may move: WAGLE's attribution mask (Jia et al., NeurIPS 2024, 2410.17509), or a random one of the same size.

    s = |(theta - g_r / gamma) g_f|,  the global top floor(keep_ratio N) may move

g_f and g_r are the mean over rows of the gradient of the mean NLL, in fp32, over all parameters (tied ones once); g_r over as many retain
rows as there are forget rows (at least LEAST), chosen by digest, as the authors' paired loader does. gamma defaults to median|g_r| /
median|theta|, which balances the two terms; the reference's 1e-6 in effect ranks by |g_r g_f|. The mask is an artifact.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.select import top_k_masks
from ...registry.errors import CheckFailed
from ...registry.ids import record_digest
from ...registry.records import canonical
from .choosing import by_digest
from .importance import mean_gradient
from .task import batches

if TYPE_CHECKING:
    from ...registry.records import Json
    from .context import Context, Part

KIND = "mask"
LEAST = 512  # retain rows, where there are so many
SAMPLED = 1 << 20  # elements that a median is taken over, evenly spaced


def masks_for(ctx: Context) -> dict[str, Tensor]:
    """Parameter name -> bool tensor of its shape, True where it may move; over the parameters that require gradients."""
    shapes = {n: p.shape for n, p in ctx.parameters.items() if p.requires_grad}
    data = ctx.run.artifact(KIND, _key(ctx), lambda: _computed(ctx))
    masks, facts = unpack(data, shapes)
    ctx.facts.update(facts)
    where = next(ctx.module.parameters()).device
    return {name: mask.to(where) for name, mask in masks.items()}


def _computed(ctx: Context) -> bytes:
    parameters = {n: p.detach().float() for n, p in ctx.parameters.items() if p.requires_grad}
    total = sum(p.numel() for p in parameters.values())
    count = math.floor(ctx.op.keep_ratio * total)
    if count == 0:
        raise CheckFailed(f"selected 0 of {total:,} weights: nothing would change", hint="a greater --keep-ratio, for instance 0.3")
    facts: dict[str, Json] = {"selected": count, "weights": total, "selected_fraction": count / total}
    if ctx.op.mask == "random":
        generator = torch.Generator().manual_seed(ctx.run.seed)
        scores = {n: torch.rand(p.shape, generator=generator) for n, p in parameters.items()}
    else:
        assert ctx.retain is not None
        paired = by_digest(ctx.retain, list(ctx.retain.everything))[: max(LEAST, len(ctx.forget.rows))]
        forget = _gradient(ctx, ctx.forget, ctx.forget.everything, set(parameters))
        retain = _gradient(ctx, ctx.retain, paired, set(parameters))
        gamma = ctx.op.gamma if ctx.op.gamma is not None else balanced(parameters, retain)
        facts.update(gamma=gamma, term_ratio=_ratio(parameters, retain, gamma))
        scores = {n: score(p, forget[n], retain[n], gamma) for n, p in parameters.items()}
        if not all(s.isfinite().all() for s in scores.values()):
            raise CheckFailed("the attribution scores are not finite numbers", hint="a greater --gamma, or --mask random")
    masks = top_k_masks(list(scores.values()), count)
    return pack(dict(zip(scores, masks, strict=True)), facts)


def score(theta: Tensor, forget: Tensor, retain: Tensor, gamma: float) -> Tensor:
    """|(theta - g_r / gamma) g_f|, fp32."""
    return ((theta - retain / gamma) * forget).abs()


def balanced(parameters: dict[str, Tensor], retain: dict[str, Tensor]) -> float:
    """median|g_r| / median|theta| over all weights; 1 when the retain gradient is mostly zero (then only |theta g_f| is left)."""
    over, under = _median(retain), _median(parameters)
    return over / under if over > 0 and under > 0 else 1.0


def _gradient(ctx: Context, part: Part, chosen: Sequence[int], names: set[str]) -> dict[str, Tensor]:
    total = len(chosen)
    return mean_gradient(
        ctx.module,
        lambda chosen: ctx.task.losses(ctx.module, part.rows, chosen),
        batches(part.rows, chosen),
        names=names,
        progress=lambda done: ctx.run.progress(f"gradient of the {part.items.role} set", done, total),
    )


def _median(tensors: dict[str, Tensor]) -> float:
    """Median magnitude over all tensors: of an even sample where there are more than SAMPLED elements."""
    total = sum(t.numel() for t in tensors.values())
    stride = max(1, total // SAMPLED)
    return torch.cat([t.reshape(-1)[::stride].abs().cpu() for t in tensors.values()]).median().item()


def _ratio(parameters: dict[str, Tensor], retain: dict[str, Tensor], gamma: float) -> float:
    """|g_r / gamma| over |theta|, both as one vector: 1 when both terms weigh the same."""
    norms = [math.sqrt(sum(t.double().square().sum().item() for t in side.values())) for side in (retain, parameters)]
    return round(norms[0] / gamma / norms[1], 6) if norms[1] else 0.0


# --- as bytes --------------------------------------------------------------------------------------------


def pack(masks: dict[str, Tensor], facts: dict[str, Json]) -> bytes:
    """Length of a JSON head (u32, little-endian), the head (facts, and elements per tensor in order), then 8 elements per byte."""
    sizes = [[name, mask.numel()] for name, mask in sorted(masks.items())]
    flat = torch.cat([masks[str(name)].reshape(-1).cpu() for name, _ in sizes])
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8).to(torch.uint8)
    packed = (flat << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    head = canonical({"facts": facts, "tensors": sizes})
    return struct.pack("<I", len(head)) + head + packed.numpy().tobytes()


def unpack(data: bytes, shapes: dict[str, torch.Size]) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """The inverse of `pack`: (masks, facts)."""
    (length,) = struct.unpack_from("<I", data)
    head = json.loads(data[4 : 4 + length])
    packed = torch.frombuffer(bytearray(data[4 + length :]), dtype=torch.uint8)
    flat = ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).bool().reshape(-1)
    masks, start = {}, 0
    for name, size in head["tensors"]:
        masks[name] = flat[start : start + size].view(shapes[name])
        start += size
    return masks, head["facts"]


def _key(ctx: Context) -> str:
    op = ctx.op
    how = record_digest("mlc.mask.v1", canonical([op.mask, op.keep_ratio, op.gamma, op.objective == "rmu", op.layer, ctx.run.seed]))
    return f"{ctx.view.snapshot_id}/{ctx.run.pseudonym(ctx.forget.items.payload)}/{ctx.retain_digest}/{how[:16]}"
