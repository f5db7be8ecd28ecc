"""What `mlc update --auto --dry-run` shows."""

from __future__ import annotations

from mlc.cli.render.style import Paint
from mlc.cli.render.trials import trial_lines
from mlc.ops.update.auto import Trial, judged


def test_the_table_names_what_was_chosen_what_learns_too_little_and_what_it_cost():
    trials = [
        Trial("full", {}, (1.0, 1.1), (0.5, 0.6)),
        Trial("self 50%", {}, (0.9, 1.0), (0.1, 0.2)),
        Trial("block", {}, (0.1, 0.1), (0.0, 0.0)),
    ]
    found = {**judged(trials, 0.75), "tokens": 3072, "budget": 153_600, "measured_tokens": 26_624, "keep": 0.75}
    lines = trial_lines(found, Paint(False))
    assert [line.split("  ")[-1].strip() for line in lines[1:4]] == ["0.5500", "chosen", "learns too little"]
    assert "90%" in lines[2]
    assert "3,072 tokens were trained on (2.0% of 153,600) and 26,624 measured" in lines[-1]


def test_trials_that_told_nothing_are_shown_all_the_same():
    trials = [Trial("full", {}, (-1.0, -1.1), (0.5, 0.6)), Trial("self 50%", {}, (0.9, 1.0), (0.1, 0.2))]
    lines = trial_lines({**judged(trials, 0.75), "tokens": 1, "budget": 100, "measured_tokens": 1, "keep": 0.75}, Paint(False))
    assert len(lines) == 6
    assert "chosen" in lines[2]
