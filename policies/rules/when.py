"""The `when` of a rule: a small language of comparisons, read into a tree and interpreted here.

Python's parser gives the tree; only the node types listed in this file are accepted and nothing is ever evaluated as
code. Names stand for facts; a dotted name that the facts do not hold is None, and an order comparison with None is false.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

MAX_LENGTH = 500
# op: verb of the operation; method: what follows its dot; branch: the branch that would move.
# suite.*: name, kind, n, chance, guessed. before.* and after.*: the suite's metrics. check.*, params.*, expects.*: the operation's.
PLAIN = ("op", "method", "branch", "suite")
DOTTED = ("suite", "before", "after", "check", "params", "expects")

_ORDER: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class BadExpression(ValueError):
    """The text is not in the language; the message says what is."""


def parse(text: str) -> ast.expr:
    """The checked tree of an expression. Raises BadExpression."""
    if len(text) > MAX_LENGTH:
        raise BadExpression(f"a condition may have {MAX_LENGTH} characters, this one has {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        raise BadExpression(f"not a condition: {getattr(fault, 'msg', fault)}") from None
    _check(tree)
    return tree


def holds(tree: ast.expr, facts: Mapping[str, Any]) -> bool:
    """Whether the condition is true of `facts`: plain names to values, dotted names to mappings."""
    return bool(_value(tree, facts))


def uses(tree: ast.expr, name: str) -> bool:
    """Whether a name, plain or as the first part of a dotted one, occurs in the tree."""
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


def _check(node: ast.expr) -> None:
    match node:
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                _check(part)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            _check(inner)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            pass
        case ast.Compare(left=left, ops=ops, comparators=rights):
            if not all(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn | ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in ops):
                raise BadExpression("comparisons are ==, !=, <, <=, >, >=, in and not in")
            for part in (left, *rights):
                _check(part)
        case ast.Constant(value=str() | int() | float() | bool() | None):
            pass
        case ast.Name(id=name):
            if name not in PLAIN:
                raise BadExpression(f"unknown name {name!r}; known: {', '.join((*PLAIN, *(f'{d}.*' for d in DOTTED)))}")
        case ast.Attribute():
            if _path(node)[0] not in DOTTED:
                raise BadExpression(f"unknown name {ast.unparse(node)!r}; dotted names start with {', '.join(DOTTED)}")
        case _:
            raise BadExpression(f"{ast.unparse(node)!r} is not allowed here; conditions compare names with values, joined by and, or, not")


def _path(node: ast.expr) -> list[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise BadExpression("a dotted name consists of words and dots")
    return [node.id, *parts]


def _value(node: ast.expr, facts: Mapping[str, Any]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, facts) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, facts) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, facts)
        case ast.UnaryOp(operand=ast.Constant(value=number)):
            return -number  # type: ignore[operator]
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return tuple(_value(part, facts) for part in parts)
        case ast.Constant(value=constant):
            return constant
        case ast.Name(id="suite"):
            return (facts.get("suite") or {}).get("name")
        case ast.Name(id=name):
            return facts.get(name)
        case ast.Attribute():
            return _dotted(_path(node), facts)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            values = [_value(part, facts) for part in (left, *rights)]
            return all(_compare(op, a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case _:
            raise AssertionError("checked when parsed")


def _dotted(path: list[str], facts: Mapping[str, Any]) -> Any:
    value: Any = facts
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _compare(op: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(op, ast.Eq):
        return left == right
    if isinstance(op, ast.NotEq):
        return left != right
    try:
        if isinstance(op, ast.In | ast.NotIn):
            return (left in right) == isinstance(op, ast.In)
        return bool(_ORDER[type(op)](left, right))
    except TypeError:  # None, or a word against a number
        return isinstance(op, ast.NotIn)
