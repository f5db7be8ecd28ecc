"""How long and how fast a training method goes when nothing is said. Pure Python: plans use it without torch."""

from __future__ import annotations

from .unlearn import STEPS

WARMUP = 10  # steps
# Measured on a Llama of 1.1 M weights, NPO with plain text: 3e-4 for all weights, 1e-3 where three tenths of them move.
USUAL, AT = 3e-4, 1.1e6
FEWEST = 0.3  # below this share the rate rises no further


def usual_rate(weights: int, share: float = 1.0) -> float:
    """Peak rate for a model of so many weights of which `share` may move: falls as N^-0.3, rises as the share falls."""
    return float(f"{USUAL * min(1.0, (AT / max(weights, 1)) ** 0.3) / max(FEWEST, share):.2g}")


__all__ = ["STEPS", "WARMUP", "usual_rate"]
