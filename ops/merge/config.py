"""Reads merge files in mergekit's YAML: models or slices, filters, gradients, tokenizer. A key that is not understood is an error.

What is read here is data only: names of versions, numbers and texts. Every complaint names the key and the line it stands on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ...registry.errors import BadParameter, BadRecipe, InputNotFound
from .recipe import DTYPES, Recipe, Slice, Source
from .settings import check_value, valid
from .table import Method, method_of

LIMIT = 1 << 20  # bytes of a file that is still read
TOP = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template", "name",
)  # fmt: skip


STACKED = """--config FILE.yml, a file of two lines, for example:
       merge_method: passthrough
       slices: [{{sources: [{{model: {}, layer_range: [0, 2]}}]}}, {{sources: [{{model: {}, layer_range: [1, 2]}}]}}]"""
EXAMPLE = "for example: {merge_method: linear, models: [{model: main, parameters: {weight: 1}}, {model: feature, parameters: {weight: 1}}]}"


class Keys(dict[str, Any]):
    """A mapping that knows the line of each of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class _Loader(yaml.SafeLoader):
    """YAML's safe types; mappings become Keys, and a key given twice is an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Keys:
    found = Keys()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(problem=f"the key {key!r} is not a word", problem_mark=key_node.start_mark)
        if key in found:
            raise yaml.constructor.ConstructorError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
        found[key], found.lines[key] = loader.construct_object(value_node, deep=True), line
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_config(path: str | Path) -> Recipe:
    """The recipe in a file. Raises InputNotFound, BadRecipe (details: path, line), BadParameter."""
    place = Path(path)
    try:
        data = place.read_bytes()
    except FileNotFoundError:
        raise InputNotFound(f"there is no file {path}", hint="give the path of a merge file in YAML") from None
    except OSError as fault:
        raise BadRecipe(f"{path} cannot be read: {fault.strerror}", path=str(path)) from fault
    if len(data) > LIMIT:
        raise BadRecipe(f"{path} has {len(data):,} bytes: that is no merge file", path=str(path))
    return parse_config(data, str(path))


def parse_config(data: bytes, path: str = "merge file") -> Recipe:
    """The recipe in the bytes of a file; `path` is how messages call it."""
    try:
        tree = yaml.load(data.decode("utf-8"), Loader=_Loader)  # safe types only
    except UnicodeDecodeError as fault:
        raise BadRecipe(f"{path} is not UTF-8", path=path) from fault
    except RecursionError as fault:
        raise BadRecipe(f"{path} is nested too deeply", path=path) from fault
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        where = "" if line is None else f", line {line}"
        raise BadRecipe(f"{path}{where}: {getattr(fault, 'problem', None) or 'not YAML'}", hint=EXAMPLE, path=path, line=line) from fault
    return _Reader(path).recipe(tree).validated()


class _Reader:
    """Turns the tree into a recipe; `path` is for messages."""

    method: Method

    def __init__(self, path: str) -> None:
        self.path = path

    @contextmanager
    def at(self, line: int) -> Iterator[None]:
        """Say the line of whatever is wrong inside."""
        try:
            yield
        except BadParameter as fault:
            self.fail(line, fault.message, fault.hint)

    def recipe(self, tree: Any) -> Recipe:
        if not isinstance(tree, Keys):
            self.fail(None, "a merge file is a mapping with merge_method and models or slices", EXAMPLE)
        self.known(tree, TOP)
        if "modules" in tree:
            self.fail(tree.lines["modules"], "the key 'modules' (models of several parts) is not supported", "use models or slices")
        if ("models" in tree) == ("slices" in tree):
            self.fail(None, "exactly one of 'models' and 'slices' must be given")
        name = self.text(tree, "merge_method", required=True) or ""
        with self.at(tree.lines["merge_method"]):
            self.method = method_of(name)
        for word in ("dtype", "out_dtype"):
            if tree.get(word) is not None and tree[word] not in DTYPES:
                self.fail(tree.lines[word], f"{word} {tree[word]!r} is unknown", f"known: {', '.join(DTYPES)}")
        return Recipe(
            method=name,
            slices=self.slices(tree) if "slices" in tree else (Slice(self.models(tree)),),
            base=self.text(tree, "base_model"),
            parameters=self.parameters(tree),
            dtype=tree.get("dtype"),
            out_dtype=tree.get("out_dtype"),
            tokenizer=self.tokenizer(tree),
            chat_template=self.text(tree, "chat_template"),
        )

    def models(self, tree: Keys) -> tuple[Source, ...]:
        return self.each(tree, "models", lambda item: Source(self.model(item), None, self.parameters(item)), ("model", "parameters"))

    def slices(self, tree: Keys) -> tuple[Slice, ...]:
        def one(item: Keys) -> Slice:
            if item.get("residual_weight") is not None:
                self.fail(item.lines["residual_weight"], "the key 'residual_weight' is not supported", "leave it out")
            sources = self.each(item, "sources", self.source, ("model", "layer_range", "parameters"))
            lengths = {s.layers[1] - s.layers[0] for s in sources if s.layers}
            if len(lengths) > 1:
                self.fail(item.lines["sources"], "all sources of a slice must have the same number of layers")
            return Slice(sources, self.text(item, "base_model"), self.parameters(item))

        return self.each(tree, "slices", one, ("sources", "base_model", "residual_weight", "parameters"))

    def source(self, item: Keys) -> Source:
        span = _items(item.get("layer_range"))
        numbers = len(span) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in span)
        if not numbers or not 0 <= span[0] < span[1]:
            self.fail(item.lines.get("layer_range", item.lines.get("model")), "layer_range is [FIRST, END], for example [0, 4]")
        return Source(self.model(item), (span[0], span[1]), self.parameters(item))

    def each(self, tree: Keys, key: str, make: Callable[[Keys], Any], known: tuple[str, ...]) -> tuple[Any, ...]:
        items = tree.get(key)
        if not isinstance(items, list) or not items or not all(isinstance(item, Keys) for item in items):
            self.fail(tree.lines.get(key), f"the key {key!r} holds a list of mappings, each with {known[0]!r}")
        for item in items:
            self.known(item, known)
        return tuple(make(item) for item in items)

    def model(self, item: Keys) -> str:
        name = self.text(item, "model", required=True) or ""
        if "+" in name:
            self.fail(item.lines["model"], f"{name!r}: adapters behind a '+' are not supported", "commit the adapter and name that version")
        return name

    def parameters(self, tree: Keys) -> Mapping[str, Any]:
        found = tree.get("parameters")
        if found is None:
            return {}
        if not isinstance(found, Keys):
            self.fail(tree.lines["parameters"], "the key 'parameters' holds a mapping of names to values")
        for name, value in found.items():
            self.setting(found.lines[name], name, value)
        return found

    def setting(self, line: int, name: str, value: Any) -> None:
        param = self.method.param(name)
        if param is None:
            known = ", ".join(p.name for p in self.method.params)
            self.fail(line, f"{self.method.name} has no parameter {name!r}", f"known: {known}")
        items = _items(value)
        if any(isinstance(i, Keys) for i in items) and not all(isinstance(i, Keys) for i in items):
            self.fail(line, f"the parameter {name!r} mixes numbers and filters")
        for item in items:
            if isinstance(item, Keys):
                self.known(item, ("filter", "value"))
                if "value" not in item or not isinstance(item.get("filter"), str | None):
                    self.fail(line, f"a filter of {name!r} is {{filter: WORD, value: NUMBER}}")
            for leaf in _items(item["value"]) if isinstance(item, Keys) else [item]:
                with self.at(line):
                    check_value(name, valid(param, leaf))

    def tokenizer(self, tree: Keys) -> str | None:
        block = tree.get("tokenizer")
        if block is None:
            return self.text(tree, "tokenizer_source")
        if "tokenizer_source" in tree:
            self.fail(tree.lines["tokenizer_source"], "tokenizer and tokenizer_source cannot both be given")
        if not isinstance(block, Keys):
            self.fail(tree.lines["tokenizer"], "the key 'tokenizer' holds a mapping with 'source'")
        for key in ("tokens", "pad_to_multiple_of"):
            if block.get(key) is not None:
                self.fail(block.lines[key], f"the key 'tokenizer.{key}' is not supported", "use tokenizer: {source: base} or union")
        self.known(block, ("source", "tokens", "pad_to_multiple_of"))
        return self.text(block, "source") or "union"

    def text(self, tree: Keys, key: str, required: bool = False) -> str | None:
        value = tree.get(key)
        if value is None and not required:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # a version such as 1
        if not isinstance(value, str) or not value:
            self.fail(tree.lines.get(key), f"the key {key!r} must hold a word" if key in tree else f"the key {key!r} is missing")
        return value

    def known(self, tree: Keys, keys: tuple[str, ...]) -> None:
        for key in tree:
            if key not in keys:
                self.fail(tree.lines[key], f"the key {key!r} is not supported here", f"known: {', '.join(keys)}")

    def fail(self, line: int | None, sentence: str, hint: str | None = None) -> NoReturn:
        where = "" if line is None else f", line {line}"
        raise BadRecipe(f"{self.path}{where}: {sentence}", hint=hint, path=self.path, line=line)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
