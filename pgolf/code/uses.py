"""What a script uses, read from its syntax tree without running it: imports, what it asks for by name, parts of pgolf."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from pgolf.errors import DataError

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def parsed(name: str, raw: bytes) -> ast.Module:
    """The syntax tree of a script. Raises DataError."""
    try:
        return ast.parse(raw, name)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a Python script ({error})") from None


def imported(node: ast.AST) -> list[str]:
    """Dotted names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


def imports_pgolf(tree: ast.Module) -> bool:
    """Whether a script imports pgolf anywhere."""
    return any(name.split(".")[0] == "pgolf" for node in ast.walk(tree) for name in imported(node))


def asked(tree: ast.AST) -> set[str]:
    """What a script may ask for by name, `getattr` included: attributes, parts of imports, strings, builtins.

    Variables and arguments of its own are left out: one called `script` asks for nothing.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                found.add(name)
            case ast.Name(id=name) if hasattr(builtins, name) or name.startswith("__"):
                found.add(name)
            case ast.Import(names=names):
                found |= {part for alias in names for part in alias.name.split(".")}
            case ast.ImportFrom(module=module, names=names):
                found |= {*(module or "").split("."), *(alias.name for alias in names)}
    return found


def bound_names(function: Function) -> set[str]:
    """Names that are local to a function: arguments, and what is assigned, imported or defined in it; not nonlocal ones."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    found, shared = {a.arg for a in every if a is not None}, set[str]()
    for node in _own_nodes(function):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in names}
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                shared |= set(names)
    return found - shared


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those inside of functions and classes in it."""
    waiting: list[ast.AST] = [*function.body] if isinstance(function.body, list) else [function.body]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


@dataclass(frozen=True)
class Use:
    """A part of pgolf that a script names. name: dotted, without "pgolf."; "" where pgolf itself is handed on. plain: it is
    called with nothing but a path."""

    name: str
    line: int
    plain: bool

    def __str__(self) -> str:
        return f"line {self.line}: " + (f"pgolf.{self.name}" if self.name else "pgolf handed on as a value")


def pgolf_uses(tree: ast.Module) -> list[Use]:
    """Everything of pgolf that a script names, in the order of its lines, but for what only a type checker sees or what never
    runs."""
    finder = _Finder(tree)
    finder.visit(tree)
    return sorted(finder.found, key=lambda use: use.line)


class _Finder(ast.NodeVisitor):
    """modules: local names of pgolf itself; parts: local name -> what of pgolf it is."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[Use] = []
        self.modules: set[str] = set()
        self.parts: dict[str, str] = {}
        self.hidden: list[set[str]] = []
        self.plain_calls: set[int] = set()  # ids of the expressions that are called with a path alone
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name == "pgolf" or (alias.name.startswith("pgolf.") and alias.asname is None):
                        self.modules.add(alias.asname or "pgolf")
            elif imported(node) == ["pgolf"] and isinstance(node, ast.ImportFrom):
                self.parts |= {alias.asname or alias.name: alias.name for alias in node.names}

    def visit_Import(self, node: ast.Import) -> None:
        deeper = [name.removeprefix("pgolf.") for name in imported(node) if name.startswith("pgolf.")]
        self.found += [Use(name, node.lineno, False) for name in deeper]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in imported(node):
            if name == "pgolf":
                self.found += [Use(a.name, node.lineno, True) for a in node.names]  # how, its uses tell
            elif name.startswith("pgolf."):
                self.found.append(Use(name.removeprefix("pgolf."), node.lineno, False))

    def visit_If(self, node: ast.If) -> None:
        never = isinstance(node.test, ast.Constant) and not node.test.value
        if never or (_last(node.test) == "TYPE_CHECKING"):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        by_path = [*node.args, *(k.value for k in node.keywords if k.arg == "path")]
        if len(by_path) == len(node.args) + len(node.keywords) == 1 and not isinstance(by_path[0], ast.Starred):
            self.plain_calls.add(id(node.func))
        if _last(node.func) in {"import_module", "__import__"}:
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            self.found += [Use(n.partition(".")[2], node.lineno, False) for n in names if n.split(".")[0] == "pgolf"]
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and self._is(node.value, self.modules):
            self.found.append(Use(node.attr, node.lineno, id(node) in self.plain_calls))
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if self._is(node, self.modules):
            self.found.append(Use("", node.lineno, False))
        elif self._is(node, self.parts):
            self.found.append(Use(self.parts[node.id], node.lineno, id(node) in self.plain_calls))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        imports = {
            (alias.asname or alias.name).split(".")[0]
            for inner in _own_nodes(node)
            if any(name.split(".")[0] == "pgolf" for name in imported(inner))
            for alias in getattr(inner, "names", [])
        }
        self.hidden.append(bound_names(node) - imports)
        self.generic_visit(node)
        self.hidden.pop()

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def _is(self, node: ast.Name, names: Collection[str]) -> bool:
        return (
            node.id in names and isinstance(node.ctx, ast.Load) and not any(node.id in local for local in self.hidden)
        )


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
