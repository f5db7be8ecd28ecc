"""What an edit needs of a model: the right matrix the right way round, keys and states where the subject ends, targets for all at once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mlc.ops.data.facts import Fact
from mlc.ops.edit import derivation, targets
from mlc.ops.edit.prompts import Prompter, collate, groups_of
from mlc.ops.edit.site import Editable, check_span, editable, stored_name
from mlc.ops.edit.targets import Settings, default_rate, find_targets, hidden_at
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_model, load_tokenizer
from mlc.registry.errors import BadInputFile, BadParameter, Incompatible
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import MemoryView

FACTS = (
    Fact("a", 1, "amber lamp", "the {} is in", "river", "stone", relation="place", wordings=("one sells the {} near",)),
    Fact("b", 2, "harbour", "{} was", "red", "blue", relation="colour"),
    Fact("c", 3, "amber lamp", "a {} is", "blue", relation="colour"),
    Fact("d", 4, "north river stone", "the {} speaks", "south", relation="place"),
)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """A tiny model of every family that can be edited; GPT-2 also with a square MLP."""
    made = {f: MemoryView.of(tiny_model(tmp_path_factory.mktemp(f), f, layers=3)) for f in ("llama", "qwen3", "gpt2", "neox", "gptj")}
    return {**made, "square": MemoryView.of(tiny_model(tmp_path_factory.mktemp("square"), "gpt2", layers=3, n_inner=16))}


def prompter(view):
    return Prompter(Coder(load_tokenizer(view)), 64)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "neox", "gptj", "square"])
class TestEveryFamily:
    def test_the_matrix_maps_keys_to_what_the_block_adds(self, views, family):
        model = Editable(views[family])
        asked = prompter(views[family])
        batch = collate([asked.row(f.prompt, f.subject) for f in FACTS])
        key = model.observe(batch, keys=(1,)).keys[1]
        module, given = model.out(1), []
        handle = module.register_forward_hook(lambda _, __, output: given.append(output[torch.arange(len(batch.ids)), batch.at]))
        model.logits(batch)
        handle.remove()
        bias = getattr(module, "bias", None)
        torch.testing.assert_close(key @ model.weight(1).T + (0 if bias is None else bias), given[0], rtol=1e-5, atol=1e-6)

    def test_a_write_through_the_stored_layout_moves_the_output_by_the_residual(self, views, family):
        view, model = views[family], Editable(views[family])
        batch = collate([prompter(view).row(f.prompt, f.subject) for f in FACTS[:1]])
        name = stored_name(model.family, view, 1)
        k = model.observe(batch, keys=(1,)).keys[1][0]
        r = torch.linspace(-1, 1, model.weight(1).shape[0])
        data, left, right = derivation.edited(view.tensor(name), r[:, None], (k / k.dot(k))[None], model.transposed(1))
        before = model.observe(batch, hidden=(1,)).hidden[1][0]
        after = Editable(view.after([derivation.change(view, name, data, left, right)])).observe(batch, hidden=(1,)).hidden[1][0]
        torch.testing.assert_close(after - before, r, rtol=1e-4, atol=1e-5)

    def test_running_from_a_known_state_gives_the_same_logits(self, views, family):
        model = Editable(views[family])
        batch = collate([prompter(views[family]).row(f.prompt, f.subject, f.target_new) for f in FACTS])
        with torch.no_grad():
            whole = model.logits(batch)
            for layer in range(3):
                torch.testing.assert_close(model.logits(batch, hidden=model.entering(batch, layer), layer=layer), whole)

    def test_the_logits_are_the_models_own(self, views, family):
        model = Editable(views[family])
        row = prompter(views[family]).row(FACTS[0].prompt, FACTS[0].subject)
        with torch.no_grad():
            wanted = load_model(views[family], dtype=torch.float32)(input_ids=torch.tensor([row.ids])).logits[0, -1]
            torch.testing.assert_close(model.logits(collate([row]))[0], wanted)


def test_linear_and_conv1d_twins_give_the_same_edit(views):
    from transformers.pytorch_utils import Conv1D

    view = views["square"]
    model = Editable(view)
    assert isinstance(model.out(0), Conv1D)
    assert model.transposed(0)
    twin = torch.nn.Linear(16, 16)
    twin.weight.data, twin.bias.data = model.out(0).weight.t().contiguous(), model.out(0).bias.data
    up, down = torch.randn(16, 2), torch.randn(2, 16)
    conv = derivation.edited(model.out(0).weight.data, up, down, True)[0]
    linear = derivation.edited(twin.weight.data, up, down, False)[0]
    assert torch.equal(conv.t(), linear)


class TestRefusals:
    def test_experts_are_refused_with_the_reason(self):
        view = MemoryView({"model.layers.0.mlp.experts.down_proj": torch.zeros(2, 4, 4)}, {"config.json": b'{"model_type": "qwen3_moe"}'})
        with pytest.raises(Incompatible, match="mixture of experts"):
            editable(view)

    def test_encoders_are_refused(self, tmp_path):
        with pytest.raises(Incompatible, match="this one is bert"):
            editable(MemoryView.of(tiny_model(tmp_path, "bert")))

    def test_a_block_that_is_not_there_is_refused(self):
        with pytest.raises(BadParameter, match="asks for block 4; the model has blocks 0 to 3"):
            check_span((2, 4), 4)

    def test_an_answer_beyond_the_window_is_refused_with_its_line(self, views):
        with pytest.raises(BadInputFile, match="line 1: prompt and answer are 7 tokens; the model reads 6"):
            Prompter(Coder(load_tokenizer(views["llama"])), 6).row("the {} is in the", "amber lamp", "river", fact=FACTS[0])


class TestRows:
    def test_the_last_subject_token_is_found_wherever_the_subject_stands(self, views):
        asked = prompter(views["llama"])
        for template, at in (("{} is", 1), ("the {} is", 2), ("one sells the {}", 4)):
            row = asked.row(template, "amber lamp")
            assert row.at == at
            assert row.ids[row.at] == 4 + WORDS.index("lamp")
            assert row.ids[row.first] == 4 + WORDS.index("amber")

    def test_the_answers_tokens_are_scored_where_they_are_predicted(self, views):
        row = prompter(views["llama"]).row("the {} is", "harbour", "red river")
        words = [4 + WORDS.index(w) for w in ("the", "harbour", "is", "red", "river")]
        assert row.ids == tuple(words[:-1])
        assert row.places == (2, 3)
        assert row.targets == tuple(words[3:])

    def test_facts_of_one_subject_share_a_group_and_the_files_order_changes_nothing(self, views):
        asked = prompter(views["llama"])
        groups = groups_of(FACTS, asked, ["one two"])
        assert [g.subject for g in groups] == ["amber lamp", "harbour", "north river stone"]
        assert [len(g.facts) for g in groups] == [2, 1, 1]
        assert groups == groups_of(FACTS[::-1], asked, ["one two"])
        for group in groups:
            assert sum(w for _, w in group.asked) == pytest.approx(1)
            assert sum(w for _, w in group.keys) == pytest.approx(1)
            bare = sum(w for row, w in group.keys if row in group.bare)
            assert bare == pytest.approx(0.5)


class TestTargets:
    def groups(self, view):
        return groups_of(FACTS, prompter(view), ["one two", "south"])

    def test_all_at_once_is_one_at_a_time(self, views):
        model, groups = Editable(views["llama"]), self.groups(views["llama"])
        settings = Settings(steps=12, lr=0.05)
        together = find_targets(model, 1, groups, settings)
        alone = [find_targets(model, 1, [group], settings) for group in groups]
        assert [a.losses[0] for a in alone] == pytest.approx(together.losses, abs=1e-4)
        assert [a.steps[0] for a in alone] == list(together.steps)
        torch.testing.assert_close(torch.cat([a.change for a in alone]), together.change, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "neox"])
    def test_in_fp64_a_target_does_not_depend_on_its_neighbours(self, views, family):
        model, groups = Editable(views[family]), self.groups(views[family])
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        wild = Settings(steps=40, lr=5.0, precision="fp64")  # a rate at which no search comes to rest
        together = find_targets(model, 0, groups, wild, beyond=True)
        alone = [find_targets(model, 0, [group], wild, beyond=True) for group in groups]
        assert [a.losses[0] for a in alone] == pytest.approx(together.losses, abs=1e-9)
        assert together.change.dtype == torch.float32
        torch.testing.assert_close(torch.cat([a.change for a in alone]), together.change, rtol=1e-6, atol=1e-6)
        after = model.module.state_dict()
        assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())

    def test_a_subject_that_is_done_stops_and_the_others_go_on(self, views, monkeypatch):
        model, groups = Editable(views["llama"]), self.groups(views["llama"])
        settings = Settings(steps=12, kl=0.0, weight_decay=0.0)
        losses = find_targets(model, 1, groups, settings).losses
        monkeypatch.setattr(targets, "DONE", sorted(losses)[1] + 1e-3)
        found = find_targets(model, 1, groups, settings)
        assert sorted(found.steps)[0] < sorted(found.steps)[-1] == 12
        assert all(loss < targets.DONE for loss, steps in zip(found.losses, found.steps, strict=True) if steps < 12)
        assert max(found.losses) == pytest.approx(max(losses), abs=1e-4)

    @pytest.mark.parametrize("steps", [2, 3, 9])
    def test_the_change_never_leaves_its_clamp(self, views, steps):
        model, groups = Editable(views["gpt2"]), self.groups(views["gpt2"])
        found = find_targets(model, 1, groups, Settings(steps=steps, clamp=0.75, lr=5.0))
        facts = torch.tensor([float(len(group.facts)) for group in groups])
        assert sorted(facts.tolist()) == [1, 1, 2]
        assert bool((found.change.norm(dim=1) <= 0.75 * facts.sqrt() * found.hidden.norm(dim=1) * (1 + 1e-6)).all())
        assert bool((found.change.norm(dim=1) > 0).all())

    def test_only_a_subject_that_is_still_far_at_half_time_may_use_all_of_its_clamp(self, views, monkeypatch):
        model, groups = Editable(views["gpt2"]), self.groups(views["gpt2"])
        settings = Settings(steps=8, clamp=0.75, lr=5.0, kl=0.0, weight_decay=0.0)
        facts = torch.tensor([float(len(group.facts)) for group in groups])
        for limit, share in ((0.0, 1.0), (1e9, targets.FIRST)):
            monkeypatch.setattr(targets, "FAR", limit)
            found = find_targets(model, 1, groups, settings)
            relative = found.change.norm(dim=1) / (0.75 * facts.sqrt() * found.hidden.norm(dim=1))
            assert relative[facts == 1].max().item() == pytest.approx(share, rel=1e-5)
            assert relative[facts > 1].max().item() <= targets.FIRST * (1 + 1e-5)

    def test_the_last_step_only_measures(self, views):
        model, groups = Editable(views["llama"]), self.groups(views["llama"])
        once = find_targets(model, 1, groups, Settings(steps=1))
        assert float(once.change.abs().max()) == 0
        assert torch.equal(once.hidden, hidden_at(model, 1, groups))

    def test_the_rate_grows_with_the_hidden_state(self):
        assert default_rate(40.0, 128) == pytest.approx(10 * default_rate(4.0, 128))

    def test_the_injected_target_does_what_its_loss_says(self, views):
        model, groups = Editable(views["llama"]), self.groups(views["llama"])
        settings = replace(Settings(), steps=30, clamp=5.0, kl=0.0, weight_decay=0.0)
        found = find_targets(model, 1, groups, settings)
        for i, group in enumerate(groups):
            batch = collate([row for row, _ in group.asked])
            states = model.entering(batch, 1)
            states[torch.arange(len(batch.ids)), batch.at] += found.change[i]
            with torch.no_grad():
                logprobs = model.logits(batch, hidden=states, layer=1).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            weights = torch.tensor([w / len(row.places) for row, w in group.asked for _ in row.places])
            assert -(weights * logprobs).sum().item() == pytest.approx(found.losses[i], abs=1e-4)

    @pytest.mark.parametrize("family", ["llama", "gptj"])
    def test_a_subject_with_several_facts_has_a_second_change_and_the_others_are_as_without(self, views, family):
        model, groups = Editable(views[family]), self.groups(views[family])
        settings = Settings(steps=20, lr=0.05, clamp=5.0, kl=0.0, weight_decay=0.0)
        one, two = find_targets(model, 0, groups, settings), find_targets(model, 0, groups, settings, beyond=True)
        several = torch.tensor([len(group.facts) > 1 for group in groups])
        assert one.beyond is None
        assert bool((two.beyond[several].norm(dim=1) > 0).all())
        assert not bool(two.beyond[~several].any())
        torch.testing.assert_close(two.change[~several], one.change[~several], rtol=1e-4, atol=1e-5)
        assert bool((torch.tensor(two.losses)[several] < torch.tensor(one.losses)[several]).all())
        alone = [find_targets(model, 0, [group], settings, beyond=True).losses[0] for group in groups]
        assert alone == pytest.approx(two.losses, abs=1e-4)
        torch.testing.assert_close(two.beyond_hidden, hidden_at(model, 1, groups))


def test_prefixes_hold_no_braces(views):
    from mlc.ops.edit.prompts import prefixes_of
    from mlc.tests.ops.fakes import MemoryRun

    view, run = views["llama"], MemoryRun()
    module = load_model(view, dtype=torch.float32)
    found = prefixes_of(view, run, module, Coder(load_tokenizer(view)), 3)
    assert len(found) == 3
    assert not any("{" in p or "}" in p or "\n" in p for p in found)
    assert found == prefixes_of(view, MemoryRun(), module, Coder(load_tokenizer(view)), 3)
    assert json.loads(run.artifacts["edit-prefixes", f"{view.snapshot_id}/0/3"]) == found
