"""What a script shows at run time, and so must keep when it is shortened: annotations, docstrings and names that something reads.

Two things decide. The rules here say beforehand what may go: what no decorator, no module and no word in the script asks
for. `shows_the_same` compares afterwards what Python made of both texts, so that a shortening that does more is found out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_OPTIMIZED, CO_VARARGS, CO_VARKEYWORDS
from pathlib import PurePosixPath
from types import CodeType
from typing import Any

from pgolf.code.uses import asked, imported

# Decorators that look neither at annotations nor at names nor at the source. All others may: custom_op, jit, njit, beartype, ...
HARMLESS_DECORATORS = {
    "abstractmethod", "cache", "cached_property", "classmethod", "compile", "contextmanager", "custom_bwd", "custom_fwd",
    "deleter", "disable", "enable_grad", "final", "getter", "inference_mode", "lru_cache", "no_grad", "once_differentiable",
    "overload", "override", "property", "record", "runtime_checkable", "setter", "staticmethod", "total_ordering", "wraps",
}  # fmt: skip
# Packages that are handed functions and classes without looking at their annotations or docstrings, but for the words below.
QUIET_PACKAGES = {
    "brotli", "datasets", "einops", "fla", "flash_attn", "flash_attn_interface", "huggingface_hub", "kernels", "lz4",
    "matplotlib", "numpy", "pandas", "pgolf", "psutil", "requests", "safetensors", "scipy", "sentencepiece", "tiktoken",
    "tokenizers", "torch", "tqdm", "transformers", "triton", "wandb", "xformers", "zstandard",
}  # fmt: skip
ANNOTATION_WORDS = {
    "__annotations__", "annotationlib", "custom_op", "get_annotations", "get_type_hints", "getfullargspec", "infer_schema",
    "inspect", "jit", "signature", "singledispatch", "triton_op",
}  # fmt: skip
DOC_WORDS = {"__doc__", "doctest", "docopt", "getdoc", "help", "inspect", "pydoc"}
# Who says one of these looks at source text, frames or code: nothing but comments and spaces may go.
SOURCE_WORDS = {
    "_getframe", "ScriptModule", "breakpoint", "co_varnames", "currentframe", "dis", "f_locals", "getsource",
    "getsourcelines", "inspect", "script", "script_method", "set_trace", "symtable",
}  # fmt: skip


@dataclass(frozen=True)
class Readers:
    """What the scripts of one submission may read of each other: annotations, docstrings, the source itself."""

    annotations: bool
    docs: bool
    source: bool


def readers(trees: Mapping[str, ast.Module]) -> Readers:
    """Of all scripts together, by their names: one may ask for what another defines."""
    ours = {part for name in trees for part in PurePosixPath(name).with_suffix("").parts}
    said = {word for tree in trees.values() for word in asked(_without_decorators(tree))}
    everywhere = {word for tree in trees.values() for word in asked(tree)}
    packages = {name.split(".")[0] for tree in trees.values() for node in ast.walk(tree) for name in imported(node)}
    strangers = bool(packages - sys.stdlib_module_names - QUIET_PACKAGES - ours - {""})
    source = bool(everywhere & SOURCE_WORDS)
    return Readers(
        strangers or source or bool(said & ANNOTATION_WORDS), strangers or bool(everywhere & DOC_WORDS), source
    )


def _without_decorators(tree: ast.Module) -> ast.Module:
    """The statements without decorators, and without the imports that bring what decorates."""

    class Undecorated(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            node.decorator_list = []
            self.generic_visit(node)
            return node

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            return None

    return Undecorated().visit(ast.parse(ast.unparse(tree)))  # type: ignore[no-any-return]


def watched(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a decorator may look at what it decorates."""
    return any(_last_name(d) not in HARMLESS_DECORATORS for d in node.decorator_list) and not _is_dataclass(node)


def _is_dataclass(node: ast.AST) -> bool:
    """A dataclass reads the annotations of its fields, which are always kept, and nothing of its methods."""
    return isinstance(node, ast.ClassDef) and {_last_name(d) for d in node.decorator_list} == {"dataclass"}


def _last_name(decorator: ast.expr) -> str:
    match decorator:
        case ast.Call(func=func):
            return _last_name(func)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


class Bared(ast.NodeTransformer):
    """Takes out what nothing reads: annotations of arguments, results and variables, and docstrings.

    Fields of classes keep their annotations: dataclasses, NamedTuples and their like are made of them. What a decorator may
    look at stays as it is.
    """

    def __init__(self, readers: Readers) -> None:
        self.readers = readers

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._definition(node)  # type: ignore[return-value]

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        return self._definition(node)  # type: ignore[return-value]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return self._definition(node)  # type: ignore[return-value]

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self._take_docstring(node)
        self.generic_visit(node)
        return node

    def _definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.stmt:
        if watched(node):
            return node
        self._take_docstring(node)
        if isinstance(node, ast.ClassDef):
            fields = {id(part): part for part in node.body if isinstance(part, ast.AnnAssign)}
            node.body = [part if id(part) in fields else self.visit(part) for part in node.body]
            return node
        if not self.readers.annotations:
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            for argument in every:
                if argument is not None:
                    argument.annotation = None
            node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if self.readers.annotations or node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def _take_docstring(self, node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        if not self.readers.docs and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])


def kept_names(tree: ast.Module) -> set[str]:
    """Local names that must stay: every one inside of what a decorator may look at (Triton, for one, takes an alias of a
    constexpr for a tensor), of classes, which reprs show, and of functions where the script asks for a __name__.

    Classes of the decoder, which begin in lower case, may go: nobody sees one.
    """
    found: set[str] = set()
    named = any(isinstance(n, ast.Attribute) and n.attr in {"__name__", "__qualname__"} for n in ast.walk(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if named or (isinstance(node, ast.ClassDef) and not node.name[0].islower()):
            found.add(node.name)
        if watched(node):
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            found |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    return found


def shows_the_same(one: CodeType, other: CodeType, method: bool = False) -> bool:
    """Whether two scripts cannot be told apart at run time: the same functions with the same arguments, the same names asked
    for, the same constants.

    Left out are names of local variables, local functions, positional-only arguments and a method's first, and the order of
    instructions, which nothing sees but who reads source or frames. method: whether both are functions of a class.
    """
    mine, theirs = _inner(one), _inner(other)
    nameless = max(one.co_posonlyargcount, int(method))
    return (
        _head(one, nameless) == _head(other, nameless)
        and len(mine) == len(theirs)
        and (_is_function(one) or [part.co_name for part in mine] == [part.co_name for part in theirs])
        and all(shows_the_same(*pair, _is_class(one)) for pair in zip(mine, theirs, strict=True))
    )


def _inner(code: CodeType) -> list[CodeType]:
    return [part for part in code.co_consts if isinstance(part, CodeType)]


def _is_function(code: CodeType) -> bool:
    return bool(code.co_flags & CO_OPTIMIZED)


def _is_class(code: CodeType) -> bool:
    return not _is_function(code) and code.co_name != "<module>"


def _head(code: CodeType, nameless: int) -> tuple[Any, ...]:
    """What is visible of one code object; `nameless`: how many of its arguments can only be given by position."""
    flags = code.co_flags & (CO_VARARGS | CO_VARKEYWORDS | CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR)
    arguments = code.co_varnames[nameless : code.co_argcount + code.co_kwonlyargcount]
    constants = {_key(part) for part in code.co_consts if not isinstance(part, CodeType | None)}
    named = {_key(part.co_name) for part in _inner(code)} if _is_function(code) else set()
    named |= {_key(code.co_qualname)} if "<locals>" in code.co_qualname else set()
    return code.co_argcount, code.co_kwonlyargcount, flags, arguments, set(code.co_names), constants - named


def _key(constant: object) -> str:
    if isinstance(constant, frozenset):
        return "{" + ",".join(sorted(map(_key, constant))) + "}"
    if isinstance(constant, tuple):
        return "(" + ",".join(map(_key, constant)) + ")"
    return repr(constant)
