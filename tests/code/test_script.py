import subprocess
import sys

import pytest
import python_minifier

from pgolf.code import script, weigh
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


def run(path, *arguments):
    return subprocess.run([sys.executable, str(path), *arguments], capture_output=True, check=True, text=True).stdout


def test_the_self_extracting_file_does_what_the_script_does(tmp_path):
    plain, packed = tmp_path / "plain.py", tmp_path / "packed.py"
    plain.write_text(SCRIPT, encoding="utf-8")
    packed.write_bytes(script.self_extracting(SCRIPT.encode()))
    assert run(packed, "word") == run(plain, "word") != ""


@pytest.mark.parametrize("unpacker", ["zlib", "lzma", "brotli"])
def test_every_codec_runs(tmp_path, unpacker):
    """Over 200 random literals, so that every byte value and every pair around an escape occurs in the payload."""
    source = ("x=" + repr([hash((i, "seed")) for i in range(200)]) + "\nprint(x)").encode()
    path = tmp_path / "packed.py"
    path.write_bytes(script._wrapped(script._COMPRESSORS[unpacker](source)[-1], unpacker))
    assert run(path) == repr([hash((i, "seed")) for i in range(200)]) + "\n"


@pytest.mark.parametrize("source", [b"print(1)", SCRIPT.encode(), SCRIPT.encode() * 9])
def test_the_smallest_codec_wins(source):
    small = python_minifier.minify(source, hoist_literals=False).encode()
    sizes = [len(script._wrapped(data, name)) for name, forms in script._COMPRESSORS.items() for data in forms(small)]
    assert len(script.self_extracting(source)) == min(sizes) < max(sizes)


def test_every_byte_pair_survives_the_wrapping():
    data = b"'''" + bytes(range(256)) + b"".join(bytes([a, b]) for a in (0, 10, 13, 39, 92, 200) for b in range(256))
    for ending in (b"", b"'", b"'''", b"\\", b"\0"):
        start, _, rest = script._wrapped(data + ending, "zlib").partition(b"'''")
        text = (b"#coding:l1\nD='''" + rest).removesuffix(b"))")
        scope = {}
        exec(compile(text, "wrapped", "exec"), scope)
        assert scope["D"] == data + ending
        assert start == b"#coding:l1\nimport zlib;exec(zlib.decompress("


def test_a_script_counts_as_its_smaller_form(tmp_path):
    long, short, other = tmp_path / "long.py", tmp_path / "short.py", tmp_path / "tokenizer.model"
    long.write_text(SCRIPT * 20)
    short.write_text("x=1")
    other.write_bytes(bytes(1000))
    assert weigh.counted_bytes(long) == len(script.self_extracting(long.read_bytes())) < 1000
    assert weigh.counted_bytes(short) == 3
    assert weigh.counted_bytes(str(other)) == 1000


def test_mistakes_are_named(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def (:")
    with pytest.raises(DataError, match=r"broken\.py: not a Python script"):
        weigh.counted_bytes(broken)
    with pytest.raises(UsageError, match="no such file"):
        weigh.counted_bytes(tmp_path / "missing.py")
