"""Scripts that unpack themselves do what they did before: for Python, for its tools, and for whoever reads them."""

import os
import subprocess
import sys
import tracemalloc

import pytest

from pgolf.code import payload, script, weigh
from pgolf.code.minify import minified
from pgolf.errors import DataError, UsageError

SCRIPT = '''
"""A script with things that a careless packer breaks."""
import sys

GREETING = "naïve – \\\\ ' \\" \\0 \\r\\n ✓"


def main(argument: str) -> None:
    # a comment
    print(ascii(GREETING), argument, __name__)


if __name__ == "__main__":
    main(sys.argv[1])
'''
# What Python, its standard library and a script itself may look at; every line of it must print the same.
LOOKS = '''
"""Looks at itself."""
import argparse, dataclasses, inspect, linecache, multiprocessing, pickle, sys, traceback, typing
from pathlib import Path

WORD = "naïve ✓"

@dataclasses.dataclass
class Settings:
    """Settings."""
    width: int = 3
    name: str = "x"

class Row(typing.NamedTuple):
    number: int
    text: str = "t"

class Given(typing.TypedDict):
    key: int

def annotated(first: int, *rest: str, last: float = 1.0) -> list:
    """Annotated."""
    inner_value = first + 1
    return [f"{inner_value=}", sorted(locals())]

def work(number):
    return number * number, __name__

def fails(argument):
    raise ValueError(argument)

def main():
    source = Path(__file__).read_text(encoding="utf-8")
    compile(source, "again", "exec")
    print("WORD" in source, Path(__file__).parent == Path(sys.argv[0]).absolute().parent)
    print(Path(__file__).with_name("beside.txt").read_text())
    print(inspect.getsource(work).count("return"), inspect.getsource(Settings).count("width"))
    print("import" in linecache.getline(__file__, 2) + linecache.getline(__file__, 3))
    print(annotated(1), inspect.signature(annotated), typing.get_type_hints(annotated), annotated.__doc__)
    print(Settings(), dataclasses.fields(Settings)[0].type, Row(1), Given.__annotations__, Settings.__doc__)
    print(argparse.ArgumentParser(prog="x", description=__doc__).format_help())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [2, 3]))
    print(pickle.loads(pickle.dumps(Settings(4))), getattr(sys.modules["__main__"], "WORD"), "WORD" in globals())
    try:
        fails(WORD)
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        print("raise ValueError(argument)" in last.line, last.name)
    (Path(__file__).parent / "log.txt").write_text("logged")

if __name__ == "__main__":
    main()
'''
TORCH = '''
from pathlib import Path
import torch, torch.nn as nn
import triton
import triton.language as tl

@torch.library.custom_op("pgolf_test::twice", mutates_args=())
def twice(value: torch.Tensor, times: int = 2) -> torch.Tensor:
    return value * times

@twice.register_fake
def _(value, times=2):
    return torch.empty_like(value)

@torch.jit.script
def thrice(value: torch.Tensor) -> torch.Tensor:
    outcome: torch.Tensor = 3 * value
    return outcome

@triton.jit
def store(where, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    places_again = places + 0 * SIZE
    tl.store(where + places_again, places_again + SIZE + SIZE)

class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.line = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.line.weight)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Forward."""
        return thrice(twice(self.line(value)))

made = torch.zeros(8, dtype=torch.int32)
store[(1,)](made, SIZE=8)
print(made.tolist(), Net()(torch.ones(4)).tolist(), torch.jit.script(nn.ReLU())(torch.ones(1)))
'''


def start(path, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env=os.environ | {"PYTHONPATH": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(path, *arguments, **environment):
    process = start(path, *arguments, **environment)
    said, wrong = process.communicate()
    assert process.returncode == 0, wrong
    return said


def both(tmp_path, source, *arguments, **environment):
    """What a script prints, and what its self-extracting form does, each beside a file of its own."""
    found = []
    for place, data in (("plain", source.encode()), ("packed", script.self_extracting(source.encode()))):
        (tmp_path / place).mkdir()
        (tmp_path / place / "beside.txt").write_text("beside")
        (tmp_path / place / "train.py").write_bytes(data)
        found.append(run(tmp_path / place / "train.py", *arguments, **environment))
    return found


def test_the_self_extracting_file_does_what_the_script_does(tmp_path):
    plain, packed = both(tmp_path, SCRIPT, "word")
    assert packed == plain != ""


def test_python_and_its_library_see_a_source_file(tmp_path):
    plain, packed = both(tmp_path, LOOKS, PYTHONWARNINGS="error")
    assert packed == plain
    assert "[(4, '__mp_main__'), (9, '__mp_main__')]" in plain
    files = {path.name for path in (tmp_path / "packed").iterdir()}
    assert files == {"train.py", "train_.py", "beside.txt", "log.txt"}
    assert (tmp_path / "packed" / "train_.py").read_bytes() == minified(LOOKS.encode(), "train.py")


def test_torch_and_triton_see_a_source_file(tmp_path):
    pytest.importorskip("triton")
    plain, packed = both(tmp_path, TORCH, TRITON_INTERPRET="1")
    assert packed == plain
    assert plain.startswith("[16, 17, 18, 19, 20, 21, 22, 23] [6.0, 6.0, 6.0, 6.0]")


def test_where_the_folder_takes_no_file_links_to_all_beside_stand_in(tmp_path):
    (tmp_path / "train_.py").mkdir()  # whoever may write everywhere cannot write this
    (tmp_path / "beside.txt").write_text("beside")
    (tmp_path / "train.py").write_bytes(script.self_extracting(LOOKS.replace("Path(__file__).parent == ", "").encode()))
    private = tmp_path / "private"
    private.mkdir()
    assert "beside\n1 1\n" in run(tmp_path / "train.py", TMPDIR=str(private))
    assert not list(private.iterdir())
    assert not list((tmp_path / "train_.py").iterdir())


def test_ranks_that_start_at_once_read_whole_files(tmp_path):
    source = "from pathlib import Path\nprint(len(Path(__file__).read_text()), __name__)\n" + "x = 'a line'\n" * 999
    (tmp_path / "train.py").write_bytes(script.self_extracting(source.encode()))
    said = {process.communicate()[0] for process in [start(tmp_path / "train.py") for _ in range(4)]}
    assert said == {f"{len(minified(source.encode(), 'train.py'))} __main__\n"}
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "train_.py"}
    (tmp_path / "train_.py").write_text("raise SystemExit('an older one')")
    assert run(tmp_path / "train.py") in said


def test_scripts_import_and_read_each_other(tmp_path):
    parts = "import inspect\ndef answer(number: int) -> int:\n    return number + 2\n" + "# long\n" * 99
    main = "from pathlib import Path\nimport parts, inspect\n" + "x = 'long enough to be packed'\n" * 40
    main += "print(parts.answer(40), inspect.getsource(parts.answer).count('return'), parts.__name__)\n"
    for read in ("", "print(len(Path('parts.py').read_text()) > 9)\nexec(Path('parts.py').read_text())\n"):
        files = weigh.shipped({"train.py": (main + read).encode(), "parts.py": (parts * 9).encode()})
        for name, file in files.items():
            (tmp_path / name).write_bytes(file.data)
        assert (files["parts.py"].how == "self-extracting") is (read == "")
        done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("42 1 parts\n")


def test_a_script_that_looks_for_its_own_name_keeps_it(tmp_path):
    """As one of the contest's records does, whose code lies in a file beside it."""
    main = "exec(open(__file__.replace('train.py', 'parts.py')).read())\n" + "x = 'long enough to be packed'\n" * 40
    parts = "'Run it by train.py.'\nprint('done')\n" * 40
    files = weigh.shipped({"train.py": main.encode(), "parts.py": parts.encode()})
    for name, file in files.items():
        (tmp_path / name).write_bytes(file.data)
    assert run(tmp_path / "train.py") == "done\n" * 40
    said = weigh.shipped({"train.py": b"'Run: torchrun train.py'\nprint(__file__)\n" * 40})
    assert said["train.py"].how == "self-extracting"


@pytest.mark.parametrize("unpacker", ["zlib", "lzma", "brotli"])
def test_every_codec_runs(tmp_path, unpacker):
    """Over 200 random literals, so that every byte value and every pair around an escape occurs in the payload."""
    source = ("x=" + repr([hash((i, "seed")) for i in range(200)]) + "\nprint(x)").encode()
    start = script.unpacker()
    path = tmp_path / "packed.py"
    path.write_bytes(script._wrapped(script._COMPRESSORS[unpacker](start + source)[-1], unpacker, len(start)))
    assert run(path) == repr([hash((i, "seed")) for i in range(200)]) + "\n"
    assert payload.inner(path.read_bytes()) == source


@pytest.mark.parametrize("source", [b"print(1)", SCRIPT.encode(), SCRIPT.encode() * 9])
def test_the_smallest_codec_wins(source):
    whole = script.unpacker() + source
    sizes = [len(script._wrapped(data, name, len(script.unpacker()))) for name, data in script.compressed(whole)]
    assert len(script.extracting(source)) == min(sizes) < max(sizes)


def test_every_byte_pair_survives_the_wrapping():
    data = b"'''" + bytes(range(256)) + b"".join(bytes([a, b]) for a in (0, 10, 13, 39, 92, 200) for b in range(256))
    for ending in (b"", b"'", b"'''", b"\\", b"\0"):
        scope = {}
        exec(compile(b"#coding:l1\nD=" + script.literal(data + ending), "wrapped", "exec"), scope)
        assert scope["D"] == data + ending


def test_a_script_counts_as_its_smaller_form(tmp_path):
    long, short, other = tmp_path / "long.py", tmp_path / "short.py", tmp_path / "tokenizer.model"
    long.write_text(SCRIPT * 20)
    short.write_text("x=1")
    other.write_bytes(bytes(1000))
    sizes = weigh.counted([long, short, str(other)])
    assert sizes == {
        str(long): len(script.self_extracting(long.read_bytes())), str(short): 3, str(other): 1000,
    }  # fmt: skip
    assert sizes[str(long)] < 1000


def test_a_script_that_unpacks_itself_is_not_packed_twice(tmp_path):
    once = script.self_extracting(SCRIPT.encode() * 9)
    assert weigh.shipped({"a.py": once})["a.py"] == weigh.Shipped(once, "unpacks itself already")
    loads = script.extracting(b"import pgolf\nprint(pgolf.load('m.pgolf'))\n" + SCRIPT.encode() * 9)
    anew = weigh.shipped({"a.py": loads})["a.py"].data
    assert b"sys.modules['pgolf']" in payload.inner(anew)


def test_a_script_may_refuse_to_be_minified():
    source = b"# pgolf: as is\nnumber: int = 1\n" * 40
    file = weigh.shipped({"a.py": source})["a.py"]
    assert payload.inner(file.data) == source


def test_the_ways_to_pack_are_weighed():
    forms = weigh.forms("a.py", SCRIPT.encode() * 40)
    assert forms["raw"] == len(SCRIPT.encode()) * 40 > forms["minified"] > forms["lzma_base85"] > forms["brotli"]
    assert forms["zlib"] > forms["brotli"]


def test_mistakes_are_named(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def (:")
    with pytest.raises(DataError, match=r"broken\.py: not a Python script"):
        weigh.counted([broken])
    with pytest.raises(UsageError, match="no such file"):
        weigh.counted([tmp_path / "missing.py"])


@pytest.mark.parametrize(
    "grown",
    [
        "bytes(10**11)",
        "bytes(100000000000)",
        "'a'" + ".replace('a', 'aa')" * 40,
        "'a'" + ".replace('a', 'aaaaaaaaaa')" * 12,
        "'aaaaaaaaaa'" + ".join(['', '', '', '', '', '', '', '', '', '', ''])" * 9,
        "'a'" + ".encode('utf-32').decode('latin1')" * 30,
    ],
)
def test_a_few_characters_become_no_gigabytes(grown):
    tracemalloc.start()
    assert payload.inner(f"exec({grown})".encode()) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * payload.LARGEST
