"""Encoders, search and alignment: ranking against brute force, isometries, heads as files, a whole alignment on tiny encoders."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from mlc.ops.embed.align import AlignEmbeddings
from mlc.ops.embed.encoder import code, encode, load_encoder
from mlc.ops.embed.heads import Basis, Rotated, load_head
from mlc.ops.embed.losses import procrustes
from mlc.ops.embed.ranking import compatible, paired_gain, rank, same_label
from mlc.ops.embed.session import completed
from mlc.ops.embed.texts import read_labelled
from mlc.registry.errors import BadInputFile, BadParameter, Incompatible
from mlc.tests.ops.encoders import labelled_texts, tiny_encoder
from mlc.tests.ops.fakes import MemoryRun, MemoryView


def distances(x):
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def view_of(directory) -> MemoryView:
    found = MemoryView.of(directory)
    files = dict(found._files)
    files |= {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.json") if p.parent != directory}
    return MemoryView(found._tensors, files)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("encoders")
    tiny_encoder(root / "old", width=12, seed=1)
    tiny_encoder(root / "new", width=16, seed=2)
    labelled_texts(root / "texts.jsonl")
    return root


# --- ranking ---------------------------------------------------------------------------------------------


def brute_force(queries, gallery, relevant):
    first, precision = [], []
    for i, query in enumerate(normalize(queries, dim=-1).tolist()):
        near = [(-sum(a * b for a, b in zip(query, g, strict=True)), j) for j, g in enumerate(normalize(gallery, dim=-1).tolist())]
        hits = [bool(relevant[i, j]) for _, j in sorted((round(s, 5), j) for s, j in near)]
        first.append(hits.index(True) if any(hits) else -1)
        found = [sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit]
        precision.append(sum(found) / len(found) if found else 0.0)
    return first, precision


def test_cmc_and_map_equal_a_search_written_out():
    chance = torch.Generator().manual_seed(4)
    queries, gallery = torch.randn(60, 8, generator=chance), torch.randn(200, 8, generator=chance)
    relevant = torch.rand(60, 200, generator=chance) < 0.05
    relevant[3] = False
    first, precision = brute_force(queries, gallery, relevant)
    found = rank(queries, gallery, relevant)
    assert found.first.tolist() == first
    assert found.precision.tolist() == pytest.approx(precision, abs=1e-12)
    assert found.cmc(5) == sum(0 <= f < 5 for f in first) / 60


def test_equal_vectors_are_ranked_by_their_index():
    same = torch.ones(4, 3)
    assert rank(same[:1], same, torch.tensor([[False, False, True, False]])).first.tolist() == [2]
    assert rank(same, same, torch.eye(4, dtype=torch.bool)).nearest.tolist() == [0, 0, 0, 0]


def test_labels_that_are_shared_are_relevant():
    found = same_label([("a",), ("b", "c")], [("a", "c"), ("d",), ("b",)])
    assert found.tolist() == [[True, False, False], [True, False, True]]


def test_where_nothing_is_left_to_gain_as_good_is_good_enough():
    assert compatible(0.001, 0.5)
    assert not compatible(0.0, 0.5)
    assert compatible(-0.005, 0.999)
    assert not compatible(-0.02, 0.999)


def test_a_gain_is_certain_only_when_queries_agree():
    chance = torch.Generator().manual_seed(0)
    base = torch.rand(400, generator=chance)
    assert paired_gain(base + 0.05, base).lower95 == pytest.approx(0.05, abs=1e-6)
    assert paired_gain(base, base).lower95 == 0.0
    assert paired_gain(torch.rand(400, generator=chance), base).lower95 < 0.0


# --- heads -----------------------------------------------------------------------------------------------


def test_a_rotation_stays_orthogonal_while_it_is_trained_and_keeps_every_distance():
    torch.manual_seed(0)
    head = Rotated(10, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    x = torch.randn(50, 10)
    for _ in range(100):
        optimizer.zero_grad()
        head(x)[:, 0].sum().backward()
        optimizer.step()
    turn = head.turn.weight
    assert (turn @ turn.T - torch.eye(14)).abs().max() < 1e-5
    torch.testing.assert_close(distances(head(x)), distances(head.expanded(x)), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(x @ head.plain()["weight"].T, head(x), atol=1e-5, rtol=1e-5)


def test_the_basis_transformation_is_an_isometry_and_comes_back_from_its_files():
    from safetensors.torch import save

    torch.manual_seed(0)
    head = Basis(width=10, old=8, keep=3)
    x = torch.randn(20, 10)
    inner = torch.cat([normalize(head.out(head.inner(x).relu())[:, :3], dim=-1), 2.0 * normalize(x, dim=-1)], dim=-1)
    torch.testing.assert_close(distances(head(x)), distances(inner), atol=1e-4, rtol=1e-4)
    again = load_head(head.settings(), save(head.plain()))
    torch.testing.assert_close(again(x), head(x), atol=1e-6, rtol=1e-6)
    with pytest.raises(Incompatible):
        Basis(width=4, old=8, keep=3)


def test_procrustes_finds_a_rotation_again_and_is_completed_to_an_orthogonal_matrix():
    chance = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=chance, dtype=torch.float64))
    x = torch.randn(100, 6, generator=chance)
    found = procrustes(x, x @ q.T.float())
    torch.testing.assert_close(found, q.float(), atol=1e-5, rtol=1e-5)
    whole = completed(found[:4], 6)
    torch.testing.assert_close(whole @ whole.T, torch.eye(6), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole[:4], found[:4], atol=1e-6, rtol=1e-6)


# --- encoding --------------------------------------------------------------------------------------------


def test_vectors_do_not_depend_on_batches_and_are_the_mean_of_the_token_states(place):
    view = view_of(place / "new")
    texts = [*(json.loads(line)["text"] for line in (place / "texts.jsonl").read_text().splitlines()[:9]), "w1"]
    encoder = load_encoder(view)
    whole, single = encode(encoder, code(view, texts)), encode(encoder, code(view, texts), batch_tokens=1)
    torch.testing.assert_close(whole, single, atol=1e-6, rtol=1e-5)
    ids = torch.tensor([code(view, texts).rows[0]])
    states = encoder.body(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(whole[0], states.mean(0), atol=1e-6, rtol=1e-5)


def test_a_part_that_is_none_of_ours_is_refused(place):
    view = view_of(place / "new")
    other = json.dumps([{"type": "sentence_transformers.models.LSTM", "path": "1_LSTM"}]).encode()
    with pytest.raises(Incompatible, match="LSTM"):
        load_encoder(MemoryView(view._tensors, {**view._files, "modules.json": other}))


# --- alignment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["oca", "bt2", "bct", "procrustes"])
def test_an_alignment_gives_vectors_whose_first_part_lies_in_the_old_space(place, method):
    old, new = view_of(place / "old"), view_of(place / "new")
    run = MemoryRun(seed=3)
    run.versions["old"] = old
    op = AlignEmbeddings(to="old", data=str(place / "texts.jsonl"), method=method, steps=60 if method == "bt2" else 20, lr=1e-3, extra=4)
    after = new.after(op.apply(new, run))
    assert bool(set(after.digests().items()) - set(new.digests().items())) == (method != "procrustes")
    data = read_labelled(str(place / "texts.jsonl"), op.holdout, run.seed)
    texts = [data.texts[i] for i in data.train]
    theirs = encode(load_encoder(old), code(old, texts))
    mine = encode(load_encoder(after), code(after, texts))[:, :12]
    near = torch.cosine_similarity(mine - mine.mean(0), theirs - theirs.mean(0)).mean()
    assert near > (0.2 if method == "bct" else 0.4)
    verdict = op.check(new, after, run)
    pair = verdict.values["compat"]["pairs"][0]
    assert pair["slice"] == [0, 12]
    assert verdict.passed == pair["compatible"] == compatible(pair["lower95"], pair["map_old"])
    assert json.loads(json.dumps(verdict.values, allow_nan=False)) == verdict.values


def test_the_same_seed_gives_the_same_bytes_and_a_killed_run_goes_on_with_them(place):
    from mlc.tests.ops.fakes import Killed

    old, new = view_of(place / "old"), view_of(place / "new")
    op = AlignEmbeddings(to="old", data=str(place / "texts.jsonl"), steps=6, save_every=2, extra=4)

    def done(run):
        run.versions["old"] = old
        return new.after(op.apply(new, run)).snapshot_id

    whole = done(MemoryRun(seed=3))
    assert done(MemoryRun(seed=3)) == whole
    killed = MemoryRun(seed=3, die_after=5)
    with pytest.raises(Killed):
        done(killed)
    killed.die_after = None
    assert done(killed) == whole
    assert done(MemoryRun(seed=4)) != whole


def test_data_that_say_nothing_about_search_are_refused_with_their_line(place, tmp_path):
    (tmp_path / "plain.jsonl").write_text('{"text": "w1", "label": "a"}\n{"text": "w2"}\n')
    with pytest.raises(BadInputFile, match="line 2"):
        read_labelled(str(tmp_path / "plain.jsonl"), 0.2, 0)
    labelled_texts(tmp_path / "few.jsonl", labels=5)
    with pytest.raises(BadInputFile, match="5 labels"):
        read_labelled(str(tmp_path / "few.jsonl"), 0.2, 0)
    labelled_texts(tmp_path / "single.jsonl", texts=1)
    with pytest.raises(BadInputFile, match="one text per label"):
        read_labelled(str(tmp_path / "single.jsonl"), 0.2, 0)
    with pytest.raises(BadParameter, match="--method"):
        AlignEmbeddings(to="old", data="x", method="magic")
