"""Exact per-sample importance against its definition, for every family and for modules that no family has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

from mlc.ops.unlearn import capture
from mlc.ops.unlearn import importance as room
from mlc.ops.unlearn.importance import importance, mean_gradient, pack, reference_batch_importance, unpack
from mlc.ops.unlearn.persample import factors
from mlc.registry.errors import CheckFailed
from mlc.tests.factories import tiny_model

SAMPLES = 9
FAMILIES = ("llama", "llama untied", "qwen3", "gpt2", "neox", "bert", "vit", "resnet")
Case = tuple[nn.Module, Callable[[list[int]], Tensor]]


def language_scores(model: nn.Module, *, seed: int = 0, ragged: bool = True) -> Callable[[list[int]], Tensor]:
    """Mean NLL of each of SAMPLES random rows; ids come up several times in a row, as they do in text."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (SAMPLES,), generator=generator).tolist() if ragged else [8] * SAMPLES
    rows = [torch.randint(1, 20, (n,), generator=generator) for n in lengths]

    def scores(chosen: list[int]) -> Tensor:
        ids = nn.utils.rnn.pad_sequence([rows[i] for i in chosen], batch_first=True)
        labels = nn.utils.rnn.pad_sequence([rows[i] for i in chosen], batch_first=True, padding_value=-100)[:, 1:]
        logits = model(input_ids=ids, attention_mask=(ids > 0).long(), use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return losses.sum(1) / (labels != -100).sum(1)

    return scores


def class_scores(model: nn.Module, name: str, inputs: Tensor) -> Callable[[list[int]], Tensor]:
    """Cross-entropy of each row of `inputs` with some label."""
    return lambda chosen: F.cross_entropy(model(**{name: inputs[chosen]}).logits, torch.tensor(chosen) % 3, reduction="none")


def build(place: Path, family: str) -> Case:
    generator = torch.Generator().manual_seed(1)
    if family == "resnet":
        torch.manual_seed(0)
        config = tf.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3)
        model = tf.ResNetForImageClassification(config)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean, 0, 0.3), nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        return model, class_scores(model, "pixel_values", torch.randn(SAMPLES, 1, 8, 8, generator=generator))
    name, _, untied = family.partition(" ")
    directory = tiny_model(place / name, name, **({"tie_word_embeddings": False} if untied else {}))
    if name == "bert":
        model = tf.AutoModelForSequenceClassification.from_pretrained(directory)
        return model, class_scores(model, "input_ids", torch.randint(1, 20, (SAMPLES, 7), generator=generator))
    if name == "vit":
        model = tf.AutoModelForImageClassification.from_pretrained(directory)
        return model, class_scores(model, "pixel_values", torch.randn(SAMPLES, 1, 8, 8, generator=generator))
    model = tf.AutoModelForCausalLM.from_pretrained(directory)
    return model, language_scores(model)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {family: build(tmp_path_factory.mktemp("models"), family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches(size: int, order: list[int] | None = None) -> list[list[int]]:
    order = order or list(range(SAMPLES))
    return [order[i : i + size] for i in range(0, SAMPLES, size)]


def loop(case: Case, absolute: bool = False) -> dict[str, Tensor]:
    """The definition: one sample after another, in float64 sums."""
    model, scores = case
    model.eval()
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    for i in range(SAMPLES):
        found = torch.autograd.grad(scores([i]).sum(), list(model.parameters()), allow_unused=True)
        for name, g in zip(sums, found, strict=True):
            if g is not None:
                sums[name] += g.double().abs() if absolute else g.double().square()
    return {name: value / SAMPLES for name, value in sums.items()}


def apart(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The greatest error as a share of its tensor's greatest element, without tensors that are zero but for rounding (biases of keys)."""
    assert found.keys() == right.keys()
    floor = 1e-9 * max(float(r.amax()) for r in right.values())
    shares = [float((found[n] - r).abs().amax() / r.amax()) for n, r in right.items() if float(r.amax()) > floor]
    assert len(shares) > len(right) / 2
    return max(shares)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_give_what_a_loop_over_samples_gives(cases, family: str):
    model, scores = cases[family]
    found = importance(model, scores, batches(4))
    assert all(f.dtype == torch.float32 for f in found.values())
    assert apart(found, loop(cases[family])) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_no_parameter_of_our_families_needs_the_slow_road(cases, family: str, monkeypatch):
    model, scores = cases[family]
    slow: set[str] = set()
    original = room._unfit
    monkeypatch.setattr(room, "_unfit", lambda *args: slow.update(original(*args)) or set())
    importance(model, scores, batches(4))
    assert slow == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_absolute_importance_is_the_mean_magnitude(cases, family: str):
    model, scores = cases[family]
    assert apart(importance(model, scores, batches(4), how="absolute"), loop(cases[family], absolute=True)) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "llama untied", "vit"])
def test_vmap_of_grad_agrees(cases, family: str):
    model, _ = cases[family]
    model.eval().set_attn_implementation("eager")
    if family == "vit":
        inputs, labels = {"pixel_values": torch.randn(SAMPLES, 1, 8, 8)}, torch.arange(SAMPLES) % 3
    else:
        ids = torch.randint(1, 20, (SAMPLES, 6))
        inputs, labels = {"input_ids": ids}, ids[:, 1:]

    def losses(logits: Tensor, rows: Tensor) -> Tensor:
        if family == "vit":
            return F.cross_entropy(logits, rows, reduction="none")
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), rows, reduction="none").mean(1)

    def one(parameters: dict[str, Tensor], row: dict[str, Tensor], label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (), {k: v[None] for k, v in row.items()}).logits
        return losses(logits, label[None]).sum()

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))({n: p.detach() for n, p in model.named_parameters()}, inputs, labels)
    right = {name: g.square().mean(0) for name, g in each.items()}
    scores = lambda chosen: losses(model(**{k: v[chosen] for k, v in inputs.items()}).logits, labels[chosen])  # noqa: E731
    found = importance(model, scores, batches(3))
    model.set_attn_implementation("sdpa")
    assert apart(found, right) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit", "resnet"])
def test_order_and_batches_do_not_matter(cases, family: str):
    model, scores = cases[family]
    if family in ("llama", "gpt2"):
        scores = language_scores(model, ragged=False)  # padding to another length moves the last bits of the forward pass itself
    right = importance(model, scores, batches(3))
    shuffled = importance(model, scores, batches(3, [5, 0, 8, 2, 7, 1, 6, 3, 4]))
    assert apart(shuffled, right) <= 1e-6
    for size in (1, 4, SAMPLES):
        assert apart(importance(model, scores, batches(size)), right) <= 3e-6


@pytest.mark.parametrize("family", ["llama", "vit"])
def test_importance_of_all_is_the_weighted_mean_of_its_parts(cases, family: str):
    model, scores = cases[family]
    forget, retain = [[0, 1, 2]], [[3, 4, 5], [6, 7, 8]]
    few, rest, every = (importance(model, scores, part) for part in (forget, retain, forget + retain))
    share = 3 / SAMPLES
    assert apart({n: share * few[n] + (1 - share) * rest[n] for n in every}, every) <= 1e-5


def test_the_papers_batches_depend_on_the_order_and_samples_do_not(cases):
    """What the mode `reference-batch` reproduces, and why it is not the default."""
    model, scores = cases["llama"]
    order = [4, 0, 8, 3, 7, 1, 6, 2, 5]
    plain, shuffled = (reference_batch_importance(model, scores, batches(3, o)) for o in (None, order))
    assert apart(shuffled, plain) > 1e-2
    short = reference_batch_importance(model, scores, [[0, 1, 2], [3]])  # the last batch weighs as much as the first
    parts = [reference_batch_importance(model, scores, [part]) for part in ([0, 1, 2], [3])]
    assert apart(short, {n: (parts[0][n] + parts[1][n]) / 2 for n in short}) <= 1e-5
    single = reference_batch_importance(model, scores, batches(1))
    assert apart(single, importance(model, scores, batches(3))) <= 1e-5


def test_the_batch_mode_squares_the_mean_gradient_and_takes_its_magnitude_when_asked(cases):
    model, scores = cases["vit"]
    mean = mean_gradient(model, scores, [[0, 1, 2, 3]])
    squared = reference_batch_importance(model, scores, [[0, 1, 2, 3]])
    assert apart(squared, {n: g.square() for n, g in mean.items()}) <= 1e-5
    assert apart(reference_batch_importance(model, scores, [[0, 1, 2, 3]], how="absolute"), {n: g.abs() for n, g in mean.items()}) <= 1e-5


def test_the_mean_gradient_does_not_depend_on_batches(cases):
    model, scores = cases["llama"]
    parts, whole = (mean_gradient(model, scores, batches(size), names=["model.norm.weight", "lm_head.weight"][:1]) for size in (2, SAMPLES))
    assert list(whole) == ["model.norm.weight"]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


def test_the_model_is_left_as_it_was(cases):
    model, scores = cases["llama"]
    model.train()
    model.model.norm.eval()
    flags = {n: n.endswith("norm.weight") for n, _ in model.named_parameters()}
    for n, p in model.named_parameters():
        p.requires_grad_(flags[n])
        p.grad = torch.full_like(p, 2.0) if flags[n] else None
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    with torch.no_grad():
        importance(model, scores, batches(4))
        reference_batch_importance(model, scores, batches(4))
    assert [m.training for m in model.modules()] == modes
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(p.equal(weights[n]) for n, p in model.named_parameters())
    assert all(bool((p.grad == 2).all()) if flags[n] else p.grad is None for n, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())
    for p in model.parameters():
        p.requires_grad_(True).grad = None


def test_chosen_names_are_computed_alone_and_come_out_the_same(cases):
    model, scores = cases["llama"]
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"]
    every, some = importance(model, scores, batches(4)), importance(model, scores, batches(4), names=names)
    assert sorted(some) == sorted(names)
    assert apart({**every, **some}, every) <= 1e-6
    assert importance(model, scores, batches(4), names=[]) == {}
    with pytest.raises(ValueError, match="no parameter nonsense"):
        importance(model, scores, batches(4), names=["nonsense"])


def test_a_frozen_first_layer_does_not_stop_the_rest(cases):
    """With only late parameters wanted nothing below them asks for gradients."""
    model, scores = cases["gpt2"]
    found = importance(model, scores, batches(4), names=["transformer.h.1.mlp.c_proj.weight"])
    right = {n: v for n, v in loop(cases["gpt2"]).items() if n in found}
    assert apart(found, right) <= 1e-5


class Odd(nn.Module):
    """What no family of ours does: a shared layer, a weight used by somebody else, a look-up used twice and tied, rows folded into one
    axis, a parameter of the root, an unused one, and a result that is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(11, 6, padding_idx=0)
        self.shared = nn.Linear(6, 6)
        self.borrowed = nn.Linear(6, 6)
        self.folded = nn.Linear(6, 6)
        self.inplace = nn.Linear(6, 6)
        self.grouped = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.randn(6))
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.table(ids.flip(1))
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        x = x + F.linear(x, self.borrowed.weight) + self.borrowed(x)
        x = x + self.folded(x.reshape(-1, 6)).view_as(x)
        y = self.inplace(x)
        y += x
        y = y + self.grouped(y.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(y) * self.scale)


@pytest.fixture
def odd() -> Case:
    model, ids = Odd(), torch.randint(0, 11, (SAMPLES, 5), generator=torch.Generator().manual_seed(3))
    return model, lambda chosen: F.cross_entropy(model(ids[chosen]).transpose(1, 2), ids[chosen].roll(1, 1), reduction="none").mean(1)


@pytest.mark.parametrize("absolute", [False, True])
def test_odd_models_are_exact_too(odd: Case, absolute: bool):
    right = loop(odd, absolute)
    found = importance(*odd, batches(4), how="absolute" if absolute else "square")
    assert apart(found, right) <= 1e-5
    assert not found["unused.weight"].any()


def test_uses_that_hooks_cannot_see_take_the_slow_road(odd: Case):
    model, scores = odd
    with room._quiet(model):
        slow = room._unfit(model, scores, [0, 1], room._wanted(model, None), False)
    assert slow == {"borrowed.weight", "folded.weight", "folded.bias", "inplace.weight", "inplace.bias"}


def test_a_tied_table_is_exact_without_a_gradient_per_sample(cases, monkeypatch):
    """The tied table is settled from factors and rows: nothing of the size samples x vocabulary x width exists."""
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(
        tf.LlamaConfig(
            vocab_size=2000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
        )
    )
    scores = language_scores(model)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.untyped_storage().nbytes() // 4 for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))
            return out

    with Watch():
        found = importance(model, scores, [list(range(SAMPLES))], names=["model.embed_tokens.weight"])
    longest = 11
    assert max(sizes) <= SAMPLES * longest * 2000  # the logits; a gradient per sample would be 16 / 11 times that
    right = {"model.embed_tokens.weight": loop((model, scores))["model.embed_tokens.weight"]}
    assert apart(found, right) <= 1e-5


def test_positions_that_no_gradient_reaches_are_left_out_and_nothing_changes(cases):
    """Only the last two tokens of a row are scored, as the answer of a question is."""
    model, ids = cases["llama"][0], torch.randint(1, 20, (SAMPLES, 12), generator=torch.Generator().manual_seed(4))

    def scores(chosen: list[int]) -> Tensor:
        logits = model(input_ids=ids[chosen], use_cache=False).logits[:, 7:9]
        return F.cross_entropy(logits.transpose(1, 2), ids[chosen][:, 8:10], reduction="none").mean(1)

    x, delta = torch.rand(2, 8, 3), torch.rand(2, 8, 5) * torch.tensor([0, 1, 0, 0, 0, 0, 1, 0.0])[:, None]
    kept = factors(nn.Linear(3, 5), x, delta)
    assert [t.tolist() for t in kept] == [t[:, [1, 6]].tolist() for t in (x, delta)]
    assert apart(importance(model, scores, batches(4)), loop((model, scores))) <= 1e-5


def test_half_width_models_are_summed_in_float32(tmp_path: Path):
    directory = tiny_model(tmp_path, "llama")
    whole = tf.AutoModelForCausalLM.from_pretrained(directory)
    half = tf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    found, right = (importance(m, language_scores(m), batches(4)) for m in (half, whole))
    assert all(f.dtype == torch.float32 for f in found.values())
    assert apart(found, right) < 0.2  # bfloat16 has eight bits


def test_gradients_that_are_no_numbers_name_the_first_parameter(cases):
    model, scores = cases["vit"]
    with pytest.raises(CheckFailed, match=r"gradients of vit\.embeddings\.cls_token are not finite"):
        importance(model, lambda chosen: scores(chosen) * float("nan"), batches(4))
    with pytest.raises(CheckFailed, match="not finite"):
        reference_batch_importance(model, lambda chosen: scores(chosen) * float("inf"), batches(4))
    with pytest.raises(CheckFailed, match="not finite"):
        mean_gradient(model, lambda chosen: scores(chosen) * float("nan"), batches(4))


def test_progress_is_told_and_an_unknown_kind_refused(cases):
    model, scores = cases["vit"]
    told: list[int] = []
    importance(model, scores, batches(4), names=["classifier.bias"], progress=told.append)
    assert told == [4, 8, 9]
    with pytest.raises(ValueError, match="not 'cube'"):
        importance(model, scores, batches(4), how="cube")  # type: ignore[arg-type]


def test_packed_importance_comes_back_to_the_bit_whatever_the_order_of_names():
    values = {"b": torch.rand(3, 2).t(), "a": torch.rand(1)}
    packed = pack(values)
    assert packed == pack(dict(reversed(values.items())))
    assert {n: v.tolist() for n, v in unpack(packed).items()} == {n: v.tolist() for n, v in values.items()}


def test_limits_on_memory_change_nothing(cases, monkeypatch):
    """Convolutions in parts of one sample, and norms sent down the slow road because their gradients are called too large."""
    model, scores = cases["resnet"]
    monkeypatch.setattr(capture, "COLUMNS", 1)
    monkeypatch.setattr(capture, "HELD", 50)
    assert apart(importance(model, scores, batches(4)), loop(cases["resnet"])) <= 1e-5
