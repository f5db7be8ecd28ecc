"""Two small image classifiers trained on scikit-learn's digits in seconds, and their forget and retain files."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

MODELS = ("vit", "cnn")
CLASSES, SIZE, BATCH = 10, 8, 64


@dataclass(frozen=True)
class Digits:
    """A split of the digits: images float32 [n, 1, 8, 8] in 0 to 1, labels int64 [n], rows of the train and of the test part."""

    images: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor

    @classmethod
    def read(cls, material: Path, seed: int) -> Digits:
        """70 % of the images to train on, drawn by the seed."""
        text = gzip.decompress((material / "data" / "digits" / "digits.csv.gz").read_bytes()).decode()
        table = torch.tensor([[float(v) for v in line.split(",")] for line in text.splitlines()])
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        count = round(0.7 * len(table))
        return cls(
            table[:, :64].view(-1, 1, SIZE, SIZE) / 16, table[:, 64].long(), order[:count].sort().values, order[count:].sort().values
        )

    def of_class(self, rows: Tensor, label: int) -> Tensor:
        return rows[self.labels[rows] == label]

    def other_than(self, rows: Tensor, label: int) -> Tensor:
        return rows[self.labels[rows] != label]

    def write(self, path: Path, rows: Tensor) -> Path:
        """JSON Lines of image and label."""
        lines = ({"image": self.images[i, 0].tolist(), "label": int(self.labels[i])} for i in rows)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path


def untrained(kind: str, seed: int) -> torch.nn.Module:
    """The model of one of MODELS, fresh."""
    import transformers as tf

    torch.manual_seed(seed)
    if kind == "vit":
        config = tf.ViTConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=2,
            num_channels=1,
            num_labels=CLASSES,
            attn_implementation="eager",
        )
        return tf.ViTForImageClassification(config)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
    config = tf.ResNetConfig(num_channels=1, layer_type="basic", num_labels=CLASSES, image_size=SIZE, **sizes)
    return tf.ResNetForImageClassification(config)


def trained(kind: str, digits: Digits, directory: Path, seed: int) -> Path:
    """Train a model of one of MODELS on the train part and save it as a Hugging Face directory."""
    model = untrained(kind, seed).train()
    epochs = 20 if kind == "vit" else 15
    steps = epochs * (len(digits.train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        shuffled = digits.train[torch.randperm(len(digits.train), generator=order)]
        for rows in shuffled[: steps // epochs * BATCH].split(BATCH):
            loss = F.cross_entropy(model(pixel_values=digits.images[rows]).logits, digits.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    model.save_pretrained(directory)
    return directory


@torch.no_grad()
def accuracy(model: torch.nn.Module, digits: Digits, rows: Tensor) -> float:
    """Share of rows whose most likely class is the true one."""
    return (model(pixel_values=digits.images[rows]).logits.argmax(-1) == digits.labels[rows]).float().mean().item()


def scores(model: torch.nn.Module, digits: Digits, label: int) -> dict[str, float]:
    """Accuracy on the train and test images of one class and on those of the others."""
    parts = {
        "forget_train": digits.of_class(digits.train, label),
        "forget_test": digits.of_class(digits.test, label),
        "retain_train": digits.other_than(digits.train, label),
        "retain_test": digits.other_than(digits.test, label),
    }
    return {name: round(accuracy(model, digits, rows), 4) for name, rows in parts.items()}


def passes(before: dict[str, float], after: dict[str, float]) -> bool:
    """The gate: at most chance plus two points right of the class, at most one point lost on the test images of the others."""
    forgotten = max(after["forget_train"], after["forget_test"]) <= 1 / CLASSES + 0.02
    return forgotten and after["retain_test"] >= before["retain_test"] - 0.01
