"""Unlearning: what is forgotten, how, and what is measured of it."""
