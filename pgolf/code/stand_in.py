"""The decoder in the place of `import pgolf`: a script that scores with `pgolf.load(...)` runs where pgolf is not installed."""

from __future__ import annotations

import ast
from functools import cache

from pgolf.code import stub
from pgolf.code.uses import Use, pgolf_uses

SERVED = {"load", "load_into"}

_STAND_IN = """
def _pgolf():
    import sys, types, torch
    {decoder}
    module = types.ModuleType("pgolf")
    {parts}
    sys.modules["pgolf"] = module
_pgolf()
"""
_LOAD = "module.load = lambda path: load(path, torch)"
# tied names share one tensor on every device
_LOAD_ANYWHERE = """
def load_on(path, device="cpu"):
    moved = {}
    return {n: moved.setdefault(id(t), t.to(device)) for n, t in load(path, torch).items()}
module.load = load_on
"""
# as load_state of models/usermodel.py: wrappers' words in names aside, tied names in place of each other
_LOAD_INTO = """
def load_into(path, module):
    bare = lambda n: n.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "").removeprefix("module.")
    own, given = module.state_dict(), {bare(n): t for n, t in load(path, torch).items()}
    tied = {t.data_ptr(): given[bare(n)] for n, t in own.items() if bare(n) in given}
    full = {n: given.get(bare(n), tied.get(t.data_ptr())) for n, t in own.items()}
    unknown = {n: t for n, t in given.items() if n not in map(bare, own)}
    module.load_state_dict({n: t for n, t in full.items() if t is not None} | unknown)
    return module
module.load_into = load_into
"""


def beyond(tree: ast.Module) -> list[Use]:
    """What a script uses of pgolf that the stand-in does not have."""
    return [use for use in pgolf_uses(tree) if use.name not in SERVED]


@cache
def decoder() -> str:
    """The decoder's source, made once."""
    return stub.source()


def with_decoder(tree: ast.Module) -> bytes:
    """The script with the decoder before its first statement; __future__ imports must stay first."""
    uses = pgolf_uses(tree)
    parts = [_LOAD if all(use.plain for use in uses if use.name == "load") else _LOAD_ANYWHERE]
    parts += [_LOAD_INTO] if any(use.name == "load_into" for use in uses) else []
    text = _STAND_IN.replace("{decoder}", _indented(decoder())).replace("{parts}", _indented("\n".join(parts)))
    start = 0
    for number, node in enumerate(tree.body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            start = number + 1
    whole = ast.Module([*tree.body[:start], *ast.parse(text).body, *tree.body[start:]], [])
    return ast.unparse(ast.fix_missing_locations(whole)).encode()


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n    ")
