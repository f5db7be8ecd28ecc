"""The losses of BCT, OCA and BT2 over one batch, all on unit vectors with cosines times `scale` as logits.

BCT:  CE(W phi, y) + a CE(W_old phi[:d_o], y).
OCA:  the same on y = O [x; E x], plus 1 - cos(y[:d_o], phi_old(x)): the aligned part is pulled to the old vector itself, too.
BT2:  CE(W f, y) + 1 (1 - cos(f, phi_alone(x))) + a CE(W_old b, y) + 5 (1 - cos(b, phi_old(x))), weights (1, 10, 5) as in the paper's code.
W_old holds the means of the old version's vectors by class, frozen; W is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from .encoder import Encoder
from .heads import Basis
from .texts import Batch

NEAR_OLD, NEAR_ALONE = 5.0, 1.0


class Trainee(nn.Module):
    """An encoder with the classifiers that only training needs.

    classes: fp32 [labels, size of what they judge], trained; old: fp32 [labels, d_o], the old version's class means, frozen.
    """

    def __init__(self, encoder: Encoder, method: str, classes: Tensor, old: Tensor, *, scale: float, old_weight: float) -> None:
        super().__init__()
        self.encoder, self.method, self.scale, self.old_weight = encoder, method, scale, old_weight
        self.classes = nn.Parameter(classes.clone())
        self.old = nn.Buffer(normalize(old, dim=-1))

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over the rows."""
        pooled = self.encoder.pooled(batch.ids, batch.mask)
        y = pooled if self.encoder.head is None else self.encoder.head(pooled)
        aligned = y[:, : self.old.shape[1]]
        whole = pooled if isinstance(self.encoder.head, Basis) else y
        loss = self._ce(whole, self.classes, batch.classes) + self.old_weight * self._ce(aligned, self.old, batch.classes)
        if self.method == "bct":
            return loss
        loss = loss + NEAR_OLD * _apart(aligned, batch.targets["old"])
        return loss + NEAR_ALONE * _apart(pooled, batch.targets["alone"]) if self.method == "bt2" else loss

    def _ce(self, x: Tensor, prototypes: Tensor, classes: Tensor) -> Tensor:
        logits = self.scale * normalize(x, dim=-1) @ normalize(prototypes, dim=-1).T
        return cross_entropy(logits, classes)


def _apart(x: Tensor, y: Tensor) -> Tensor:
    return (1.0 - cosine_similarity(x, y, dim=-1)).mean()


def objective(module: nn.Module, batch: Batch) -> Tensor:
    """The engine's view of it."""
    assert isinstance(module, Trainee)
    return module.loss(batch)


def class_means(vectors: Tensor, classes: Tensor, count: int) -> Tensor:
    """fp32 [count, d]: the mean unit vector of each class, from vectors [n, d] and classes int64 [n]."""
    sums = torch.zeros(count, vectors.shape[1]).index_add_(0, classes, normalize(vectors, dim=-1))
    return sums / torch.bincount(classes, minlength=count).clamp_min(1)[:, None]


def procrustes(new: Tensor, old: Tensor) -> Tensor:
    """fp32 [d_old, d_new] with orthonormal rows or columns: the map of unit vectors `new` [n, d_new] closest to `old` [n, d_old].

    U V^T from the singular value decomposition of old^T new (Schoenemann, 1966), in fp64.
    """
    u, _, vt = torch.linalg.svd(normalize(old, dim=-1).double().T @ normalize(new, dim=-1).double(), full_matrices=False)
    return (u @ vt).float()
