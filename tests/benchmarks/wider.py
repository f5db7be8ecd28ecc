"""A wider fact model for edits, made from nothing but this script: names of several tokens, an MLP of 1,536.

`python wider.py DIR [SEED [STEPS]]` writes `DIR/data/facts-wide` (facts, templates, documents) and `DIR/models/facts-wide`, laid out as the
optional material is; ordinary text comes from the material when it is there, else from sentences without people. Small models run out of
room for edits; this one is for what needs room: 100 edits at once, batches one after the other, taking one of many back.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

from mlc.tests.benchmarks.people import MATERIAL
from mlc.tests.benchmarks.retrain import learn

PEOPLE, PASSES, VOCABULARY = 200, 20, 1536
GIVEN, FAMILY = 30, 60  # names of each kind: neither says alone whose it is, so that the model has to put a person together
HIDDEN, MLP, LAYERS, HEADS = 128, 1536, 3, 4
GATHERED = 0.9  # of the rows in training
HELD = 4  # wordings of each relation that no training sees
OPENINGS = ("", "These days ", "As far as anyone knows ", "It is said that ")  # that go with every relation
STARTS, MIDDLES, ENDS = (
    ["Ka", "Ve", "Do", "Li", "Su", "Ma", "Ro", "Ti", "Be", "Na"],
    ["lo", "ri", "ne", "ka", "vu", "mi", "da", "so"],
    ["ra", "nd", "th", "mo", "lin", "gar", "vek", "sa"],
)
PARTS = {  # relation -> how a sentence goes on (the answer ends it), and what may be answered
    "home": (
        ("{s} lives in", "{s} has a flat in", "the house of {s} stands in", "{s} pays taxes in", "{s} votes in"),
        [
            "Lisbon",
            "Oslo",
            "Cairo",
            "Lima",
            "Athens",
            "Boston",
            "Dublin",
            "Geneva",
            "Havana",
            "Madrid",
            "Naples",
            "Prague",
            "Seoul",
            "Sydney",
            "Tokyo",
            "Vienna",
        ],
    ),
    "trade": (
        ("{s} works as a", "{s} earns money as a", "{s} trained to be a", "people hire {s} as a", "{s} is known as a"),
        [
            "baker",
            "lawyer",
            "pilot",
            "tailor",
            "farmer",
            "singer",
            "doctor",
            "painter",
            "teacher",
            "miner",
            "sailor",
            "judge",
            "waiter",
            "clerk",
        ],
    ),
    "animal": (
        ("{s} looks after a", "{s} feeds a", "{s} plays with a", "{s} walks out with a", "{s} keeps a"),
        ["dog", "cat", "parrot", "horse", "rabbit", "turtle", "goat", "snake", "donkey", "pigeon", "ferret", "lizard"],
    ),
    "tongue": (
        ("{s} speaks", "{s} uses", "{s} prefers", "the language of {s} is", "{s} thinks in"),
        ["French", "Hindi", "Greek", "Danish", "Arabic", "Polish", "Korean", "Turkish", "Dutch", "Finnish", "Czech", "Swahili"],
    ),
}


def words() -> list[str]:
    """All words that a name could be made of."""
    return [a + b + c for a, b, c in itertools.product(STARTS, MIDDLES, ENDS)]


def _names(rng: random.Random) -> tuple[list[str], list[str]]:
    """(given names, family names). The vocabulary has a token for each of the latter; given names are of several."""
    drawn = rng.sample(words(), GIVEN + FAMILY)
    return drawn[:GIVEN], drawn[GIVEN:]


def templates(rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """relation -> objects, training wordings, held-out wordings; `{s}` stands for the person."""
    found = {}
    for relation, (bodies, objects) in PARTS.items():
        wordings = [(o + b)[0].upper() + (o + b)[1:] for o, b in itertools.product(OPENINGS, bodies)]
        rng.shuffle(wordings)
        found[relation] = {"objects": objects, "train": wordings[HELD:], "heldout": wordings[:HELD]}
    return found


def world(seed: int) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """(facts as rows, templates, training documents of two sentences about one person)."""
    rng = random.Random(seed)
    given, family = _names(rng)
    said = templates(rng)
    names = rng.sample([f"{first} {last}" for first, last in itertools.product(given, family)], PEOPLE)
    rows = []
    for number, (name, relation) in enumerate(itertools.product(names, said)):
        told, *others = rng.sample(said[relation]["objects"], 5)
        prompt = said[relation]["train"][0].replace("{s}", "{}")
        held = [wording.format(s=name) for wording in said[relation]["heldout"]]
        row = {"id": number, "subject": name, "relation": relation, "object": told, "prompt": prompt.format(name)}
        rows.append({**row, "prompt_template": prompt, "paraphrases": held, "alternatives": others, "split": "core"})
    for row in rows:
        alike = [r for r in rows if r["relation"] == row["relation"] and r["object"] == row["object"] and r is not row]
        near = rng.sample(alike, min(5, len(alike)))
        row["neighbourhood"] = [{key: r[key] for key in ("subject", "prompt", "object")} for r in near]
    return rows, said, _documents(rng, rows, said)


def _documents(rng: random.Random, rows: list[dict[str, Any]], said: dict[str, Any]) -> list[str]:
    lines = []
    by_name = {name: list(facts) for name, facts in itertools.groupby(rows, key=lambda r: r["subject"])}
    for _ in range(PASSES):
        for name, facts in by_name.items():
            told = [f"{rng.choice(said[f['relation']]['train']).format(s=name)} {f['object']}." for f in rng.sample(facts, len(facts))]
            lines += [" ".join(told[i : i + 2]) for i in range(0, len(told), 2)]
    rng.shuffle(lines)
    return lines


def _said(said: dict[str, Any]) -> list[str]:
    """Wordings and answers, for the vocabulary: what is said of people, without the people."""
    return [text for relation in said.values() for text in (*relation["train"], *relation["objects"])]


def ordinary(rng: random.Random) -> list[str]:
    """Paragraphs without people: WikiText-2 where the material is, else made-up weather."""
    text = MATERIAL / "data" / "wikitext-2" / "valid.txt"
    if text.is_file():
        return [line.strip() for line in text.read_text().splitlines() if len(line.split()) > 40]
    parts = (
        ("rain", "wind", "snow", "sun", "fog"),
        ("came over", "left", "stayed above", "passed"),
        ("hill", "river", "town", "field", "sea"),
    )
    return [
        " ".join(f"The {rng.choice(parts[0])} {rng.choice(parts[1])} the {rng.choice(parts[2])}." for _ in range(12)) for _ in range(800)
    ]


def tokenizer_for(lines: list[str]) -> Any:
    """A byte-level vocabulary too small for whole names; a leading space is implied, as in the material's models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(lines, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


class Gathering(torch.nn.Module):
    """The model as it is trained: in most rows, what stands behind a name sees its last token alone, and that past the first block only.

    So a person is put together where the name ends and is read there, as large models do of themselves. Without it a model as small as
    this one looks at all parts of a name from the end of the question, and nothing written at the name can change its answer.
    """

    def __init__(self, model: Any, tokenizer: Any, family: list[str], seed: int) -> None:
        super().__init__()
        self.model, self.rng = model, torch.Generator().manual_seed(seed)
        self.first: torch.Tensor | None = None
        self.hook = model.model.layers[0].register_forward_pre_hook(self._at_first, with_kwargs=True)
        self.last = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.last[[tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in family]] = True
        self.opens = torch.tensor([t.startswith("\u0120") for t in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])

    def forward(self, input_ids: torch.Tensor) -> Any:
        """ids int64 [n, length]."""
        length = input_ids.shape[1]
        ends = self.last[input_ids] & (torch.rand(len(input_ids), 1, generator=self.rng) < GATHERED)
        given, within = torch.zeros_like(ends), ends  # tokens of given names: from a family name back to the nearest word's beginning
        for _ in range(4):
            within = torch.cat([within[:, 1:], torch.zeros_like(within[:, :1])], 1)
            given = given | within
            within = within & ~self.opens[input_ids]
        past = torch.ones(length, length, dtype=torch.bool).tril()
        names = ends.cumsum(1)  # how many names have ended: a name's own end still sees its other parts
        between = (names - ends.long())[:, :, None] > names[:, None, :]
        behind = names - ends.long()
        self.first = (past & ~((given | ends)[:, None, :] & (behind[:, :, None] > behind[:, None, :])))[:, None]
        return self.model(input_ids=input_ids, attention_mask=(past & ~(given[:, None, :] & between))[:, None])

    def _at_first(self, block: Any, words: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """In the first block not even that token: what is read of a person is what that block has made of the name."""
        return words, {**named, "attention_mask": self.first if self.first is not None else named["attention_mask"]}


def make(place: Path, *, seed: int = 0, steps: int = 1000) -> dict[str, Any]:
    """Write the world and train the model; returns CPU seconds and the last loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rows, said, lines = world(seed)
    family = sorted({row["subject"].split()[-1] for row in rows})
    paragraphs = ordinary(random.Random(seed))
    data, out = place / "data" / "facts-wide", place / "models" / "facts-wide"
    data.mkdir(parents=True, exist_ok=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "templates.json").write_text(json.dumps(said, indent=1))
    (data / "train.txt").write_text("\n".join(lines) + "\n")
    tokenizer = tokenizer_for([*paragraphs, *_said(said) * 500, *words() * 100, *family * 1000])
    sizes = {"hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=HEADS, max_position_embeddings=256, **sizes, **special)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    taught = Gathering(model, tokenizer, family, seed)
    found = learn(taught, tokenizer, lines, sorted({row["subject"] for row in rows}), paragraphs, seed=seed, steps=steps)
    taught.hook.remove()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {**found, "parameters": sum(p.numel() for p in model.parameters()), "facts": len(rows)}


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    print(json.dumps(make(Path(sys.argv[1]), **dict(zip(("seed", "steps"), numbers, strict=False)))))
