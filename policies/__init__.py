"""Floor 3: what may become history. The conductor, the gate and its rules, recipes, runs, retention."""
