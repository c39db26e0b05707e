import ast
from pathlib import Path

import pytest

from mutants.operators import mutants
from mutants.run import INTERPRETED, REBUILT, TESTS

ROOT = Path(__file__).resolve().parents[2]
MARKER = 200  # bytes: an __init__.py that only says what its room is
# Of the rooms whose every bit matters; further modules may be listed in TESTS.
MODULES = sorted(
    p.relative_to(ROOT / "pgolf").with_suffix("").as_posix()
    for room in ("packer", "code")
    for p in (ROOT / "pgolf" / room).rglob("*.py")
    if p.stat().st_size > MARKER
)
SAMPLE = b'''"""Text."""
WIDE = 2  # \xc2\xb2 takes two bytes
def clipped(x: list[3]) -> None:
    if x < 0:
        raise ValueError(f"{x + 1}")
    return min(x, not 4)
'''


def test_the_mutants_of_a_few_lines():
    assert [str(m) for m in mutants(SAMPLE)] == [
        "line 2: WIDE = «2» # ² takes two bytes  ->  (1)",
        "line 2: WIDE = «2» # ² takes two bytes  ->  (3)",
        'line 4: «if x < 0: raise ValueError(f"{x + 1}")»  ->  pass',
        "line 4: if «x < 0»:  ->  (x <= 0)",
        "line 4: if x < «0»:  ->  (-1)",
        "line 4: if x < «0»:  ->  (1)",
        "line 6: «return min(x, not 4)»  ->  return None",
        "line 6: return «min(x, not 4)»  ->  (max(x, not 4))",
        "line 6: return min(x, «not 4»)  ->  (4)",
        "line 6: return min(x, not «4»)  ->  (3)",
        "line 6: return min(x, not «4»)  ->  (5)",
    ]
    assert [m.once for m in mutants(SAMPLE)][:3] == [True, True, False]


@pytest.mark.parametrize("module", MODULES)
def test_mutants_of_the_packer_are_other_programs(module):
    text = (ROOT / "pgolf" / f"{module}.py").read_bytes()
    honest = ast.dump(ast.parse(text))
    for mutant in mutants(text)[::25]:
        assert ast.dump(ast.parse(mutant.apply(text))) != honest


def test_every_module_has_its_tests():
    assert set(MODULES) <= set(TESTS)
    assert all((ROOT / "pgolf" / f"{module}.py").is_file() for module in TESTS)
    assert set(TESTS) >= INTERPRETED | REBUILT
    for names in TESTS.values():
        assert all((ROOT / "tests/{}/test_{}.py".format(*name.split("/"))).is_file() for name in names)
