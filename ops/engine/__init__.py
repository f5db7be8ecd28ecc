"""Where work runs. Operations hand an engine a module, batches and settings, and never know which engine it is."""

from __future__ import annotations

from .base import Engine, Objective, Outcome, TrainSettings
from .local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Objective", "Outcome", "TrainSettings"]
