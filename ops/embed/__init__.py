"""Encoders: texts to vectors, search, and new versions whose vectors may be searched against an old gallery."""
