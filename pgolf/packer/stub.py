"""The decoder as one function in one text, for a submission that has no pgolf: made from the packer's own source.

What will surprise you:
* Nothing is written twice. `source` reads the packer's modules, keeps what `weights.load` needs, and moves it inside
  one function, `load`, so that a script gets a single new name and a minifier may shorten all others.
* Left out: annotations, docstrings, caches, threads, compiled loops and checks. A check is an `if` that only raises, or
  a call of a function named check_...; those whose condition speaks of a crc or checksum stay.
"""

from __future__ import annotations

import ast
import copy
import inspect
import io
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

import numpy as np

PACKAGE = "pgolf.packer"
ROOT = (f"{PACKAGE}.weights", "load")
STANDS_FOR = {
    (f"{PACKAGE}.general", "_decoded"): "lambda d, c, *_: __import__('brotli').decompress(d) if c else d",
}
INSTEAD = {
    (f"{PACKAGE}.artifact", "_planes"): (f"{PACKAGE}.codec", "read"),  # no general coders for codes
    (f"{PACKAGE}.rans", "_decode_lanes"): (f"{PACKAGE}.rans", "_decode"),  # no compiled loops
}
CACHES = {"cache", "lru_cache"}
FOREIGN = (np, np.ndarray, bytes, str, dict, set, io.BytesIO, struct.Struct, struct, json, zlib)
FUNCTIONS = (ast.FunctionDef, ast.Lambda)

Key = tuple[str, str]  # module, name


def source() -> str:
    """Python source that defines `load(path, torch=None)`; see `pgolf.packer.weights.load`. Needs numpy and brotli."""
    used: set[str] = set()
    while True:  # methods count as used once anything names them
        program = _Program(used)
        program.reach(ROOT)
        if program.attributes <= used:
            break
        used |= program.attributes
    load = program.done.pop(ROOT)
    assert isinstance(load, ast.FunctionDef)
    load.name = "load"
    load.args.posonlyargs, load.args.args = [], load.args.posonlyargs
    load.body = [*program.imports(), *program.done.values(), *load.body]
    _shorten_fields(load)
    return ast.unparse(ast.fix_missing_locations(load)) + "\n"


@dataclass
class _Program:
    """Definitions reached so far, each after those that it needs. used: attribute names that keep a method alive."""

    used: set[str]
    done: dict[Key, ast.stmt] = field(default_factory=dict)
    started: set[Key] = field(default_factory=set)
    outside: dict[str, ast.stmt] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    modules: dict[str, _Module] = field(default_factory=dict)

    def module(self, name: str) -> _Module:
        """The parsed module, parsed once."""
        if name not in self.modules:
            self.modules[name] = _Module.of(import_module(name))
        return self.modules[name]

    def reach(self, key: Key) -> None:
        """Take in a definition and all that it needs."""
        if key in self.started:
            return
        self.started.add(key)
        if key in STANDS_FOR:
            node: ast.stmt = ast.Assign([ast.Name(_flat(key), ast.Store())], ast.parse(STANDS_FOR[key]).body[0].value)  # type: ignore[attr-defined]
        else:
            node = _bare(copy.deepcopy(self.module(key[0]).definitions[key[1]]), self.used)
            node = _Renamed(self, self.module(key[0])).visit(node)
        self.attributes |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        self.done[key] = node

    def imports(self) -> Iterator[ast.stmt]:
        """Import statements of what is not the packer's."""
        yield from self.outside.values()


def _flat(key: Key) -> str:
    return f"{key[0].rpartition('.')[2]}_{key[1]}"


@dataclass(frozen=True)
class _Module:
    """A module's top-level definitions, and what its imports bring: local name -> (module, name or "")."""

    name: str
    definitions: dict[str, ast.stmt]
    imported: dict[str, Key]

    @staticmethod
    def of(module: ModuleType) -> _Module:
        definitions: dict[str, ast.stmt] = {}
        imported: dict[str, Key] = {}
        for node in ast.parse(inspect.getsource(module)).body:
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    definitions[name] = node
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    definitions[name] = node
                case ast.Assign(targets=[ast.Tuple(elts=names)]):
                    definitions |= {n.id: node for n in names if isinstance(n, ast.Name)}
                case ast.Import(names=names):
                    imported |= {a.asname or a.name: (a.name, "") for a in names}
                case ast.ImportFrom(module=str(origin), names=names):
                    imported |= {a.asname or a.name: (origin, a.name) for a in names}
        return _Module(module.__name__, definitions, imported)


def _bare(node: ast.stmt, used: set[str]) -> ast.stmt:
    """A definition without what a decoder can do without."""
    node = _Stripped(used).visit(node)
    if isinstance(node, ast.AnnAssign):
        assert node.value is not None
        return ast.Assign([node.target], node.value)
    return node


class _Stripped(ast.NodeTransformer):
    """Takes out docstrings, annotations, caches, checks and methods that nothing names."""

    def __init__(self, used: set[str]) -> None:
        self.used = used

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        node.decorator_list = [d for d in node.decorator_list if _name(d) not in CACHES]
        self.generic_visit(node)
        _forget_unread(node)
        match node.body:
            case [*_, ast.Assign(targets=[ast.Name(id=name)], value=value), ast.Return(value=ast.Name(id=result))] if (
                name == result
            ):
                node.body[-2:] = [ast.Return(value)]  # the name was there for the type checker
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.keywords = [k for k in node.keywords if k.arg != "strict"]
        self.generic_visit(node)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        node.posonlyargs, node.args = [*node.posonlyargs, *node.args], []  # so that a minifier may rename them
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = [n for n in node.body if not isinstance(n, ast.FunctionDef) or n.name in self.used or n.name.startswith("__")]
        node.decorator_list = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                part.annotation = ast.Constant(0)
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        self.generic_visit(node)
        if isinstance(node.annotation, ast.Constant) and node.annotation.value == 0:
            return node
        return ast.Assign([node.target], node.value) if node.value is not None else None

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        check = isinstance(node.value, ast.Call) and _name(node.value).lstrip("_").startswith("check_")
        return None if check or isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.stmt | None:
        if isinstance(node.body[0], ast.Raise) and not node.orelse and not _is_checksum(node.test):
            return None
        self.generic_visit(node)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return ast.parse("raise ValueError('damaged')").body[0]

    def visit_Try(self, node: ast.Try) -> list[ast.stmt]:
        return [self.visit(n) for n in node.body]


def _name(node: ast.expr) -> str:
    """The last part of a dotted or called name."""
    match node:
        case ast.Call(func=func):
            return _name(func)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _is_checksum(test: ast.expr) -> bool:
    return any("crc" in _name(n) or "checksum" in _name(n) for n in ast.walk(test) if isinstance(n, ast.expr))


def _forget_unread(function: ast.FunctionDef) -> None:
    """Drop assignments to names that nothing reads any more, now that checks are gone."""
    while True:
        read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}

        class Forget(ast.NodeTransformer):
            found = False

            def visit_Assign(self, node: ast.Assign) -> ast.stmt | None:
                match node.targets:
                    case [ast.Name(id=name)] if name not in read:
                        self.found = True
                        return None
                return node

        forget = Forget()
        forget.generic_visit(function)
        if not forget.found:
            break
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.If | ast.FunctionDef) and not node.body:
            node.body = [ast.Pass()]


class _Renamed(ast.NodeTransformer):
    """Gives every module-level name the one that it has in the stub, and takes in what it stands for."""

    def __init__(self, program: _Program, module: _Module) -> None:
        self.program, self.module = program, module
        self.local: list[set[str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        outer = not self.local and node.name in self.module.definitions and self.module.definitions[node.name].lineno == node.lineno
        self.local.append(_bound(node))
        self.generic_visit(node)
        self.local.pop()
        if outer:
            node.name = _flat((self.module.name, node.name))
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        self.local.append(_bound(node))
        self.generic_visit(node)
        self.local.pop()
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if node.value is not None:  # a field of a dataclass: its name stays
            node.value = self.visit(node.value)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.name = _flat((self.module.name, node.name))
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if any(node.id in names for names in self.local):
            return node
        if node.id in self.module.definitions:
            return self._known((self.module.name, node.id), node.ctx)
        if node.id in self.module.imported:
            origin, name = self.module.imported[node.id]
            if origin.startswith(PACKAGE):
                return self._known((origin, name), node.ctx)
            alias = ast.alias(name or origin, node.id if node.id != (name or origin) else None)
            self.program.outside[node.id] = ast.ImportFrom(origin, [alias], 0) if name else ast.Import([alias])
        return node

    def _known(self, key: Key, context: ast.expr_context) -> ast.expr:
        """What stands for a name of the packer: its value if that is a number."""
        key = INSTEAD.get(key, key)
        value = getattr(import_module(key[0]), key[1])
        if type(value) is int and isinstance(context, ast.Load):
            return ast.parse(str(value), mode="eval").body
        if isinstance(context, ast.Load):
            self.program.reach(key)
        return ast.Name(_flat(key), context)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and not any(node.value.id in names for names in self.local):
            origin, name = self.module.imported.get(node.value.id, ("", ""))
            if origin == PACKAGE:
                return self._known((f"{PACKAGE}.{name}", node.attr), node.ctx)
        self.generic_visit(node)
        return node


def _bound(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Names that are local to a function."""
    arguments = function.args
    every: Iterable[ast.arg] = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    stars = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    matched = {n.name for n in ast.walk(function) if isinstance(n, ast.MatchAs | ast.MatchStar) and n.name}
    nested = {n.name for n in ast.walk(function) if isinstance(n, ast.FunctionDef) and n is not function}
    return {a.arg for a in [*every, *stars]} | stored | matched | nested


def _shorten_fields(program: ast.FunctionDef) -> None:
    """Rename fields and methods of the packer's own classes, which a minifier must leave alone."""
    classes = [n for n in program.body if isinstance(n, ast.ClassDef)]
    parts = [part for c in classes for part in c.body]
    own = [p.target.id for p in parts if isinstance(p, ast.AnnAssign) and isinstance(p.target, ast.Name)]
    own += [p.name for p in parts if isinstance(p, ast.FunctionDef)]
    theirs = {name for kind in FOREIGN for name in dir(kind)}
    short = {name: f"_{i}" for i, name in enumerate(sorted(set(own) - theirs))}
    makers = {"replace", *(c.name for c in classes)}
    for part in parts:
        if isinstance(part, ast.FunctionDef):
            part.name = short.get(part.name, part.name)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            part.target.id = short.get(part.target.id, part.target.id)
    for node in ast.walk(program):
        if isinstance(node, ast.Attribute):
            node.attr = short.get(node.attr, node.attr)
        elif isinstance(node, ast.Call) and _name(node.func) in makers:
            for keyword in node.keywords:
                keyword.arg = short.get(keyword.arg or "", keyword.arg)
