"""The task of a classifier: images or texts with a class each. One row per record, its loss the cross-entropy of the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...registry.errors import Incompatible
from ..evaluate.classify import to_pixels
from ..evaluate.rows import Example
from ..models import load_tokenizer
from .language import summary
from .task import Measured, Rows, batches, device_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..data.items import Item, ItemSet


class ClassTask:
    """Classification of images, or of texts. `inputs` of its rows are (pixels or ids, class number)."""

    kind = "classes"

    def __init__(self, view: ModelView, config: Any, *, images: bool) -> None:
        self.config, self.images = config, images
        self.tokenizer = None if images else load_tokenizer(view)
        self.pad = getattr(config, "pad_token_id", None) or 0
        self.names: dict[str, int] = dict(config.label2id or {})

    def rows(self, items: ItemSet) -> Rows:
        """One row per record; raises BadInputFile where a record has no class, or one that the model does not know."""
        made = tuple((self._reading(items, item), self._class(items, item)) for item in items.items)
        lengths = tuple(1 if self.images else len(read) for read, _ in made)
        return Rows(lengths, (1,) * len(made), tuple(range(len(made))), (True,) * len(made), made)

    def _reading(self, items: ItemSet, item: Item) -> Any:
        if item.kind != ("image" if self.images else "label"):
            wanted = "`image` and `label`" if self.images else "`text` and `label`"
            raise items.bad(item.line, f"the model is a classifier: a record needs {wanted}")
        if self.tokenizer is not None:
            limit = getattr(self.config, "max_position_embeddings", None)
            return self.tokenizer(item.prompt, truncation=limit is not None, max_length=limit, verbose=False)["input_ids"]
        try:
            return to_pixels(Example(f"line {item.line}", None, {"image": item.image}), self.config)
        except Incompatible as fault:
            raise items.bad(item.line, fault.message, fault.hint) from fault

    def _class(self, items: ItemSet, item: Item) -> int:
        label = self.names.get(item.label, item.label) if isinstance(item.label, str) else item.label
        if not isinstance(label, int) or not 0 <= label < self.config.num_labels:
            raise items.bad(item.line, f"the label is none of the model's {self.config.num_labels} classes")
        return label

    def inputs(self, rows: Rows, chosen: Sequence[int], where: torch.device) -> tuple[dict[str, Tensor], Tensor | None]:
        """Pixels fp32 [B, C, H, W], or ids with an attention mask [B, T]."""
        read = [rows.inputs[i][0] for i in chosen]
        if self.images:
            return {"pixel_values": torch.stack(read).to(where)}, None
        width = max(map(len, read))
        ids = torch.full((len(read), width), self.pad)
        mask = torch.zeros(len(read), width, dtype=torch.int64)
        for row, one in enumerate(read):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        return {"input_ids": ids.to(where), "attention_mask": mask.to(where)}, mask.bool().to(where)

    def logits(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B, classes]."""
        return module(**self.inputs(rows, chosen, device_of(module))[0]).logits.float()

    def losses(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B]: cross-entropy of each row's class."""
        logits = self.logits(module, rows, chosen)
        return nn.functional.cross_entropy(logits, self._targets(rows, chosen, logits.device), reduction="none")

    def token_sums(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The losses, and 1 for each."""
        losses = self.losses(module, rows, chosen)
        return losses, torch.ones(len(chosen), dtype=torch.int64, device=losses.device)

    def output_norms(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B]: ||logits||^2."""
        return self.logits(module, rows, chosen).square().sum(-1)

    @torch.no_grad()
    def measure(self, module: nn.Module, rows: Rows) -> Measured:
        """See Task.measure."""
        sums, hits = [math.nan] * len(rows), [0] * len(rows)
        for chosen in batches(rows, range(len(rows)), 256 if self.images else 2048):
            logits = self.logits(module, rows, chosen)
            targets = self._targets(rows, chosen, logits.device)
            nll = nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
            for i, value, best in zip(chosen, nll, (logits.argmax(-1) == targets).long().tolist(), strict=True):
                sums[i], hits[i] = value, best
        return summary(rows, sums, hits)

    @staticmethod
    def _targets(rows: Rows, chosen: Sequence[int], where: torch.device) -> Tensor:
        return torch.tensor([rows.inputs[i][1] for i in chosen], device=where)
