"""The training-free methods through the operation, on tiny models: refusals, identities, what is recorded, the published code's mode."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mlc.ops.models import load_model
from mlc.ops.unlearn import slug
from mlc.ops.unlearn.exclusion import slots
from mlc.ops.unlearn.search import Trial
from mlc.ops.unlearn.session import prepare
from mlc.ops.unlearn.ssd import by_batch, by_sample
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.registry.errors import BadParameter, CheckFailed, InputNotFound
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView, raw_bytes

FORGET, RETAIN = 20, 110


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    torch.set_num_threads(1)
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("m") / "llama"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """20 sentences to forget, 110 to keep, of the tiny vocabulary."""
    place = tmp_path_factory.mktemp("sets")
    draw = torch.Generator().manual_seed(5)
    texts = {" ".join(WORDS[i] for i in torch.randint(len(WORDS), (7,), generator=draw).tolist()) for _ in range(FORGET + RETAIN)}
    rows = [json.dumps({"prompt": " ".join(t.split()[:4]), "answer": " ".join(t.split()[4:])}) + "\n" for t in sorted(texts)]
    assert len(rows) == FORGET + RETAIN
    (place / "f.jsonl").write_text("".join(rows[:FORGET]))
    (place / "r.jsonl").write_text("".join(rows[FORGET:]))
    return {"forget_set": str(place / "f.jsonl"), "retain_set": str(place / "r.jsonl")}


def changed(op: Unlearn, view: MemoryView, run: MemoryRun | None = None) -> dict[str, torch.Tensor]:
    return {c.name: c.data for c in op.apply(view, run or MemoryRun())}


# --- the strength ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ssd", "lfssd"])
@pytest.mark.parametrize("strength", ["1", "1.0", "7"])
def test_a_strength_of_one_or_more_is_refused_before_a_file_is_opened(method, strength):
    with pytest.raises(BadParameter, match="proven no-op") as caught:
        Unlearn(forget_set="/nowhere", retain_set="/nowhere", method=method, strength=strength)
    assert caught.value.exit_code == 2


def test_options_that_a_method_does_not_have_are_refused():
    sets = {"forget_set": "/nowhere", "retain_set": "/nowhere"}
    with pytest.raises(BadParameter, match="has no --strength"):
        Unlearn(method="assd", strength="0.5", **sets)
    for method in ("assd", "slug", "dense"):
        with pytest.raises(BadParameter, match="is for ssd and lfssd"):
            Unlearn(method=method, fisher="reference-batch", **sets)


def test_the_strength_is_alpha_itself_in_the_published_codes_mode(view, files):
    run = MemoryRun()
    changed(Unlearn(method="ssd", fisher="reference-batch", strength="3", exclude="none", **files), view, run)
    assert run.records["alpha"] == run.records["strength"] == 3
    assert run.records["selected"] > 0


def test_per_sample_the_strength_is_alpha_times_the_share(view, files):
    run = MemoryRun()
    changed(Unlearn(method="ssd", strength="0.4", **files), view, run)
    share = FORGET / (FORGET + RETAIN)
    assert run.records["share"] == pytest.approx(share)
    assert run.records["alpha"] == pytest.approx(0.4 / share)
    assert run.records["selected_fraction"] == pytest.approx(run.records["selected"] / run.records["weights"], abs=1e-8)


def test_automatic_strength_asks_for_a_model_that_knows_something(view, files):
    with pytest.raises(CheckFailed, match=r"nothing of the retain set right|no strength forgets enough"):
        changed(Unlearn(method="ssd", **files), view)


# --- the importances -------------------------------------------------------------------------------------


def test_no_ratio_exceeds_the_bound_on_which_the_refusal_rests(view, files):
    ctx = prepare(Unlearn(method="ssd", exclude="none", **files), view, MemoryRun())
    places = slots(ctx.module, ctx.view, ctx.op.exclude)
    for scores, how in ((ctx.task.losses, "square"), (ctx.task.output_norms, "absolute")):
        base = by_sample(ctx, scores, how, places)
        assert base.scale == base.share
        assert all((base.forget[n] <= base.every[n] * (1 / base.share)).all() for n in base.forget)


def test_the_published_codes_mode_is_the_square_of_means_over_64_records_retain_first(view, files):
    ctx = prepare(Unlearn(method="ssd", fisher="reference-batch", **files), view, MemoryRun())
    found = by_batch(ctx, ctx.task.losses, "square", slots(ctx.module, ctx.view, ctx.op.exclude))
    every = [(ctx.retain.rows, i) for i in range(RETAIN)] + [(ctx.forget.rows, i) for i in range(FORGET)]
    parameter = ctx.parameters["model.layers.1.mlp.down_proj.weight"]

    def squares(rows):
        total = torch.zeros_like(parameter)
        batches = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        for batch in batches:
            loss = torch.stack([ctx.task.losses(ctx.module, part, [i])[0] for part, i in batch]).mean()
            total += torch.autograd.grad(loss, parameter)[0] ** 2
        return total / len(batches)

    for mine, theirs in ((found.every, squares(every)), (found.forget, squares(every[RETAIN:]))):
        ours = mine["model.layers.1.mlp.down_proj.weight"]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.max()
    assert not found.bounded


def test_a_digest_of_a_retain_set_that_was_never_read_is_not_enough(view, files):
    unknown = {**files, "retain_set": "blake3:" + "0" * 64}
    with pytest.raises(InputNotFound, match="not stored"):
        changed(Unlearn(method="ssd", strength="0.3", **unknown), view)
    for more, sentence in (({"strength": "auto"}, "measures the retain records"), ({"fisher": "reference-batch"}, "reads all records")):
        run = MemoryRun()
        changed(Unlearn(method="ssd", strength="0.3", **files), view, run)
        stored = next(k for kind, k in run.artifacts if kind == "fisher").split("/")[1]
        with pytest.raises(BadParameter, match=sentence):
            changed(Unlearn(**{"method": "ssd", "strength": "0.3", **files, "retain_set": f"blake3:{stored}", **more}), view, run)


def test_the_forget_importance_is_never_stored_and_no_key_or_fact_names_its_digest(view, files):
    from blake3 import blake3

    run = MemoryRun()
    changed(Unlearn(method="ssd", strength="0.3", **files), view, run)
    plain = blake3(Path(files["forget_set"]).read_bytes()).hexdigest()
    assert len([1 for kind, _ in run.artifacts if kind == "fisher"]) == 1
    assert plain not in json.dumps([list(run.artifacts), run.records, run.notes])


def test_lfssd_reads_no_label_and_ssd_does(tmp_path):
    images = MemoryView.of(tiny_model(tmp_path / "vit", "vit"))
    pixels = torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(2)).tolist()
    sets = {}
    for turn in (0, 1):
        rows = [json.dumps({"image": image, "label": (i + turn) % 3}) + "\n" for i, image in enumerate(pixels)]
        for name, part in (("forget_set", rows[:8]), ("retain_set", rows[8:])):
            path = tmp_path / f"{name}{turn}.jsonl"
            path.write_text("".join(part))
            sets.setdefault(turn, {})[name] = str(path)
    for method, alike in (("lfssd", True), ("ssd", False)):
        one, other = (images.after(Unlearn(method=method, strength="0.21", **sets[t]).apply(images, MemoryRun())) for t in (0, 1))
        assert (one.snapshot_id == other.snapshot_id) == alike
        assert one.snapshot_id != images.snapshot_id


# --- what becomes of the weights -------------------------------------------------------------------------


def test_half_precision_weights_that_are_not_selected_keep_their_bits(tmp_path, files):
    half = MemoryView.of(tiny_model(tmp_path / "bf16", dtype="bfloat16"))
    run = MemoryRun()
    found = changed(Unlearn(method="ssd", strength="0.4", exclude="none", **files), half, run)
    moved = 0
    for name, data in found.items():
        was = half.tensor(name)
        assert data.dtype == torch.bfloat16
        assert (data.float().abs() <= was.float().abs()).all()
        still = data == was
        assert raw_bytes(data[still]) == raw_bytes(was[still])
        moved += int((~still).sum())
    assert 0 < moved <= run.records["selected"]


def test_a_tied_head_is_dampened_as_one_with_the_embedding(view, files):
    run = MemoryRun()
    found = changed(Unlearn(method="ssd", strength="0.2", exclude="none", **files), view, run)
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" not in found
    assert run.records["weights"] == sum(p.numel() for p in load_model(view).parameters())


def test_assd_selects_the_share_that_its_percentile_promises(view, files):
    run = MemoryRun()
    changed(Unlearn(method="assd", **files), view, run)
    share = FORGET / (FORGET + RETAIN)
    promised = math.log1p(100 * share) / 100
    assert run.records["percentile"] == pytest.approx(100 - 100 * promised)
    assert abs(run.records["selected_fraction"] - promised) <= 2 / run.records["weights"]


def test_weights_that_are_no_numbers_end_in_a_clear_refusal(view, files):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {n: view.tensor(n) for n in view.names()}
    tensors[name][0, 0] = math.nan
    broken = MemoryView(tensors, {p.path: view.file(p.path) for p in view.files()})
    for method, more in (("ssd", {"strength": "0.3"}), ("assd", {}), ("slug", {"strength": "0.1"})):
        with pytest.raises(CheckFailed, match="finite"):
            changed(Unlearn(method=method, **more, **files), broken)


# --- slug ------------------------------------------------------------------------------------------------


def test_slug_changes_one_matrix_and_leaves_every_other_tensor_to_the_bit(view, files):
    run = MemoryRun()
    after = view.after(Unlearn(method="slug", strength="0.1", **files).apply(view, run))
    differing = [n for n in view.names() if view.entry(n).digest != after.entry(n).digest]
    assert differing == [run.records["tensor"]]
    was, now = view.tensor(differing[0]), after.tensor(differing[0])
    assert ((now - was).norm() / was.norm()).item() == pytest.approx(0.1, rel=1e-4)
    table = {row["tensor"]: row for row in run.records["pareto"]}
    assert len(table) == 14
    assert table[differing[0]]["front"]
    again = view.after(Unlearn(method="slug", strength="0.1", **files).apply(view, MemoryRun()))
    assert again.snapshot_id == after.snapshot_id


def test_a_step_up_the_gradient_raises_the_forget_loss_and_a_step_of_nothing_is_none(view, files):
    ctx = prepare(Unlearn(method="slug", strength="0.01", **files), view, MemoryRun())
    before = ctx.measure(ctx.forget).loss
    (name, value), *rest = slug.apply(ctx).items()
    assert not rest
    with torch.no_grad():
        ctx.parameters[name].copy_(value)
    assert ctx.measure(ctx.forget).loss > before
    weight = torch.randn(3, 4)
    assert torch.equal(slug.stepped(weight, torch.randn(3, 4), 0.0), weight)


def test_a_planted_tensor_that_alone_carries_the_forget_gradient_is_found(view, files, monkeypatch):
    planted = "model.layers.1.self_attn.v_proj.weight"
    real = slug.gradient_of

    def masked(ctx, part, names):
        found = real(ctx, part, names)
        if part.items.role == "forget":
            return {n: g if n == planted else torch.zeros_like(g) for n, g in found.items()}
        return {n: torch.zeros_like(g) if n == planted else g for n, g in found.items()}

    monkeypatch.setattr(slug, "gradient_of", masked)
    run = MemoryRun()
    found = changed(Unlearn(method="slug", strength="0.1", **files), view, run)
    assert list(found) == [planted]
    row = next(r for r in run.records["pareto"] if r["tensor"] == planted)
    assert row["alignment"] == 0
    assert [r["tensor"] for r in run.records["pareto"] if r["front"]] == [planted]


def test_the_search_leaves_the_module_as_it_found_it(view, files):
    ctx = prepare(Unlearn(method="slug", target=0.5, **files), view, MemoryRun())
    before = ctx.originals()
    forget, places = slug.measured(ctx)
    probe = Everything()
    slug.tried(ctx, slug.front(places)[0], forget[slug.front(places)[0].slot.name], probe)
    assert probe.calls > 1
    assert all(torch.equal(before[n], p) for n, p in ctx.parameters.items())


class Everything:
    """A probe that is content from a step of 0.3 on."""

    calls = 0

    def __call__(self, strength: float) -> Trial:
        self.calls += 1
        return Trial(strength, float(strength < 0.3), 1.0, strength >= 0.3, strength >= 0.3, True, True)
