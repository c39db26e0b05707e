"""What the decoder stub does to single definitions: takes out what a decoder can do without, and shortens names.

They know the packer's own habits: checks are functions named check_..., nothing but dataclasses is called by keyword. The
tests of the stub compare every bit, so a breach of the habits shows.
"""

from __future__ import annotations

import ast
import io
import json
import struct
import zlib
from itertools import chain, count
from string import ascii_uppercase

import numpy as np

CACHES = {"cache", "lru_cache"}
ABSENT = {"loops", "device"}  # the last arguments of what compiled loops or a GPU may do instead; the stub has neither
UNREAD = {"Plane": {"trellis", "trellis_from", "spread"}}  # fields, given by keyword, that only an encoder reads again
ALWAYS = {"whole"}  # last arguments, true by default: the stub reads whole files only
FOREIGN = (np, np.ndarray, bytes, str, dict, set, io.BytesIO, struct, json, zlib)  # their attributes keep their names


class Stripped(ast.NodeTransformer):
    """Takes out docstrings, annotations, caches, checks and methods that nothing names."""

    def __init__(self, used: set[str]) -> None:
        self.used = used

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        node.decorator_list = [d for d in node.decorator_list if _name(d) not in CACHES]
        self.generic_visit(node)
        match node.body:
            case [*_, ast.Assign(targets=[ast.Name(id=name)], value=value), ast.Return(value=ast.Name(id=result))] if (
                name == result
            ):
                node.body[-2:] = [ast.Return(value)]  # the name was there for the type checker
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.keywords = [k for k in node.keywords if k.arg not in {"strict"} | UNREAD.get(_name(node.func), set())]
        node.args = [a for a in node.args if not _is_absent(a)]
        self.generic_visit(node)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        node.posonlyargs, node.args = [*node.posonlyargs, *node.args], []  # so that a minifier may rename them
        while node.posonlyargs and node.posonlyargs[-1].arg in ABSENT | ALWAYS:
            node.posonlyargs.pop()
            del node.defaults[-1:]
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = [n for n in node.body if not self._is_idle(n, UNREAD.get(node.name, set()))]
        node.decorator_list = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                part.annotation, part.value = ast.Constant(0), None  # the decode path gives every field
        self.generic_visit(node)
        return node

    def _is_idle(self, part: ast.stmt, unread: set[str]) -> bool:
        """Whether a class can do without a method or field."""
        match part:
            case ast.FunctionDef(name=name):
                return name not in self.used and not name.startswith("__")
            case ast.AnnAssign(target=ast.Name(id=name)):
                return name in unread
        return False

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        self.generic_visit(node)
        if isinstance(node.annotation, ast.Constant) and node.annotation.value == 0:
            return node
        return ast.Assign([node.target], node.value) if node.value is not None else None

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        self.generic_visit(node)
        check = isinstance(node.value, ast.Call) and _name(node.value).lstrip("_").startswith("check_")
        return None if check or isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.stmt | None:
        if isinstance(node.body[0], ast.Raise) and not node.orelse and not _is_checksum(node.test):
            return None
        self.generic_visit(node)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return node.orelse if _is_absent(node.test) else node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        node.values = [n for n in node.values if not (isinstance(n, ast.Name) and n.id in ALWAYS)]
        return node.values[0] if len(node.values) == 1 else node

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return ast.parse("raise ValueError('damaged')").body[0]


def _name(node: ast.expr) -> str:
    """The last part of a dotted or called name."""
    match node:
        case ast.Call(func=func):
            return _name(func)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _is_absent(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ABSENT


def _is_checksum(test: ast.expr) -> bool:
    return any("crc" in _name(n) or "checksum" in _name(n) for n in ast.walk(test) if isinstance(n, ast.expr))


def shorten_fields(program: ast.FunctionDef) -> None:
    """Rename fields and methods of the packer's own classes, which a minifier must leave alone.

    To capital letters, which it gives to variables: the fewer kinds of names, the better they compress.
    """
    classes = [n for n in program.body if isinstance(n, ast.ClassDef)]
    parts = [part for c in classes for part in c.body]
    own = [p.target.id for p in parts if isinstance(p, ast.AnnAssign) and isinstance(p.target, ast.Name)]
    own += [p.name for p in parts if isinstance(p, ast.FunctionDef)]
    theirs = {name for kind in FOREIGN for name in dir(kind)}
    names = (name for name in chain(ascii_uppercase, map("_{}".format, count())) if name not in theirs)
    short = dict(zip(sorted(set(own) - theirs), names, strict=False))
    for part in parts:
        if isinstance(part, ast.FunctionDef):
            part.name = short.get(part.name, part.name)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            part.target.id = short.get(part.target.id, part.target.id)
    for node in ast.walk(program):
        if isinstance(node, ast.Attribute):
            node.attr = short.get(node.attr, node.attr)
