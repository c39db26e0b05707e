"""The decoder as one function in one text, for a submission that has no pgolf: made from the packer's own source.

`source` reads the packer's modules, keeps what `weights.load` needs, and moves it inside one function, `load`, so that a
script gets a single new name and a minifier may shorten all others. Left out: annotations, docstrings, caches, compiled
loops, devices, general coders for codes, and checks. A check is an `if` that only raises, or a call of a function named
check_...; those whose condition speaks of a crc or checksum stay.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from pgolf.code.stub_parts import Stripped, shorten_fields
from pgolf.code.uses import bound_names

PACKAGE = "pgolf.packer"
ROOT = (f"{PACKAGE}.weights", "load")
STANDS_FOR = {
    (f"{PACKAGE}.coder.general", "decompress"): (
        "decompress = lambda d, codec, shuffle, _, /: "
        "unshuffled(__import__('brotli').decompress(d) if codec else d, shuffle)"
    ),
}
INSTEAD = {
    (f"{PACKAGE}.format.artifact", "_planes"): (f"{PACKAGE}.coder.codec", "read"),  # no general coders for codes
}

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
    load.body = [*program.outside.values(), *program.done.values(), *load.body]
    shorten_fields(load)
    return ast.unparse(ast.fix_missing_locations(load)) + "\n"


@dataclass
class _Program:
    """Definitions reached so far, each after those that it needs.

    used: attribute names that keep a method alive; outside: import statements of what is not the packer's.
    """

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
            node = ast.parse(STANDS_FOR[key]).body[0]
        else:
            node = Stripped(self.used).visit(self.module(key[0]).definitions[key[1]])
        node = _Renamed(self, self.module(key[0])).visit(node)
        self.attributes |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        self.done[key] = node


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
                case ast.Import(names=names):
                    imported |= {a.asname or a.name: (a.name, "") for a in names}
                case ast.ImportFrom(module=str(origin), names=names):
                    imported |= {a.asname or a.name: (origin, a.name) for a in names}
        return _Module(module.__name__, definitions, imported)


class _Renamed(ast.NodeTransformer):
    """Gives every module-level name the one that it has in the stub, and takes in what it stands for."""

    def __init__(self, program: _Program, module: _Module) -> None:
        self.program, self.module = program, module
        self.local: list[set[str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        definition = self.module.definitions.get(node.name)
        if definition and definition.lineno == node.lineno:  # not a method or an inner function
            node.name = _flat((self.module.name, node.name))
        self.local.append(bound_names(node))
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
            if origin.startswith(PACKAGE) and _is_module(f"{origin}.{name}"):
                return self._known((f"{origin}.{name}", node.attr), node.ctx)
        self.generic_visit(node)
        return node


def _is_module(name: str) -> bool:
    return find_spec(name) is not None
