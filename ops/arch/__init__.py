"""Roles of tensors per model family: tables that every operation and `diff` read. Pure Python."""

from __future__ import annotations

from .families import FAMILIES, Family, bare, blocks_of, family_of, layer_of, role_of, with_layer

__all__ = ["FAMILIES", "Family", "bare", "blocks_of", "family_of", "layer_of", "role_of", "with_layer"]
