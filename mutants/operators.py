"""Small faults of a source text: each mutant is one edit of one expression or statement, in the order of the text.

What will surprise you:
* The text is edited in place, so comments, line numbers and everything else stay: the decoder stub is made from this text.
* Left alone: annotations, docstrings and other strings, decorators, patterns, and what an error says (that it is raised is
  tested by taking the `raise` out).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
UNTOUCHED = {"annotation", "returns", "decorator_list", "pattern", "bases", "type_comment"}


@dataclass(frozen=True)
class Mutant:
    """Bytes start:end of the text become `new`.

    line: from 1. shown: the lines with that part marked, in one. once: the code runs when its module is imported.
    """

    line: int
    start: int
    end: int
    shown: str
    new: str
    once: bool

    def apply(self, text: bytes) -> bytes:
        """The mutated text."""
        return text[: self.start] + self.new.encode() + text[self.end :]

    def __str__(self) -> str:
        return f"line {self.line}: {self.shown}  ->  {self.new}"


def mutants(text: bytes) -> list[Mutant]:
    """Every mutant of a module's source."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, new, once in _edits(ast.parse(text), once=True):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]
        changed = f"({ast.unparse(new)})" if isinstance(new, ast.expr) else ast.unparse(new)
        found.append(Mutant(node.lineno, start, end, _shown(text, start, end), changed, once))
    return sorted(found, key=lambda m: (m.start, m.end, m.new))


def _shown(text: bytes, start: int, end: int) -> str:
    before, after = text[:start].rpartition(b"\n")[2], text[end:].partition(b"\n")[0]
    marked = f"{before.decode()}«{text[start:end].decode()}»{after.decode()}"
    return " ".join(marked.split())


def _edits(node: ast.AST, once: bool) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST, bool]]:
    """(node, what replaces it, whether it runs at import) in and under `node`."""
    if isinstance(node, ast.expr | ast.stmt):
        for kind, operator in OPERATORS.items():
            if isinstance(node, kind):
                yield from ((node, new, once) for new in operator(node))
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return
    inside = once and not isinstance(node, ast.FunctionDef | ast.Lambda)
    for name, value in ast.iter_fields(node):
        if name not in UNTOUCHED:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _edits(child, inside)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _compare(node: ast.Compare) -> Iterator[ast.AST]:
    for i, operator in enumerate(node.ops):
        yield _with(node, ops=[*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1 :]])


def _arithmetic(node: ast.BinOp) -> Iterator[ast.AST]:
    yield _with(node, op=ARITHMETIC[type(node.op)]())


def _augmented(node: ast.AugAssign) -> Iterator[ast.AST]:
    yield _with(node, op=ARITHMETIC[type(node.op)]())
    yield ast.Pass()


def _boolean(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node.value, float):
        yield ast.Constant(2 * node.value + 1)


def _choice(node: ast.IfExp) -> Iterator[ast.AST]:
    yield from (node.body, node.orelse)


def _branch(node: ast.If) -> Iterator[ast.AST]:
    if isinstance(node.body[0], ast.Raise) and not node.orelse:
        yield ast.Pass()


def _returned(node: ast.Return) -> Iterator[ast.AST]:
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield ast.Return(ast.Constant(None))


def _statement(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call):
        yield ast.Pass()


def _opposite(node: ast.Call) -> Iterator[ast.AST]:
    match node.func:
        case ast.Name(id=name) if name in OPPOSITES:
            yield _with(node, func=ast.Name(OPPOSITES[name], ast.Load()))
        case ast.Attribute(attr=name) if name in OPPOSITES:
            yield _with(node, func=_with(node.func, attr=OPPOSITES[name]))


OPERATORS: dict[type[ast.AST], Callable[..., Iterator[ast.AST]]] = {
    ast.Compare: _compare,
    ast.BinOp: _arithmetic,
    ast.AugAssign: _augmented,
    ast.BoolOp: _boolean,
    ast.UnaryOp: _unary,
    ast.Constant: _constant,
    ast.IfExp: _choice,
    ast.If: _branch,
    ast.Return: _returned,
    ast.Expr: _statement,
    ast.Call: _opposite,
}
