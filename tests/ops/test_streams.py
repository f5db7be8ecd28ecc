"""What a run reads: mixtures that turn, the stream that a commit keeps, weights of rows and of domains."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mlc.ops.data.mixing import Batch, Mixture, Source, Turning, spread, tempered
from mlc.ops.data.reweight import centred, row_weights
from mlc.ops.data.selection import distances, features, nearest_fill, whitened
from mlc.ops.data.skills import SkillIt, identity, read_graph
from mlc.ops.data.stream import read_stream, rows_digest, write_stream
from mlc.ops.engine.local import language_loss, token_losses
from mlc.ops.evaluate.provenance import trained_rows
from mlc.ops.models import load_model
from mlc.ops.update.mixes import arms, parse_mix, reward
from mlc.ops.update.train import Update
from mlc.registry.errors import BadInputFile, BadParameter, CorruptRecord, InputNotFound
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView

# --- mixtures ---


def sources(*shares, rows=7):
    return [Source(f"s{n}", torch.arange(rows)[:, None] + 100 * n + torch.zeros(1, 3, dtype=torch.int64), s) for n, s in enumerate(shares)]


def read(mixture, first, last):
    return [pair for number in range(first, last) for pair in mixture.picks(number)]


def counted(pairs, k):
    return [sum(source == n for source, _ in pairs) for n in range(k)]


def test_counts_keep_to_the_shares_everywhere_on_the_simplex():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shares = torch.rand(4, generator=generator, dtype=torch.float64)
        shares = (shares / shares.sum()).tolist()
        assert sum(shares) == pytest.approx(1, abs=1e-9)
        counts = counted(read(Mixture(sources(*shares), batch=8, seed=1), 0, 50), 4)
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - 400 * share) <= 4 * math.sqrt(400 * share * (1 - share))
            assert abs(count - 400 * share) < 4


def test_a_share_of_nothing_gets_nothing():
    assert counted(read(Turning(sources(0.5, 0.0, 0.5), batch=4, seed=0), 0, 25), 3) == [50, 0, 50]
    assert {spread(g, (1.0, 0.0, 0.0)) for g in range(5)} == {(0, g) for g in range(5)}


def test_turning_keeps_what_was_read_and_goes_on_behind_it_in_every_source():
    plain, turned = (Turning(sources(0.5, 0.5), batch=4, seed=3) for _ in range(2))
    turned.turn(5, (0.25, 0.75))
    assert read(turned, 0, 5) == read(plain, 0, 5)
    assert counted(read(turned, 5, 13), 2) == [8, 24]
    for source in (0, 1):  # no row twice before all were read
        own = [row for s, row in (pair for number in range(13) for pair in turned.picks(number)) if s == source]
        for epoch in range(0, len(own) - 7, 7):
            assert sorted(own[epoch : epoch + 7]) == list(range(7))


def test_a_turn_that_fits_nothing_is_refused():
    mixture = Turning(sources(0.5, 0.5), batch=4, seed=3)
    mixture.turn(5, (1.0, 0.0))
    for number, shares in ((4, (0.5, 0.5)), (6, (0.5, 0.6)), (6, (1.0,)), (6, (1.5, -0.5))):
        with pytest.raises(ValueError, match="turns"):
            mixture.turn(number, shares)


def test_without_a_turn_it_is_the_plain_mixture():
    assert read(Turning(sources(0.3, 0.7), batch=5, seed=2), 0, 20) == read(Mixture(sources(0.3, 0.7), batch=5, seed=2), 0, 20)


def test_temperature_goes_from_proportional_to_uniform():
    assert tempered([1, 3], 1.0) == pytest.approx([0.25, 0.75])
    assert tempered([1, 3], math.inf) == [0.5, 0.5]
    assert 0.25 < tempered([1, 3], 3.0)[0] < 0.5


# --- the stream ---


def test_the_same_seed_gives_the_same_stream_and_another_seed_another():
    made = [write_stream(Mixture(sources(0.5, 0.5), batch=4, seed=seed), 10) for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert read_stream(made[0]).order != read_stream(made[2]).order


def test_a_stream_says_what_was_read_and_what_the_mixture_came_to():
    mixture = Turning(sources(0.5, 0.5), batch=4, seed=3)
    mixture.turn(6, (0.25, 0.75))
    stream = read_stream(write_stream(mixture, 5, grad_accum=2, corpora={"s0": "aa"}))
    assert [pair for pair in stream.order] == read(mixture, 0, 10)
    assert stream.rows_per_step == 8
    assert stream.windows == (
        {"step": 0, "weights": [0.5, 0.5], "counts": [12, 12]},
        {"step": 3, "weights": [0.25, 0.75], "counts": [4, 12]},
    )
    assert [s.corpus for s in stream.sources] == ["aa", None]
    assert stream.sources[0].digest == rows_digest(mixture.sources[0].rows)
    last = stream.last_seen(0)
    assert all(stream.order[g][1] != row for row, step in last.items() for g in range(8 * (step + 1), 40) if stream.order[g][0] == 0)


def test_a_stream_begins_where_the_run_began_to_read():
    mixture = Mixture(sources(1.0), batch=4, seed=0)
    whole, rest = read_stream(write_stream(mixture, 10)), read_stream(write_stream(mixture, 6, first=4))
    assert rest.order == whole.order[16:]
    assert rest.windows[0]["counts"] == [24]


def test_rows_that_were_chosen_are_named_by_their_place_in_the_corpus():
    source = Source("data", torch.zeros(3, 2, dtype=torch.int64), 1.0, origin=(5, 9, 11))
    stream = read_stream(write_stream(Mixture([source], batch=3, seed=0), 1))
    assert {row for _, row in stream.order} == {5, 9, 11}
    assert stream.sources[0].chosen


@pytest.mark.parametrize(
    "harm", [lambda d: d[:-6], lambda d: d[:-1], lambda d: b"x" + d, lambda d: d.replace(b"stream 1", b"stream 2"), lambda d: b""]
)
def test_a_damaged_stream_is_refused(harm):
    with pytest.raises(CorruptRecord):
        read_stream(harm(write_stream(Mixture(sources(1.0), batch=4, seed=0), 3)))


# --- weights of rows ---

LOSSES = torch.tensor([2.0, 3.5, 1.0, 4.0, 2.2, 3.9])


@pytest.mark.parametrize("strategy", ["linupper", "quadratic", "extremes"])
class TestRowWeights:
    def test_they_have_mean_one_and_are_never_negative(self, strategy):
        weights = row_weights(LOSSES, strategy, 0.4)
        assert weights.min() >= 0
        assert weights.double().mean().item() == pytest.approx(1, abs=1e-6)

    def test_they_follow_the_rows_when_these_change_places(self, strategy):
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        assert torch.allclose(row_weights(LOSSES[order], strategy, 0.4), row_weights(LOSSES, strategy, 0.4)[order], atol=1e-6)

    def test_scale_and_level_of_the_losses_do_not_matter(self, strategy):
        assert torch.allclose(row_weights(3 * LOSSES + 2, strategy, 0.4), row_weights(LOSSES, strategy, 0.4), atol=1e-6)

    def test_at_a_high_temperature_they_are_equal(self, strategy):
        assert torch.allclose(row_weights(LOSSES, strategy, 1e6), torch.ones(6), atol=1e-5)
        assert torch.allclose(row_weights(LOSSES, strategy, 1e6) / 6, torch.full((6,), 1 / 6), atol=1e-6)

    def test_equal_losses_have_equal_weights(self, strategy):
        assert torch.equal(row_weights(torch.full((4,), 2.5), strategy, 0.1), torch.ones(4))

    def test_no_weight_is_above_its_bound(self, strategy):
        assert row_weights(LOSSES, strategy, 0.4).max() <= math.exp(1 / 0.4)


def test_linupper_does_not_tell_hard_rows_apart_and_turns_easy_ones_down():
    weights, h = row_weights(LOSSES, "linupper", 0.4), centred(LOSSES)
    assert weights[h >= 0].unique().numel() == 1
    assert weights[LOSSES.argmin()] == weights.min() < weights.max()


def test_quadratic_favours_the_middle_and_extremes_the_ends():
    losses = torch.tensor([1.0, 2.0, 3.0])
    assert row_weights(losses, "quadratic").argmax() == 1
    assert row_weights(losses, "extremes").argmin() == 1
    assert centred(losses).tolist() == [-1.0, 0.0, 1.0]


def test_equal_weights_are_the_plain_mean_over_tokens():
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(4, 6, 11, generator=generator), torch.randint(0, 11, (4, 6), generator=generator)
    losses = token_losses(logits, ids)
    weights = row_weights(losses.mean(1), "linupper", 1e9)
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert (losses * weights[:, None]).mean().item() == pytest.approx(plain.item(), abs=1e-6)


# --- Skill-it ---


def test_equal_losses_and_no_edges_give_equal_weights_and_so_does_eta_nought():
    assert SkillIt(identity(3)).weights([]) == pytest.approx([1 / 3] * 3)
    assert SkillIt(identity(3)).weights([[2.0] * 3] * 2) == pytest.approx([1 / 3] * 3)
    assert SkillIt(((1, 0.5), (0, 1)), eta=0.0).weights([[3.0, 1.0]]) == [0.5, 0.5]


def test_a_greater_loss_raises_exactly_those_who_help_with_it():
    rule = SkillIt(((1.0, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), eta=0.5, window=1)
    before, after = rule.weights([[2.0, 2.0, 2.0]]), rule.weights([[2.0, 3.0, 2.0]])
    raised = [math.log(a / b) for a, b in zip(after, before, strict=True)]
    assert [round(r - raised[2], 9) for r in raised] == [0.25, 0.5, 0.0]  # eta A_ij (3 - 2)


def test_weights_come_from_the_window_alone_and_lie_on_the_simplex():
    rule = SkillIt(identity(2), eta=0.5, window=2)
    assert rule.weights([[9.0, 0.0], [1.0, 2.0], [1.5, 1.0]]) == rule.weights([[1.0, 2.0], [1.5, 1.0]])
    weights = rule.weights([[900.0, 0.0], [800.0, 1.0]])
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert rule.weights([[1.0, 2.0], [1.0, 2.0]]) == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


def test_a_graph_is_read_by_name_or_by_rows(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text('{"a.txt": {"b.txt": 0.5}}')
    assert read_graph(str(file), ["a.txt", "b.txt"]) == ((1.0, 0.5), (0.0, 1.0))
    file.write_text("[[1, 0], [0.25, 1]]")
    assert read_graph(str(file), ["a.txt", "b.txt"]) == ((1.0, 0.0), (0.25, 1.0))


@pytest.mark.parametrize(
    "text", ["[[1, 0]]", '{"c.txt": {}}', '{"a.txt": {"c.txt": 1}}', '{"a.txt": 3}', "[[1, -1], [0, 1]]", "[[1, true], [0, 1]]", "{", "7"]
)
def test_a_graph_that_does_not_fit_is_refused(tmp_path, text):
    file = tmp_path / "graph.json"
    file.write_text(text)
    with pytest.raises(BadInputFile):
        read_graph(str(file), ["a.txt", "b.txt"])
    with pytest.raises(InputNotFound):
        read_graph(str(tmp_path / "none.json"), ["a.txt"])


# --- weights from the record ---


def tried(share, after, old=None):
    """The check of an update on two corpora."""
    parts = [
        {"corpus": c, "share": s, "loss_before": 4.0, "loss_after": a} for c, s, a in zip("ab", (share, 1 - share), after, strict=True)
    ]
    return json.loads(json.dumps({"domains": parts, **({"replay": {"self": {"loss_before": 2.0, "loss_after": old}}} if old else {})}))


def test_the_best_recorded_trade_is_chosen():
    record = [("c1", tried(0.5, (3.0, 3.0))), ("c2", tried(0.8, (2.0, 3.0))), ("c3", tried(0.801, (2.2, 3.0))), ("c4", {})]
    best, second = arms(record, ["a", "b"])
    assert (best.weights, best.commits) == ((0.8, 0.2), ("c2", "c3"))
    assert best.reward == pytest.approx((0.375 + 0.35) / 2)
    assert second.reward == pytest.approx(0.25)
    assert arms(record, ["b", "a"])[0].weights == (0.2, 0.8)
    assert arms(record, ["a", "c"]) == []


def test_what_was_forgotten_counts_against_a_trade():
    assert reward(tried(0.5, (3.0, 3.0))["domains"], {}) == pytest.approx(0.25)
    told = tried(0.5, (3.0, 3.0), 2.5)
    assert reward(told["domains"], told["replay"]) == pytest.approx(0.0)
    told["domains"][0]["loss_after"] = None
    assert reward(told["domains"], {}) is None


def test_mix_is_parsed_and_malformed_ones_are_refused():
    assert [(d.path, d.weight) for d in parse_mix(("b.txt:2,c.txt", "d.txt:0.5"))] == [("b.txt", 2.0), ("c.txt", 1.0), ("d.txt", 0.5)]
    for text in ("b.txt:0", "b.txt:x", ":2", "b.txt,./b.txt"):
        with pytest.raises(BadParameter):
            parse_mix((text,))


# --- in an update ---


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), layers=2))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three languages in which every word decides the next one, each in its own way."""
    folder = tmp_path_factory.mktemp("texts")
    for name, stride, length in (("a", 7, 900), ("b", 11, 700), ("c", 5, 500)):
        words = [WORDS[i * stride % len(WORDS)] for i in range(length)]
        (folder / f"{name}.txt").write_text(" ".join(words))
    return folder


def update(texts, **more):
    small = {"steps": 12, "batch": 4, "seq_len": 12, "lr": 1e-2, "mix": (f"{texts}/b.txt:2,{texts}/c.txt",)}
    return Update(**{"data": str(texts / "a.txt"), **small, **more})


def done(op, view, run):
    return view.after(op.apply(view, run))


def stream_of(run):
    return next(data for (kind, _), data in run.artifacts.items() if kind == "stream")


def test_several_corpora_are_read_by_their_weights_and_each_is_measured(llama, texts):
    run, op = MemoryRun(), update(texts, replay=(f"{texts}/a.txt:0.25",))
    after = done(op, llama, run)
    [window] = run.records["stream"]["windows"]
    assert window["weights"] == pytest.approx([0.1875, 0.25, 0.375, 0.1875])
    assert window["counts"] == [9, 12, 18, 9]
    check = op.check(llama, after, run)
    assert check.passed
    assert [(d["name"], d["share"]) for d in check.values["domains"]] == [("a.txt", 0.25), ("b.txt", 0.5), ("c.txt", 0.25)]
    assert all(d["loss_after"] < d["loss_before"] for d in check.values["domains"])
    assert {r.name for r in run.inputs} == {"a.txt", "b.txt", "c.txt"}
    assert sum(kind == "documents" for kind, _ in run.artifacts) == 3


def test_temperature_weighs_by_size(llama, texts):
    counts = {}
    for tau in (1.0, 1e9):
        run = MemoryRun()
        done(update(texts, mix=(f"{texts}/b.txt,{texts}/c.txt",), mix_temperature=tau, steps=6), llama, run)
        counts[tau] = run.records["stream"]["windows"][0]["counts"]
    assert max(counts[1e9]) - min(counts[1e9]) <= 1
    assert counts[1.0][0] > counts[1.0][1] > counts[1.0][2]


def test_every_update_leaves_the_stream_that_it_read(llama, texts):
    run, op = MemoryRun(seed=4), update(texts, mix=(), grad_accum=2)
    done(op, llama, run)
    stream = read_stream(stream_of(run))
    assert (stream.seed, stream.steps, stream.rows_per_step, stream.seq_len) == (4, 12, 8, 12)
    again = MemoryRun(seed=4)
    done(op, llama, again)
    assert again.records["stream"]["digest"] == run.records["stream"]["digest"]


class TestSkillIt:
    def test_what_is_hard_is_read_more_and_the_stream_says_so(self, llama, texts):
        run = MemoryRun()
        done(update(texts, mix_policy="skillit", mix_eta=2.0, mix_every=3), llama, run)
        windows, facts = run.records["stream"]["windows"], run.records["stream"]["skillit"]
        assert [w["step"] for w in windows] == [0, 3, 6, 9]
        assert windows[0]["weights"] == pytest.approx([1 / 3] * 3)
        assert [row[0] for row in facts["losses"]] == [3, 6, 9]
        for window in windows[1:]:
            assert sum(window["weights"]) == pytest.approx(1, abs=1e-9)
        first = facts["losses"][0][1:]
        assert first.index(max(first)) == windows[1]["weights"].index(max(windows[1]["weights"]))
        assert windows[1]["weights"] == pytest.approx(SkillIt(identity(3), 2.0, 3).weights([first]), abs=1e-4)

    def test_a_run_that_was_killed_reads_the_same_stream_to_the_end(self, llama, texts):
        op = update(texts, mix_policy="skillit", mix_eta=2.0, mix_every=3, save_every=4)
        whole, killed = MemoryRun(seed=1), MemoryRun(seed=1, die_after=10)
        after = done(op, llama, whole)
        with pytest.raises(Killed):
            done(op, llama, killed)
        killed.die_after = None
        assert killed.state[0] == 8
        assert done(op, llama, killed).digests() == after.digests()
        assert stream_of(killed) == stream_of(whole)


@pytest.mark.parametrize("more", [{}, {"replay": ("self:0.5",)}])
def test_reweighted_training_learns_and_differs_from_plain_training(llama, texts, more):
    plain = done(update(texts, mix=(), **more), llama, MemoryRun())
    run, op = MemoryRun(), update(texts, mix=(), reweight="linupper", reweight_r=0.4, **more)
    after = done(op, llama, run)
    assert after.digests() != plain.digests()
    assert op.check(llama, after, run).passed


class Recorded:
    """A history that knows these checks."""

    def __init__(self, checks):
        self.checks = checks

    def recorded(self, name):
        return iter(self.checks if name == "update" else [])


def test_weights_are_learned_from_what_was_recorded_and_written_down(llama, texts):
    record = []
    for number, weights in enumerate(((1, 1), (6, 1))):
        run, op = MemoryRun(), update(texts, mix=(f"{texts}/b.txt:{weights[0]},{texts}/c.txt:{weights[1]}",), steps=8)
        after = done(op, llama, run)
        record.append((f"commit{number}", json.loads(json.dumps(op.check(llama, after, run).values))))
    asked = update(texts, mix=(f"{texts}/b.txt,{texts}/c.txt",), mix_policy="learned")
    op = asked.foresee(Recorded(record))
    best = max(record, key=lambda r: reward(r[1]["domains"], {}))
    assert op.mix_from == (best[0],)
    assert [d.weight for d in op.domains] == pytest.approx([round(d["share"], 2) for d in best[1]["domains"]])
    assert op.foresee(Recorded([])) == op
    with pytest.raises(BadParameter, match="nothing to learn"):
        asked.foresee(Recorded([]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mix": (), "mix_policy": "skillit"}, "needs several corpora"),
        ({"mix": (), "mix_temperature": 2.0}, "needs several corpora"),
        ({"mix_policy": "best"}, "--mix-policy is one of"),
        ({"mix_temperature": 0.0}, "must be a positive number"),
        ({"mix_temperature": math.inf}, "must be a positive number"),
        ({"mix_policy": "skillit", "mix_temperature": 2.0}, "--mix-temperature has no part"),
        ({"mix_policy": "skillit", "mix_eta": -1.0}, "--mix-eta"),
        ({"mix_policy": "skillit", "mix_window": 0}, "--mix-window"),
        ({"mix_policy": "skillit", "mix_every": 0}, "--mix-every"),
        ({"mix_policy": "skillit", "begin": "stable"}, "--from stable"),
        ({"mix_graph": "g.json"}, "--mix-graph is for"),
        ({"reweight": "upper"}, "--reweight is one of"),
        ({"reweight": "linupper", "reweight_r": 0.0}, "--reweight-r"),
        ({"reweight": "linupper", "batch": 1}, "at least 2"),
    ],
)
def test_data_policies_that_do_not_fit_are_refused(texts, more, said):
    with pytest.raises(BadParameter, match=said):
        update(texts, **more)


def test_a_corpus_under_two_names_is_refused(llama, texts, tmp_path):
    (tmp_path / "copy.txt").write_text((texts / "a.txt").read_text())
    with pytest.raises(BadInputFile, match="holds the same as"):
        done(update(texts, mix=(str(tmp_path / "copy.txt"),)), llama, MemoryRun())


# --- selection ---


def test_whitened_features_have_the_covariance_of_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator) * 30
    found = whitened(x)
    assert torch.allclose(found.T @ found / len(found), torch.eye(12, dtype=torch.float64), atol=1e-3)
    assert found.mean(0).abs().max() < 1e-9


def test_every_target_takes_itself_first():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    between = distances(x, x)
    assert between.argmin(1).tolist() == list(range(50))
    assert nearest_fill(between, 50) == list(range(50))
    assert nearest_fill(between[:7], 7) == list(range(7))


def test_ranks_are_filled_one_after_another():
    between = torch.tensor([[0.1, 0.2, 0.9, 0.8], [0.3, 0.9, 0.1, 0.4]])
    assert nearest_fill(between, 1) == [0]
    assert nearest_fill(between, 2) == [0, 2]
    assert nearest_fill(between, 3) == [0, 1, 2]
    assert nearest_fill(between, 4) == [0, 1, 2, 3]


def test_features_are_projected_gradients_and_leave_the_model_alone(llama):
    module = load_model(llama, dtype=torch.float32)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    rows = torch.randint(3, 60, (5, 10), generator=torch.Generator().manual_seed(0))
    found = features(module, rows, seed=1)
    assert found.shape == (5, 64)
    assert torch.allclose(features(module, rows[2:3], seed=1), found[2:3], atol=1e-5)
    assert torch.allclose(features(module, rows.flip(0), seed=1).flip(0), found, atol=1e-5)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in module.named_parameters())
    # The norm of a random projection is that of the gradient, about.
    grads = torch.autograd.grad(language_loss(module, Batch(rows[:1], (0,))), [p for n, p in module.named_parameters() if "proj" in n])
    assert found[0].norm().item() == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in grads)), rel=0.5)


def test_rows_of_the_wanted_language_are_found_among_others(llama, texts, tmp_path):
    words = [(texts / f"{name}.txt").read_text() for name in "ab"]
    (tmp_path / "both.txt").write_text(" ".join(words))
    (tmp_path / "wanted.txt").write_text(" ".join(words[1].split()[:200]))
    run = MemoryRun()
    op = update(texts, data=str(tmp_path / "both.txt"), mix=(), holdout=0.0, select="tarot:40", select_for=str(tmp_path / "wanted.txt"))
    done(op, llama, run)
    stream = read_stream(stream_of(run))
    places = {row for _, row in stream.order}
    assert stream.sources[0].chosen
    assert stream.sources[0].rows == 40
    first_of_b = 900 // 11
    assert sum(place >= first_of_b for place in places) / len(places) > 0.75  # 44 % of the rows are
    assert trained_rows(op, llama, stream, str(tmp_path / "both.txt")).rows.shape == (len(places), 12)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"select": "tarot"}, "is not tarot:N"),
        ({"select": "less:5", "select_for": "x"}, "is not tarot:N"),
        ({"select": "tarot:50"}, "go together"),
        ({"select_for": "x"}, "go together"),
        ({"select": "tarot:2", "select_for": "x"}, "fewer than one batch"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(texts, more, said):
    with pytest.raises(BadParameter, match=said):
        update(texts, **more)


def test_more_rows_than_there_are_cannot_be_selected(llama, texts):
    with pytest.raises(BadParameter, match="asks for 500 rows"):
        done(update(texts, mix=(), select="tarot:500", select_for=str(texts / "b.txt")), llama, MemoryRun())
