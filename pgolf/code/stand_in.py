"""The decoder in the place of `import pgolf`: a script that scores with `pgolf.load(...)` runs where pgolf is not installed."""

from __future__ import annotations

import ast
from functools import cache

from pgolf.code import stub
from pgolf.errors import DataError

_STAND_IN = """
def _pgolf():
    import sys, types, torch
    {decoder}
    module = types.ModuleType("pgolf")
    module.load = lambda path: load(path, torch)
    sys.modules["pgolf"] = module
_pgolf()
"""


def parsed(name: str, raw: bytes) -> ast.Module:
    """The syntax tree of a script. Raises DataError."""
    try:
        return ast.parse(raw, name)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a Python script ({error})") from None


def imports_pgolf(tree: ast.Module) -> bool:
    """Whether a script imports pgolf anywhere."""
    return any(name.split(".")[0] == "pgolf" for node in ast.walk(tree) for name in imported(node))


def imported(node: ast.AST) -> list[str]:
    """Dotted names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


@cache
def decoder() -> str:
    """The decoder's source, made once."""
    return stub.source()


def with_decoder(tree: ast.Module) -> bytes:
    """The script with the decoder before its first statement; __future__ imports must stay first."""
    text = decoder().strip().replace("\n", "\n    ")
    start = 0
    for number, node in enumerate(tree.body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            start = number + 1
    stand_in = ast.parse(_STAND_IN.replace("{decoder}", text)).body
    whole = ast.Module([*tree.body[:start], *stand_in, *tree.body[start:]], [])
    return ast.unparse(ast.fix_missing_locations(whole)).encode()
