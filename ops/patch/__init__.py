"""Robustness patches: signatures taken from a pair of models, laid over a clean version, and taken off again to the byte.

Robust weight signatures: Cai, Zhang, Wang, arXiv 2302.12480 (ICML 2023). A patched version is never made by adding to or subtracting from
what is there: it is the clean version plus the signatures in force, summed anew in one fixed order (`overlay`). So the order in which
patches come and go leaves no trace, and with the last one gone the clean bytes are back.
"""
