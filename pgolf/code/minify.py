"""A script made shorter by what nothing sees at run time; a step that shows is not taken for that script."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from pgolf.code.uses import parsed
from pgolf.code.visible import Bared, Readers, kept_names, readers, shows_the_same
from pgolf.common import extras

_STEPS = (
    "combine_imports", "constant_folding", "convert_posargs_to_args", "remove_builtin_exception_brackets",
    "remove_dead_branches", "remove_explicit_return_none", "remove_object_base", "remove_pass", "rename_locals",
)  # fmt: skip


@lru_cache(maxsize=64)
def minified(source: bytes, name: str, among: Readers | None = None) -> bytes:
    """The shortest form of a script that shows the same at run time; `source` itself if there is none.

    among: what the scripts shipped with it read; its own reading by default. Raises DataError for what is no Python, and
    MissingExtraError.
    """
    tree = parsed(name, source)
    for step in _steps(tree, among or readers({name: tree})):
        try:
            wanted, text = step()
            before, after = (compile(form, name, "exec", dont_inherit=True) for form in (wanted, text))
            if shows_the_same(before, after):
                return text.encode()
        except (ValueError, SyntaxError, RuntimeError, AttributeError, TypeError):
            continue  # the minifier does not know this construct: the next step asks less of it
    return source


Step = Callable[[], tuple[str, str]]  # gives (what is to be shown, the shorter text)


def _steps(tree: ast.Module, among: Readers) -> Iterator[Step]:
    """From the boldest to the meekest."""
    extras.need("python_minifier")
    from python_minifier import minify

    bare = ast.unparse(ast.fix_missing_locations(Bared(among).visit(ast.parse(ast.unparse(tree)))))
    common: dict[str, Any] = {
        "remove_annotations": False,
        "hoist_literals": False,
    }  # a name for each repeated literal compresses worse
    # "/" may go where no **keywords can take an argument's name instead
    free = not any(isinstance(n, ast.arguments) and n.posonlyargs and n.kwarg for n in ast.walk(tree))
    if not among.source:
        names = sorted(kept_names(tree))
        yield lambda: (bare, minify(bare, **common, convert_posargs_to_args=free, preserve_locals=list(names)))
    meek: dict[str, Any] = dict.fromkeys(_STEPS, False)
    yield lambda: (bare, minify(bare, **common, **meek))
    yield lambda: (ast.unparse(tree), ast.unparse(tree))
