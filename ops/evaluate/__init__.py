"""How a model is measured: suites, scorers, flips."""
