"""Where work runs. Operations hand an engine a module, batches and settings, and never know which engine it is."""

from __future__ import annotations

from .base import Attached, Engine, Feed, Masks, Objective, Outcome, State, TrainSettings, Watch
from .local import LocalEngine

__all__ = ["Attached", "Engine", "Feed", "LocalEngine", "Masks", "Objective", "Outcome", "State", "TrainSettings", "Watch"]
