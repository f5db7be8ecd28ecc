"""One alignment from beginning to end: the old vectors, the head, the training, the changed tensors and the files of the head."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import Incompatible
from ..base import Change, Run, SetFile, SetTensor
from ..engine import LocalEngine, TrainSettings
from ..engine.local import threads
from ..models import load_model, state_names, torch_dtype
from .encoder import Encoder, as_encoder, code, encode, load_encoder, read_parts
from .heads import HEAD_CONFIG, HEAD_WEIGHTS, Basis, Head, Linear, Rotated
from .losses import Trainee, class_means, objective, procrustes
from .texts import Draws, Labelled, read_labelled

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .align import AlignEmbeddings

DENSE = "2_Dense"
VECTORS = "vectors"  # the kind of artifact that holds a version's vectors of a data set
KINDS = "sentence_transformers.models."


def apply(op: AlignEmbeddings, view: ModelView, run: Run) -> Iterator[Change]:
    """Train, and yield the encoder's tensors and the head's files."""
    data = read_labelled(op.data, op.holdout, run.seed)
    run.input(data.record)
    with threads(run.threads), torch.random.fork_rng():
        torch.manual_seed(run.seed)
        model = load_model(view, dtype=torch.float32)
        names = state_names(model, view)  # with a pooler, where there is one: it is taken off next
        encoder = as_encoder(model, view)
        if encoder.head is not None:
            raise Incompatible("this encoder has a head already", hint="align the version before its head was made")
        old = vectors(run.version(op.to), data, run)[data.train]
        alone = encode(encoder, code(view, [data.texts[i] for i in data.train]))
        encoder.head = make_head(op, encoder, alone, old)
        facts: dict[str, Any] = {
            "method": op.method,
            "texts": len(data.train),
            "width": encoder.width,
            "size": encoder.size,
            "old_size": old.shape[1],
        }
        if op.method != "procrustes":
            facts |= _train(op, view, encoder, data, old, alone, run)
        run.record("training", facts)
        if op.method != "procrustes":
            yield from _changes(view, model, names)
        yield from _files(view, encoder)


def vectors(view: ModelView, data: Labelled, run: Run) -> Tensor:
    """fp32 [texts, size]: a version's vectors of all the texts, kept as an artifact of (snapshot, data)."""
    from safetensors.torch import load, save

    def made() -> bytes:
        return save({"vectors": encode(load_encoder(view), code(view, data.texts), progress=run.progress)})

    return load(run.artifact(VECTORS, f"{view.snapshot_id}/{data.record.digest}", made))["vectors"]


def make_head(op: AlignEmbeddings, encoder: Encoder, alone: Tensor, old: Tensor) -> Head | None:
    """The head before training: as near to the old vectors as a fixed map of the untouched encoder's gets."""
    width, target = encoder.width, old.shape[1]
    if op.method == "bt2":
        return Basis(width, target, max(op.extra, target - width, 1))
    if op.method in ("bct", "procrustes"):
        return None if op.method == "bct" and width == target else Linear(procrustes(alone, old))
    head = Rotated(width, max(target + op.extra, width) - width)
    with torch.no_grad():
        head.turn.weight = completed(procrustes(head.expanded(alone), old), head.size)
    return head


def completed(rows: Tensor, size: int) -> Tensor:
    """An orthogonal matrix fp32 [size, size] whose first rows are the given orthonormal ones."""
    wide = torch.cat([rows.double().T, torch.randn(size, size - len(rows), dtype=torch.float64)], dim=1)
    q, r = torch.linalg.qr(wide)
    return (q * r.diagonal().sign()).T.float()


def _train(op: AlignEmbeddings, view: ModelView, encoder: Encoder, data: Labelled, old: Tensor, alone: Tensor, run: Run) -> dict[str, Any]:
    names = {label: i for i, label in enumerate(sorted({data.labels[i] for i in data.train}))}
    classes = torch.tensor([names[data.labels[i]] for i in data.train])
    with torch.no_grad():
        start = alone if encoder.head is None or isinstance(encoder.head, Basis) else encoder.head(alone)
    module = Trainee(
        encoder,
        op.method,
        class_means(start, classes, len(names)),
        class_means(old, classes, len(names)),
        scale=op.scale,
        old_weight=op.old_weight,
    )
    for name, parameter in encoder.body.named_parameters():
        parameter.requires_grad_(
            "position_embeddings" not in name
        )  # a few hundred labelled texts say nothing about places they never reach
    targets = {"old": old, "alone": alone}
    rows = Draws(
        code(view, data.texts), data.train, classes, targets, op.batch, run.seed, f"{data.record.digest}/{op.to}/{view.snapshot_id}"
    )
    settings = TrainSettings(
        steps=op.steps,
        lr=op.lr,
        warmup=math.ceil(op.steps / 10),
        save_every=op.save_every,
        seed=run.seed,
        threads=run.threads,
        dropout=False,
    )
    outcome = LocalEngine().train(module, rows, settings, run, objective=objective)
    return {"steps": outcome.steps, "lr": op.lr, "labels": len(names), "curve": [list(point) for point in outcome.curve]}


# --- what becomes of it ----------------------------------------------------------------------------------


def _changes(view: ModelView, model: Any, names: dict[str, str]) -> Iterator[Change]:
    moved = dict(model.named_parameters())
    for name, stored in names.items():
        if name in moved:
            yield SetTensor(stored, moved[name].detach().to(torch_dtype(view.entry(stored).dtype)))


def _files(view: ModelView, encoder: Encoder) -> Iterator[Change]:
    """The head as files: a Dense part that sentence-transformers reads where the head is linear, else our own two files."""
    from safetensors.torch import save

    head = encoder.head
    if head is None:
        return
    if isinstance(head, Basis):
        yield SetFile(HEAD_CONFIG, _json(head.settings()))
        yield SetFile(HEAD_WEIGHTS, save(head.plain()))
        return
    weight = head.plain()["weight"]
    said = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
    yield SetFile(f"{DENSE}/config.json", _json({**said, "activation_function": "torch.nn.modules.linear.Identity"}))
    yield SetFile(f"{DENSE}/model.safetensors", save({"linear.weight": weight}))
    pooling = next((m["path"] for m in json.loads(view.file("modules.json") or b"[]") if str(m.get("type", "")).endswith("Pooling")), None)
    if pooling is None:
        pooling = "1_Pooling"
        yield SetFile(
            f"{pooling}/config.json",
            _json({"word_embedding_dimension": encoder.width, f"pooling_mode_{read_parts(view).pooling}_tokens": True}),
        )
    parts = [("", "Transformer"), (pooling, "Pooling"), (DENSE, "Dense"), ("3_Normalize", "Normalize")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": KINDS + kind} for i, (path, kind) in enumerate(parts)]
    yield SetFile("modules.json", _json(modules))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
