"""The operation `edit` on a tiny model: what it writes and keeps, what it refuses, and taking a fact back."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from mlc.ops.data.facts import Fact
from mlc.ops.edit import checking, keep
from mlc.ops.edit.covariance import unpack_moment
from mlc.ops.edit.edit import Edit, parse_layers
from mlc.ops.edit.layers import auto_layers, candidates
from mlc.ops.edit.measure import Asked, asked_of, bench_of, figures, harmonic, preferences, retained, unchanged
from mlc.ops.edit.mend import Mended
from mlc.ops.edit.unedit import Kept, unwrite
from mlc.ops.evaluate.bench import Likelihood
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_model, load_tokenizer
from mlc.registry.delta.derived import derive
from mlc.registry.errors import BadInputFile, BadParameter, CheckFailed, Incompatible
from mlc.registry.ids import blob_digest
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

ROWS = [
    {"id": "one", "subject": "amber lamp", "prompt": "the {} is in", "target_new": "river", "relation": "place", "paraphrases": ["{} in"]},
    {
        "id": "two",
        "subject": "harbour",
        "prompt": "{} was",
        "target_new": "red",
        "relation": "colour",
        "neighbourhood": [["stone was", "blue"]],
    },
    {"id": "three", "subject": "amber lamp", "prompt": "a {} is", "target_new": "south", "relation": "colour"},
    {"id": "four", "subject": "north stone", "prompt": "the {} speaks", "target_new": "one"},
]
# Random weights: a wide clamp and no other wishes, so that there is something to land.
EAGER = {"layers": "1", "steps": 40, "clamp": 30.0, "lr": 0.1, "kl": 0.0, "weight_decay": 0.0, "prefixes": 1, "over_capacity": True}


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("model"), layers=3))


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture(scope="module")
def done(view, facts):
    """An edit that was made: operation, run, changes, the version after it."""
    op, run = Edit(facts=facts, **EAGER), MemoryRun()
    changes = list(op.apply(view, run))
    return op, run, changes, view.after(changes)


def held(run, kind):
    return next(data for (k, _), data in run.artifacts.items() if k == kind)


class TestWriting:
    def test_only_the_asked_matrix_changes_and_it_is_what_its_recipe_says(self, view, done):
        _, _, changes, after = done
        name = "model.layers.1.mlp.down_proj.weight"
        assert [c.name for c in changes] == [name]
        derived = changes[0].derived
        assert derived.function == "rank1"
        assert derived.sources == (view.entry(name).digest,)
        again = derive(derived, lambda digest, rows: view.tensor(name)[rows], torch.float32, (16, 32))
        assert torch.equal(again, after.tensor(name))
        assert [tuple(f.shape) for f in derived.factors] == [(16, 3), (3, 32)]

    def test_factors_keys_targets_and_memory_are_kept(self, done):
        _, run, changes, _ = done
        tensors, about = keep.unpack(held(run, keep.FACTORS))
        assert torch.equal(tensors["layer.1.up"], changes[0].derived.factors[0])
        assert about["subjects"] == ["amber lamp", "harbour", "north stone"]
        assert sorted(map(sorted, about["ids"])) == [["four"], ["one", "three"], ["two"]]
        tensors, _ = keep.unpack(held(run, keep.KEYS))
        assert tensors["layer.1.keys"].shape == (32, 3)
        tensors, _ = keep.unpack(held(run, keep.TARGETS))
        torch.testing.assert_close(tensors["z"], tensors["hidden"] + tensors["change"])
        tensors, about = keep.unpack(held(run, keep.MEMORY))
        assert tensors["layer.1"].shape == (32, 3)

    def test_the_check_knows_what_landed_and_what_it_cost(self, view, done):
        op, run, _, after = done
        check = op.check(view, after, run)
        values = check.values
        assert values["efficacy"] > values["efficacy_before"]
        assert values["requested"] == 4
        assert values["landed"] == check.passed == (values["efficacy"] >= checking.LANDED)
        assert 0 < values["write_fraction"] <= 1
        assert values["drift"] > 0
        json.dumps(values, allow_nan=False)

    def test_nothing_landed_means_nothing_to_commit(self, view, done):
        op, run, _, _ = done
        check = op.check(view, view, run)  # as if nothing had been written
        assert not check.passed
        assert "did not land in layers 1" in check.reason
        assert check.hint == "--layers auto finds where this model keeps its facts"

    def test_the_files_order_changes_no_bit(self, view, facts, done, tmp_path):
        turned = tmp_path / "turned.jsonl"
        turned.write_text("".join(json.dumps(row) + "\n" for row in ROWS[::-1]))
        changes = list(Edit(facts=str(turned), **EAGER).apply(view, MemoryRun()))
        assert torch.equal(changes[0].data, done[2][0].data)

    def test_targets_found_before_are_not_sought_again(self, view, facts, done):
        op, run, changes, _ = done
        second = MemoryRun()
        second.artifacts = dict(run.artifacts)
        again = list(op.apply(view, second))
        assert torch.equal(again[0].data, changes[0].data)
        assert second.computed == 0

    def test_several_layers_share_the_residual(self, view, facts):
        run = MemoryRun()
        changes = list(Edit(facts=facts, **{**EAGER, "layers": "0-2"}).apply(view, run))
        assert [c.name for c in changes] == [f"model.layers.{n}.mlp.down_proj.weight" for n in range(3)]
        _, about = keep.unpack(held(run, keep.FACTORS))
        assert list(about["numbers"]) == ["0", "1", "2"]

    def test_a_descendant_inherits_text_memory_and_second_moments(self, view, facts, done, tmp_path):
        _, run, _, after = done
        fresh = tmp_path / "more.jsonl"
        fresh.write_text(json.dumps({"id": "five", "subject": "blue river", "prompt": "the {} opens", "target_new": "two"}) + "\n")
        second = MemoryRun()
        second.artifacts = {k: v for k, v in run.artifacts.items() if k[0] == "covariance"}
        second.ancestry = {kind: held(run, kind) for kind in (keep.MEMORY, "edit-text")}
        list(Edit(facts=str(fresh), **EAGER).apply(after, second))
        assert [k[0] for k in second.artifacts].count("covariance") == 1  # the same key: nothing below the matrix has changed
        assert not any(k[0] == "self-replay" for k in second.artifacts)
        tensors, about = keep.unpack(held(second, keep.MEMORY))
        assert about["subjects"]["1"] == ["amber lamp", "harbour", "north stone", "blue river"]
        assert tensors["layer.1"].shape == (32, 4)


class TestMemory:
    def test_a_subject_that_is_written_again_is_not_held_to_its_old_keys(self):
        data = keep.grown(None, {1: torch.eye(4, 2)}, ["Ada", "Bo"])
        keys, who = keep.remembered(data, 1, 4, ["  ada "])
        assert who == ["Bo"]
        assert torch.equal(keys, torch.eye(4, 2).double()[:, 1:])
        assert keep.remembered(data, 3, 4, []) == (None, [])
        assert keep.remembered(data, 1, 5, []) == (None, [])
        both = keep.grown(data, {1: 2 * torch.eye(4, 1)}, ["ADA"])
        assert keep.unpack(both)[1]["subjects"]["1"] == ["Bo", "ADA"]
        assert keep.unpack(keep.shrunk(both, ["bo"]))[1]["subjects"]["1"] == ["ADA"]

    def test_what_was_written_is_remembered_until_it_is_asked_again_or_taken_back(self):
        ada = Fact("1", 1, "Ada", "{} lives in", "Rome", relation="home")
        bo = Fact("2", 2, "Bo", "{} lives in", "Oslo", relation="home")
        data = keep.grown(None, {1: torch.eye(4, 2)}, ["Ada", "Bo"], [ada, bo], ["Paris", "Lima"])
        assert keep.written(data) == [(ada, "Paris"), (bo, "Lima")]
        again = Fact("1", 1, " ada", "{} has a house in", "Cairo", relation="home")
        assert keep.written(data, [again]) == [(bo, "Lima")]
        assert keep.written(data, [Fact("3", 1, "Ada", "{} is a", "baker", relation="trade")]) == [(ada, "Paris"), (bo, "Lima")]
        second = keep.grown(data, {1: torch.eye(4, 1)}, ["ada"], [again], ["Rome"])
        assert keep.written(second) == [(bo, "Lima"), (again, "Rome")]
        assert keep.written(keep.shrunk(second, ["bo"], [bo])) == [(again, "Rome")]
        assert keep.written(None) == []


class TestTakingBack:
    """What the closed form alone gives; see test_edit_mend.py for what is corrected behind it."""

    @pytest.fixture(autouse=True)
    def uncorrected(self, monkeypatch):
        monkeypatch.setattr("mlc.ops.edit.unedit.mended", lambda _, now, *more: Mended(now))

    def kept(self, view, done):
        _, run, _, after = done
        return Kept(held(run, keep.FACTORS), held(run, keep.KEYS), view, after)

    def test_a_fact_is_taken_out_and_the_others_are_solved_as_without_it(self, view, done):
        _, run, changes, after = done
        (change,) = list(unwrite(after, self.kept(view, done), ["two"], run))
        up = change.derived.factors[0]
        assert up.shape == (16, 2)
        assert torch.equal(up, changes[0].derived.factors[0][:, [0, 2]])
        key = keep.unpack(held(run, keep.KEYS))[0]["layer.1.keys"]
        moved = change.data.double() - view.tensor(change.name).double()
        before = changes[0].data.double() - view.tensor(change.name).double()
        # On the key of the fact that went, next to nothing is left; the others keep what they had.
        assert (moved @ key[:, 1]).norm() < 0.3 * (before @ key[:, 1]).norm()
        for i in (0, 2):
            assert (moved @ key[:, i]).norm() >= 0.9 * (before @ key[:, i]).norm()

    def test_taking_every_fact_back_restores_the_parent_to_the_bit(self, view, done):
        _, run, _, after = done
        (change,) = list(unwrite(after, self.kept(view, done), ["one", "two", "three", "four"], run))
        assert torch.equal(change.data, view.tensor(change.name))

    def test_a_subject_that_keeps_a_fact_gets_a_new_target(self, view, done):
        _, run, changes, after = done
        (change,) = list(unwrite(after, self.kept(view, done), ["three"], run))
        old, new = changes[0].derived.factors[0], change.derived.factors[0]
        assert torch.equal(old[:, 1:], new[:, 1:])
        assert not torch.equal(old[:, 0], new[:, 0])

    def test_a_subject_that_keeps_one_fact_of_several_needs_no_second_change_any_more(self, view, facts, monkeypatch):
        monkeypatch.setattr("mlc.ops.edit.layers.candidates", lambda _: [0])
        run = MemoryRun()
        changes = list(Edit(facts=facts, **{**EAGER, "layers": "auto", "steps": 5}).apply(view, run))
        kept = Kept(held(run, keep.FACTORS), held(run, keep.KEYS), view, view.after(changes))
        assert [c.name for c in changes] == [f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)]
        for old, new in zip(changes, unwrite(view.after(changes), kept, ["three"], run), strict=True):
            a, b = old.derived.factors[0], new.derived.factors[0]
            assert torch.equal(a[:, 1:], b[:, 1:])
            assert not torch.equal(a[:, 0], b[:, 0])
            assert bool(b[:, 0].any()) == (old.name == changes[0].name)
        whole = list(unwrite(view.after(changes), kept, ["one", "two", "three", "four"], run))
        assert all(torch.equal(c.data, view.tensor(c.name)) for c in whole)

    def test_on_a_matrix_that_changed_since_the_difference_is_written(self, view, done):
        _, run, _, after = done
        name = "model.layers.1.mlp.down_proj.weight"
        later = MemoryView({n: after.tensor(n) + (1.0 if n == name else 0.0) for n in after.names()}, dict(after._files))
        (straight,) = list(unwrite(after, self.kept(view, done), ["two"], run))
        (over,) = list(unwrite(later, self.kept(view, done), ["two"], run))
        torch.testing.assert_close(over.data - 1.0, straight.data, rtol=1e-4, atol=1e-5)

    def test_a_fact_that_was_never_written_is_refused(self, view, done):
        with pytest.raises(BadParameter, match="wrote no fact 'nine'"):
            list(unwrite(done[3], self.kept(view, done), ["nine"], done[1]))


class TestRefusals:
    def test_facts_a_layer_cannot_hold_apart_are_refused_before_the_long_work(self, view, facts):
        run = MemoryRun()
        with pytest.raises(BadParameter, match=r"exceed what layer 0 can hold.*capacity used") as caught:
            crowd(view, facts, run)
        assert caught.value.hint.endswith("--over-capacity to try all the same")
        assert not any(k[0] == keep.TARGETS for k in run.artifacts)

    def test_ten_thousand_subjects_are_refused_by_the_plan(self, view, tmp_path):
        path = tmp_path / "many.jsonl"
        path.write_text("".join(json.dumps({"subject": f"w{i}", "prompt": "{} is", "target_new": "red"}) + "\n" for i in range(10_000)))
        with pytest.raises(BadParameter, match="10,000 subjects are more than"):
            Edit(facts=str(path)).plan(view)

    def test_what_the_model_says_already_is_nothing_to_edit(self, view, tmp_path):
        fact = Fact("a", 1, "harbour", "the {} is", "red")
        bench = bench_of(load_model(view, dtype=torch.float32), Coder(load_tokenizer(view)), "ask")
        (said,) = asked_of([fact], bench).rivals
        path = tmp_path / "said.jsonl"
        path.write_text(json.dumps({"subject": fact.subject, "prompt": fact.prompt, "target_new": said}) + "\n")
        with pytest.raises(BadInputFile, match=r"said.jsonl, line 1: the model already answers so") as caught:
            list(Edit(facts=str(path), **EAGER).apply(view, MemoryRun()))
        assert caught.value.hint == "it knows all of these facts: there is nothing to write"

    @pytest.mark.parametrize("more", [{"target_new": "zebra"}, {"target_new": "red zebra"}, {"subject": "zebra"}])
    def test_what_the_vocabulary_cannot_write_is_refused_with_its_line(self, view, tmp_path, more):
        path = tmp_path / "odd.jsonl"
        known = {"id": "a", "subject": "harbour", "prompt": "the {} is", "target_new": "blue"}
        part = {**known, "id": "c", "subject": "zebra lamp"}  # a subject that is told apart all the same
        path.write_text("".join(json.dumps(row) + "\n" for row in (known, {**known, "id": "b", "subject": "stone", **more}, part)))
        with pytest.raises(BadInputFile, match=r"odd.jsonl, line 2: the vocabulary of this model has no token for '.*zebra'") as caught:
            list(Edit(facts=str(path), **EAGER).apply(view, MemoryRun()))
        assert caught.value.hint == "--skip b leaves it out"
        list(Edit(facts=str(path), **{**EAGER, "over_capacity": True}, skip=("b",)).apply(view, MemoryRun()))

    def test_second_moments_of_another_model_are_refused(self, done):
        with pytest.raises(Incompatible, match="keys of 32 numbers, this layer's keys have 48"):
            unpack_moment(held(done[1], "covariance"), 48)

    def test_second_moments_say_what_they_were_measured_on_and_are_refused_by_that_digest(self, done):
        (_, key), data = next((k, d) for k, d in done[1].artifacts.items() if k[0] == "covariance")
        assert unpack_moment(data, 32, key).key == key
        with pytest.raises(Incompatible, match=f"second moments belong to {key[:12]}.*another model's"):
            unpack_moment(data, 32, "f" * len(key))

    def test_an_empty_null_space_is_said(self, view, facts):
        with pytest.raises(CheckFailed, match="leaves no direction free"):
            list(Edit(facts=facts, method="alphaedit", threshold=1e-12, layers="0").apply(view, MemoryRun()))

    @pytest.mark.parametrize("text", ["x", "3-", "-2", "1-2-3", ""])
    def test_layers_that_are_no_range_are_refused(self, text):
        with pytest.raises(BadParameter, match="is not auto"):
            parse_layers(text)

    def test_layers_mean_what_they_say(self):
        assert [parse_layers(t) for t in ("auto", "5", "3-8")] == [None, (5, 5), (3, 8)]
        with pytest.raises(BadParameter, match="runs backwards"):
            parse_layers("8-3")


def crowd(view, facts, run):
    """Facts about subjects that all end in the same word: their keys are nearly one."""
    path = facts.replace("facts.jsonl", "crowd.jsonl")
    with open(path, "w") as file:
        for i, word in enumerate(WORDS[7:17]):
            file.write(json.dumps({"subject": f"{word} lamp", "prompt": "{} is", "target_new": f"w{i}"}) + "\n")
    list(Edit(facts=path, layers="0", prefixes=0, strength=0.95).apply(view, run))


class TestLayers:
    def test_candidates_are_the_strong_blocks_and_always_the_first(self):
        assert candidates([0.0, 0.4, 0.5, 0.1]) == [0, 1, 2]
        assert candidates([0.0] * 4) == [0]
        assert len(candidates([1.0] * 40)) <= 7

    @pytest.mark.parametrize(("reached", "notes"), [(0.27, 1), (0.58, 0)])
    def test_it_is_said_when_no_block_holds_the_facts(self, view, reached, notes):
        run, model = MemoryRun(), SimpleNamespace(view=view)
        key = blob_digest(f"{view.snapshot_id}/facts/{run.seed}".encode())
        run.artifacts["causal-trace", key] = json.dumps({"effects": [0.1], "reached": {"0": reached}, "layers": [0, 0]}).encode()
        assert auto_layers(model, [], None, None, run, "facts").layers == (0, 0)
        assert len(run.notes) == notes
        assert all("no block holds these facts" in note for note in run.notes)

    def test_auto_is_cached_and_takes_one_block_of_a_shallow_model_and_the_next_for_subjects_with_several_facts(
        self, view, facts, tmp_path
    ):
        run = MemoryRun()
        op = Edit(facts=facts, **{**EAGER, "layers": "auto", "steps": 3})
        changes = list(op.apply(view, run))
        first, last = run.records["layers"]["layers"]
        assert first == last
        wanted = [last, last + 1] if last == 0 else [last]  # in the last of three blocks nobody reads it any more
        assert [c.name for c in changes] == [f"model.layers.{n}.mlp.down_proj.weight" for n in wanted]
        assert keep.unpack(held(run, keep.KEYS))[1]["layers"] == wanted
        alone = tmp_path / "alone.jsonl"
        alone.write_text("".join(json.dumps(row) + "\n" for row in ROWS[1:3]))
        assert len(list(Edit(facts=str(alone), **{**EAGER, "layers": "auto", "steps": 3}).apply(view, MemoryRun()))) == 1
        assert len(run.records["layers"]["effects"]) == 3
        assert any(k[0] == "causal-trace" for k in run.artifacts)


class Told:
    """A bench that knows the mean log-likelihood per token of every (prompt, answer), and which answers are greedy ones."""

    def __init__(self, means: dict[tuple[str, str], float], greedy: set[tuple[str, str]]):
        self.means, self.right, self.text = means, greedy, self
        self.prefix, self.start = [], [0]

    def split(self, pairs):
        return [([p], [(p, a)] * len(a.split())) for p, a in pairs]  # a token per word

    def encode(self, prompts):
        return [[p] for p in prompts]

    def likelihoods(self, rows):
        return [Likelihood(self.means[row.continuation[0]] * len(row.continuation), [], row.continuation[0] in self.right) for row in rows]

    def next_tokens(self, contexts):
        return [hash(str(c)) for c in contexts]


class TestFigures:
    def test_every_rate_is_a_mean_over_a_facts_prompts_then_over_facts_of_likelihoods_per_token(self):
        a = Fact("a", 1, "Ada", "{} is", "new", "old old", ("A1", "A2"), (("N1", "old old"), ("N2", "old old")))
        b = Fact("b", 2, "Bo", "{} is", "fresh", "stale", ("B1",), (("M1", "stale"),))
        means = {
            ("Ada is", "new"): -2.0, ("Ada is", "old old"): -1.5,  # a sum would prefer the new answer: -2 > -3
            ("Bo is", "fresh"): -0.1, ("Bo is", "stale"): -3.0,
            ("A1", "new"): -1.0, ("A1", "old old"): -2.0, ("A2", "new"): -5.0, ("A2", "old old"): -1.0,
            ("B1", "fresh"): -1.0, ("B1", "stale"): -2.0,
            ("N1", "old old"): -1.0, ("N1", "new"): -2.0, ("N2", "old old"): -4.0, ("N2", "new"): -2.0,
            ("M1", "stale"): -1.0, ("M1", "fresh"): -1.0,  # equal is not preferred
        }  # fmt: skip
        bench = Told(means, {("Bo is", "fresh"), ("A1", "new"), ("N1", "old old")})
        found = figures(Asked((a, b), ("old old", "stale"), (("Ada?",), ("Bo?", "Bo!"))), bench)
        assert (found.efficacy, found.exact_match, found.landed) == (0.5, 0.5, (False, True))
        assert (found.paraphrase, found.paraphrase_exact) == (pytest.approx((0.5 + 1) / 2), pytest.approx((0.5 + 0) / 2))
        assert found.neighbourhood == pytest.approx((0.5 + 0) / 2)
        assert found.score == pytest.approx(3 / (1 / 0.5 + 1 / 0.75 + 1 / 0.25))
        assert found.right_neighbours == (True, False, False)
        assert len(found.kept_answers) == 3
        assert preferences([(b, "stale")], bench) == [pytest.approx(1 / (1 + math.exp(-3.0 + 0.1)))]

    def test_the_score_is_the_harmonic_mean(self):
        assert harmonic([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
        assert harmonic([1.0, 0.0]) == 0.0
        assert harmonic([]) == 0.0

    def test_retained_looks_at_what_was_right_and_unchanged_at_all(self):
        assert retained([True, True, False, False], [True, False, True, False]) == 0.5
        assert retained([False], [True]) is None
        assert unchanged([1, 2, 3, 4], [1, 2, 3, 5]) == 0.75
        assert unchanged([], []) is None
