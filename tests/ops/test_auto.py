"""`mlc update --auto`: the rule on made-up trials, what the trials may cost, and that the run is the one that was chosen."""

from __future__ import annotations

import json

import pytest

from mlc.ops.update.auto import AMPLE, FORWARD, FRACTION, LEAST_MEASURED, SEEDS, Trial, afforded, candidates, judged, sizes
from mlc.ops.update.train import Update
from mlc.registry.errors import BadParameter
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView


def trial(name, gain, rise, noise=0.01):
    """Eight rows; what is noise is the same for every trial, but for a part that depends on the name."""
    wobble = [(-1) ** n * noise * (1 + 0.1 * (len(name) % 3)) for n in range(8)]
    return Trial(name, {"replay": name}, tuple(gain + w for w in wobble), tuple(rise + w for w in wobble))


def decide(trials, keep=0.75):
    return judged(trials, keep)


# --- the rule ---


def test_of_those_that_learn_enough_the_one_is_chosen_that_forgets_least():
    found = decide([trial("full", 1.0, 0.5), trial("self 25%", 0.9, 0.3), trial("self 50%", 0.8, 0.1), trial("block", 0.3, 0.0)])
    assert (found["choice"], found["options"], found["told_apart"]) == ("self 50%", {"replay": "self 50%"}, True)
    rows = {row["name"]: row for row in found["rows"]}
    assert [row["eligible"] for row in rows.values()] == [True, True, True, False]
    assert rows["self 25%"]["learnt"] == pytest.approx(0.9)
    assert rows["self 50%"]["at_par"] == pytest.approx(0.1 / 0.8**2)
    assert rows["full"]["learnt_error"] == pytest.approx(0)


def test_where_noise_hides_the_difference_experience_decides():
    alike = decide([trial("full", 1.0, 0.5), trial("spu 10%", 0.9, 0.100, 0.2), trial("self 50%", 0.9, 0.102, 0.1)])
    assert alike["choice"] == "self 50%"
    assert [row["alike"] for row in alike["rows"]] == [False, True, True]
    apart = decide([trial("full", 1.0, 0.5), trial("spu 10%", 0.9, 0.1, 0.2), trial("self 50%", 0.9, 0.4, 0.1)])
    assert apart["choice"] == "spu 10%"


def test_a_candidate_that_may_learn_enough_is_not_ruled_out_by_noise():
    full = Trial("full", {}, (1.0,) * 8, (0.5, 0.6) * 4)
    noisy = Trial("self 50%", {}, (0.0, 1.4) * 4, (0.1, 0.2) * 4)
    assert decide([full, noisy])["choice"] == "self 50%"
    sure = Trial("self 50%", {}, (0.7, 0.7001) * 4, (0.1, 0.2) * 4)
    assert decide([full, sure])["choice"] == "full"


def test_who_asks_for_more_of_the_new_text_gets_it():
    trials = [trial("full", 1.0, 0.5), trial("self 25%", 0.9, 0.3), trial("self 50%", 0.8, 0.1), trial("block", 0.3, 0.0)]
    assert [decide(trials, keep)["choice"] for keep in (1.0, 0.9, 0.75, 0.3)] == ["full", "self 25%", "self 50%", "block"]


def test_who_has_learnt_little_yet_is_not_believed_to_forget_little():
    """As trials of a story model on Shakespeare came out: SPU had risen less, and had learnt less."""
    found = decide([trial("full", 1.0, 0.44), trial("spu 10%", 0.55, 0.08), trial("self 50%", 0.8, 0.09)], keep=0.5)
    assert found["choice"] == "self 50%"
    assert found["rows"][1]["at_par"] == pytest.approx(0.08 / 0.55**2)
    nothing = decide([trial("full", 1.0, 0.44), trial("self 25%", 0.9, -0.01), trial("self 50%", 0.8, -0.02)])
    assert (nothing["choice"], nothing["rows"][2]["at_par"]) == ("self 50%", 0.0)
    assert nothing["rows"][1]["alike"]  # what forgets nothing is alike in that


def test_a_blend_must_be_sure_to_learn_enough():
    def blend(gain):
        one = trial("self 50%, blend 0.75", gain, 0.02)
        return Trial(one.name, {"replay": "x", "blend": 0.75}, one.gains, one.rises)

    runs = [trial("full", 1.0, 0.5), trial("self 50%", 0.85, 0.1)]
    assert decide([*runs, blend(0.76)])["choice"] == "self 50%"
    assert decide([*runs, blend(0.78)])["choice"] == "self 50%, blend 0.75"


def test_no_trial_is_taken_to_be_surer_than_another_seed_would_make_it():
    at_the_edge = [trial("full", 1.0, 0.5), trial("self 50%", 0.74, 0.1)]
    row = decide(at_the_edge)["rows"][1]
    assert (row["learnt_error"], row["eligible"]) == (SEEDS, True)
    assert decide([trial("full", 1.0, 0.5), trial("self 50%", 0.72, 0.1)])["choice"] == "full"
    assert decide(at_the_edge)["rows"][0]["learnt_error"] == pytest.approx(0)


def test_trials_that_taught_nothing_lead_to_the_usual_choice():
    found = decide([trial("full", 0.001, 0.0, 0.3), trial("block", 0.0, 0.0, 0.3), trial("self 50%", -0.1, 0.1, 0.3)])
    assert (found["choice"], found["told_apart"]) == ("self 50%", False)
    assert decide([trial("full", -1.0, 0.0), trial("self 50%", -1.0, 0.1)])["rows"][1]["learnt"] is None


# --- what it costs ---


@pytest.mark.parametrize(("steps", "batch", "length"), [(150, 8, 128), (60, 8, 128), (1000, 16, 64), (100_000, 32, 2048), (600, 8, 16)])
def test_all_trials_together_read_at_most_their_share(steps, batch, length):
    size = sizes(Update(data="x", auto=True, steps=steps, batch=batch), length, 6)
    assert size.tokens == 6 * size.steps * size.batch * size.seq_len <= FRACTION * size.budget
    assert size.seq_len <= length
    assert size.steps >= 4
    models = 1 + 6 * 3  # at most: the parent, and every candidate with its blends
    read = 2 * size.measured * models * size.seq_len
    assert read <= FORWARD * FRACTION * size.budget or size.measured == LEAST_MEASURED
    assert size.measured <= 64


def test_only_trials_that_are_long_enough_to_judge_them_try_both_kinds_of_blocks(view):
    short, size = afforded(Update(data="x", auto=True, steps=150), view, 128)
    assert size.steps < AMPLE
    assert set(short) == {"full", "self 25%", "self 50%", "spu 10%", "spu 30%", "block"}
    ample, size = afforded(Update(data="x", auto=True, steps=1500), view, 128)
    assert size.steps >= AMPLE
    assert set(ample) == {*short, "block + self 50%"}


def test_a_budget_that_leaves_nothing_for_trials_is_refused():
    with pytest.raises(BadParameter, match="too few to tell"):
        sizes(Update(data="x", auto=True, steps=10), 64, 6)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(keep):
    with pytest.raises(BadParameter, match="--auto-keep is a share above 0"):
        Update(data="x", auto=True, auto_keep=keep)


@pytest.mark.parametrize(
    "more",
    [{"expand": 1}, {"where": "importance"}, {"tune": 1}, {"adapter": "lora:2"}, {"protect": "spu"}, {"ema": "0.1"}, {"blend": 0.5},
     {"begin": "stable"}, {"mix": ("b.txt",)}, {"replay": ("self:0.5",)}, {"compat_with": "main", "compat_data": "a.jsonl"}],
)  # fmt: skip
def test_what_auto_chooses_cannot_be_set_beside_it(more):
    with pytest.raises(BadParameter, match="--auto chooses"):
        Update(data="x", auto=True, **more)


# --- in a run ---


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), layers=3))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "new.txt"
    path.write_text(" ".join(WORDS[i * 7 % len(WORDS)] for i in range(3000)))
    return path


def test_the_users_old_text_is_what_is_replayed(view, text):
    options = candidates(Update(data=str(text), auto=True, replay=(f"{text}:0.1",)), view)
    assert options["replay 50%"]["replay"] == (f"{text}:0.5",)
    assert set(options) == {"full", "replay 25%", "replay 50%", "spu 10%", "spu 30%", "block", "block + replay 50%"}
    assert candidates(Update(data=str(text), auto=True), view)["self 25%"]["replay"] == ("self:0.25",)


def test_the_run_is_the_one_that_was_chosen_and_the_table_is_kept(view, text):
    op, run = Update(data=str(text), steps=80, batch=32, seq_len=16, lr=3e-3, auto=True), MemoryRun()
    shown = op.preview(view, MemoryRun())["auto"]
    after = view.after(op.apply(view, run))
    found = run.records["auto"]
    assert found == shown
    assert found["tokens"] <= FRACTION * found["budget"] == FRACTION * 80 * 32 * 16
    names = [row["name"] for row in found["rows"]]
    assert names[:6] == ["full", "self 25%", "self 50%", "spu 10%", "spu 30%", "block"]
    assert "full, blend 0.5" in names
    assert sum(kind == "autopilot" for kind, _ in run.artifacts) == 1
    assert {kind for kind, _ in run.artifacts} <= {"autopilot", "self-replay", "documents", "stream", "expansion-origin", "mask"}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in found["options"].items()}
    by_hand = Update(data=str(text), steps=80, batch=32, seq_len=16, lr=3e-3, **options)
    assert view.after(by_hand.apply(view, MemoryRun())).digests() == after.digests()
    computed = run.computed
    assert op.check(view, after, run).passed
    assert run.computed == computed  # what was chosen is not tried again
    json.dumps(found, allow_nan=False)
