"""Merging: from several versions, one. A table of methods, a room that reads recipes, and an executor that holds one tensor at a time.

`table` and `recipe` import no torch; formulas are pure functions over one tensor of every ingredient; `stream` runs them over models.
"""
