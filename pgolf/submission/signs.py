"""Reading a script for signs: words of its names, its calls by their full names, what is given to which name."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

DATA_WORDS = {
    "batch", "batches", "bin", "bins", "bytes", "chunk", "chunks", "data", "dataset", "docs", "documents", "file", "files",
    "glob", "ids", "inputs", "loader", "path", "paths", "pattern", "shard", "shards", "stream", "text", "token", "tokens",
}  # fmt: skip


@lru_cache(maxsize=4096)
def name_words(name: str) -> frozenset[str]:
    """`valTokens_2` -> {val, tokens, 2}."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return frozenset(part.lower() for part in parts)


def is_data(name: str) -> bool:
    """Whether a name speaks of data, by one of its words."""
    return bool(name_words(name) & DATA_WORDS)


def named(node: ast.AST) -> Iterator[str]:
    """Names and attributes in an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def strings(node: ast.AST) -> Iterator[str]:
    """String constants in an expression or a tree."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or of attributes of one; of attributes of anything else the last name alone."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return ".".join(filter(None, (dotted(value), attr)))
    return ""


def called(node: ast.Call) -> str:
    """What a call calls, as `dotted`."""
    return dotted(node.func)


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with its full name: local names of imports are replaced by what was imported."""
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            local |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            local |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = called(node).partition(".")
            yield node, local.get(first, first) + dot + rest


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def targets_of(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name, what it is given) of assignments, keywords, defaults, loops and appends."""
    match node:
        case ast.Assign(targets=targets, value=value):
            pairs = [(target, value) for target in targets]
        case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.AugAssign(target=target, value=value):
            pairs = [(target, value)]
        case ast.NamedExpr(target=target, value=value):
            pairs = [(target, value)]
        case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
            pairs = [(target, value)]
        case ast.keyword(arg=str(name), value=value):
            pairs = [(ast.Name(name), value)]
        case ast.Call(func=ast.Attribute(value=target, attr="append" | "extend"), args=[value]):
            pairs = [(target, value)]
        case ast.arguments(args=args, defaults=defaults) if defaults:
            pairs = [(ast.Name(a.arg), d) for a, d in zip(args[-len(defaults) :], defaults, strict=False)]
        case _:
            pairs = []
    for target, value in pairs:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        for part in parts:
            if name := dotted(part.value if isinstance(part, ast.Subscript | ast.Starred) else part).rpartition(".")[2]:
                yield name, value


def local_modules(tree: ast.Module) -> set[str]:
    """Local modules that a script imports or runs by name: "a.b" -> "a/b.py", and every string that ends in .py."""
    found = {text.rpartition("/")[2] for text in strings(tree) if text.endswith(".py")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.replace(".", "/") + ".py" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").replace(".", "/")
            found |= {f"{base}.py", *(f"{base}/{alias.name}.py".lstrip("/") for alias in node.names)}
    return found


class Taint:
    """Names of a function that come, through any number of assignments, from names for which `start` holds.

    node: what is asked about; only assignments count that may have been made when it runs, up to the end of the outermost loop
    around it.
    """

    def __init__(self, function: ast.AST, node: ast.AST, start: Callable[[str], bool]) -> None:
        self.start = start
        self.names: set[str] = set()
        end = max((loop.end_lineno or 0 for loop in _loops(function) if _around(loop, node)), default=_line(node))
        parts = [part for part in ast.walk(function) if not isinstance(part, ast.keyword)]
        given = [pair for part in parts if _line(part) <= end for pair in targets_of(part)]
        grown = True
        while grown:
            new = {target for target, value in given if target not in self.names and self.holds(value)}
            grown = bool(new)
            self.names |= new

    def holds(self, node: ast.AST) -> bool:
        """Whether an expression speaks of such a name."""
        match node:
            case ast.Name(id=name) if self.start(name) or name in self.names:
                return True
            case ast.Attribute(attr="shape" | "dtype" | "device" | "ndim"):
                return False
            case ast.Attribute(attr=name) if self.start(name) or name in self.names:
                return True
            case ast.Call(func=ast.Attribute(attr="numel" | "size" | "dim") | ast.Name(id="len" | "range" | "int")):
                return False  # how much text there is tells nothing of it
        return any(map(self.holds, ast.iter_child_nodes(node)))


def _loops(function: ast.AST) -> list[ast.For | ast.While]:
    return [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While)]


def _around(loop: ast.For | ast.While, node: ast.AST) -> bool:
    return loop.lineno <= _line(node) <= (loop.end_lineno or 0)


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)
