"""What goes when a script is minified, and what stays because something looks at it."""

import ast

import pytest

from pgolf.code import minify, visible
from pgolf.code.minify import minified

HEAD = "import torch, functools, triton\n"


def small(source):
    return minified(source.encode(), "a.py").decode()


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: int, *, y: str = 'a') -> int:\n    '''Doc.'''\n    number: int = x\n    return number",
        "@torch.no_grad()\ndef f(x: int, *, y: str = 'a') -> int:\n    '''Doc.'''\n    return x",
        "def f(script: int, help='a') -> int:\n    '''Doc.'''\n    number = add(script, help=help)\n    return number",
        "class C(torch.nn.Module):\n    '''Doc.'''\n    @functools.cache\n    def f(self, x: int, y='a'): return x",
    ],
)
def test_what_nothing_reads_goes(source):
    made = small(HEAD + source)
    assert not {"int", "Doc", "number"} & set(ast.dump(ast.parse(made)).split("'"))
    assert "'a'" in made


@pytest.mark.parametrize(
    ("source", "stays"),
    [
        ("@torch.library.custom_op('a::b', mutates_args=())\ndef f(x: Kept) -> Kept:\n    return x", "x:Kept)->Kept"),
        ("@triton.jit\ndef f(p, SIZE: tl.constexpr):\n    a_name = SIZE\n    g(SIZE, SIZE, a_name)", "a_name=SIZE"),
        ("def f(x: Kept): pass\ntorch.library.infer_schema(f)", "x:Kept"),
        ("def f(x: Kept): pass\ng = triton.jit(f)", "x:Kept"),
        ("import tyro\ndef f(x: Kept): '''Doc.'''\ntyro.cli(f)", "x:Kept"),
        ("import tyro\ndef f(x: Kept): '''Doc.'''\ntyro.cli(f)", "Doc."),
        ("def f(): '''Doc.'''\nprint(f.__doc__)", "Doc."),
        ("'''Doc.'''\nprint(__doc__)", "Doc."),
        ("def f(): '''Doc.'''\nprint(getattr(f, '__doc__'))", "Doc."),
        ("class C(NamedTuple):\n    number: Kept = 1", "number:Kept"),
        ("@dataclass\nclass C:\n    number: Kept = 1", "number:Kept"),
        ("def f():\n    a_name = 1\n    return locals()", "a_name"),
        ("import sys\ndef f():\n    a_name = 1\n    return sys._getframe().f_locals", "a_name"),
        ("def f():\n    def a_name(): pass\n    return a_name.__name__", "def a_name"),
        ("def f():\n    class AName: pass\n    return AName()", "class AName"),
        ("def f(a_name, /, **more): return a_name, more", "/"),
        ("def f(a_name): return a_name * a_name * a_name * a_name", "f(a_name)"),
        ("@functools.singledispatch\ndef f(x): pass\n@f.register\ndef _(x: Kept): pass", "x:Kept"),
        ("def f():\n    a_name = 1\n    return f'{a_name=}'", "a_name="),
        ("def f():\n    global a_name\n    a_name = 1\n    return a_name + a_name + a_name", "global a_name"),
        ("def f(x):\n    assert x, 'said'", "assert"),
    ],
)
def test_what_something_reads_stays(source, stays):
    made = small(HEAD + source)
    assert stays in made
    compile(made, "a.py", "exec")


def test_what_one_script_reads_of_another_stays():
    reads = ast.parse("import other\nprint(other.f.__doc__, other.f.__annotations__)")
    source = "def f(x: Kept): '''Doc.'''"
    among = visible.readers({"a.py": reads, "other.py": ast.parse(source)})
    assert minified(source.encode(), "other.py", among) == b"def f(x:Kept):'Doc.'"
    assert small(source) == "def f(x):0"


def test_scripts_beside_it_are_no_strangers():
    imports, parts = "import parts.more\nfrom train import f\n", "def f(x: int): return x"
    trees = {"train.py": ast.parse(imports), "parts/more.py": ast.parse(parts)}
    assert not visible.readers(trees).annotations
    assert visible.readers({"train.py": trees["train.py"]}).annotations


def test_a_step_that_shows_is_not_taken(monkeypatch):
    """Were the minifier to lose something, the next step would be tried, and at last the script stays as it is."""
    import python_minifier

    honest = python_minifier.minify
    source = b"def function(argument):\n    a_name = argument * 2  # a comment\n    return a_name - 3\n"

    def bold(text, **options):
        made = honest(text, **options)
        return made if options.get("rename_locals") is False else made.replace("3", "4")

    monkeypatch.setattr(python_minifier, "minify", bold)
    minify.minified.cache_clear()
    assert minified(source, "a.py") == b"def function(argument):a_name=argument*2;return a_name-3"
    monkeypatch.setattr(python_minifier, "minify", lambda text, **_: honest(text).replace("def f", "def g"))
    minify.minified.cache_clear()
    assert minified(source, "a.py") == ast.unparse(ast.parse(source)).encode()
    minify.minified.cache_clear()


@pytest.mark.parametrize(
    "other",
    ["def f(b): return 1", "def f(a, b=1): return 1", "def g(a): return 1", "def f(a): return 2", "def f(a): yield 1"],
)
def test_differences_are_seen(other):
    one, two = (compile(source, "a.py", "exec") for source in ("def f(a): return 1", other))
    assert visible.shows_the_same(one, one)
    assert not visible.shows_the_same(one, two)
