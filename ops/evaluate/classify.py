"""Classification of texts or images by a model with a class head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...registry.errors import Incompatible
from .bench import Bench
from .predictions import Prediction, accuracy, mean, settled
from .rows import Example


def score(bench: Bench, examples: Sequence[Example], metric: str) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows and metrics `accuracy` and `logprob` (mean nats of the true class)."""
    config = bench.model.config
    names: dict[int, str] = dict(config.id2label or {})  # type: ignore[arg-type]  # its keys are class numbers
    truths = [truth(example, config) for example in examples]
    logits = _images(bench, examples) if "image" in examples[0].values else _texts(bench, examples)
    rows = []
    for example, label, row in zip(examples, truths, logits, strict=True):
        logprobs = row.float().log_softmax(-1).tolist()
        best = int(row.argmax())
        logprob = logprobs[label]
        finite = all(math.isfinite(value) for value in logprobs)
        rows.append(
            settled(
                Prediction(
                    example=example.id,
                    answer=names.get(best, str(best)),
                    correct=best == label,
                    score=math.exp(logprob) if finite else None,
                    logprob=logprob,
                    slice=example.slice,
                )
            )
        )
    return rows, {"accuracy": accuracy(rows), "logprob": mean(row.logprob for row in rows)}


def truth(example: Example, config: Any) -> int:
    """The class number of an example's label, given as number or as name. Raises Incompatible for one the model has not."""
    label, names = example.values["label"], config.label2id or {}
    if isinstance(label, str):
        label = names.get(label, label)
    if isinstance(label, int) and 0 <= label < config.num_labels:
        return label
    known = ", ".join(list(names)[:8])
    raise Incompatible(
        f"example {example.id!r} has the label {label!r}, which is none of the model's {config.num_labels} classes",
        hint=f"classes: {known}",
    )


def _texts(bench: Bench, examples: Sequence[Example]) -> list[torch.Tensor]:
    tokenizer = bench.text.tokenizer
    coded = tokenizer([_text(e) for e in examples], truncation=bench.window is not None, max_length=bench.window, verbose=False)[
        "input_ids"
    ]
    pad = bench.model.config.pad_token_id
    alone = pad is None  # without a pad id some heads cannot tell where a row ends: then one row at a time

    def forward(chosen: list[int]) -> torch.Tensor:
        width = max(len(coded[i]) for i in chosen)
        ids = torch.full((len(chosen), width), 0 if pad is None else pad)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(coded[i])] = torch.tensor(coded[i])
            mask[row, : len(coded[i])] = 1
        return bench.model(input_ids=ids.to(bench.device), attention_mask=mask.to(bench.device)).logits

    return _run(bench, [bench.batch_tokens if alone else len(c) for c in coded], forward)


def _images(bench: Bench, examples: Sequence[Example]) -> list[torch.Tensor]:
    pixels = [to_pixels(example, bench.model.config) for example in examples]
    dtype = next(bench.model.parameters()).dtype
    tokens = 1 + pixels[0].shape[1] * pixels[0].shape[2] // _square(getattr(bench.model.config, "patch_size", 1))

    def forward(chosen: list[int]) -> torch.Tensor:
        return bench.model(pixel_values=torch.stack([pixels[i] for i in chosen]).to(bench.device, dtype)).logits

    return _run(bench, [tokens] * len(pixels), forward)


def _run(bench: Bench, lengths: list[int], forward: Callable[[list[int]], torch.Tensor]) -> list[torch.Tensor]:
    results: list[torch.Tensor] = [torch.empty(0)] * len(lengths)
    for chosen in bench.batches(lengths):
        for i, row in zip(chosen, forward(chosen).cpu(), strict=True):
            results[i] = row
    return results


def _text(example: Example) -> str:
    if "text" not in example.values:
        raise Incompatible(f"example {example.id!r} is an image among texts", hint="keep texts and images in separate suites")
    return example.values["text"]


def to_pixels(example: Example, config: Any) -> torch.Tensor:
    """float32 [channels, height, width] as the model wants it, from a flat, [H, W], [C, H, W] or [H, W, C] list.

    Values are taken as they are: whatever scaling the model was trained with belongs into the data. One grey plane is repeated
    for models with more channels. Raises Incompatible when the number of values does not fit.
    """
    if "image" not in example.values:
        raise Incompatible(f"example {example.id!r} is a text among images", hint="keep texts and images in separate suites")
    channels = int(getattr(config, "num_channels", 3))
    size = getattr(config, "image_size", None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    image = torch.tensor(example.values["image"], dtype=torch.float32)
    if height is None or width is None:
        raise Incompatible("the model's config does not say how large its images are", hint="it needs image_size")
    if image.dim() == 3 and image.shape == (height, width, channels) and image.shape != (channels, height, width):
        image = image.permute(2, 0, 1)
    if image.numel() == channels * height * width:
        return image.reshape(channels, height, width)
    if image.numel() == height * width:
        return image.reshape(1, height, width).expand(channels, height, width)
    raise Incompatible(
        f"example {example.id!r} has {image.numel()} pixel values, the model wants {channels} x {height} x {width}",
        hint="resize the images of the suite to the model's size",
    )


def _square(patch: Any) -> int:
    return math.prod(patch) if isinstance(patch, list | tuple) else int(patch) ** 2
