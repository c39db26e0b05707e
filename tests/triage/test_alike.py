"""Near-duplicates are found by code alone, the same in every process."""

import subprocess
import sys

import numpy as np
import pytest

from pgolf.triage import alike
from pgolf.triage.script import code_of


def words(seed, count=2000):
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 300, count)]


def test_the_share_is_jaccards_and_near_one_half_where_half_is_shared():
    one, other = words(1), words(2)
    assert alike.jaccard(alike.shingles(one), alike.shingles(one)) == 1
    assert alike.jaccard(alike.shingles(one), alike.shingles(other)) == 0
    assert alike.jaccard(alike.shingles(one + other), alike.shingles(one)) == pytest.approx(0.5, abs=0.01)


def test_a_sketch_estimates_it():
    one, other = alike.shingles(words(1, 4000)), alike.shingles(words(1, 4000)[:3000])
    shared = (alike.sketch(one) == alike.sketch(other)).mean()
    assert shared == pytest.approx(alike.jaccard(one, other), abs=0.15)


def test_comments_strings_and_spaces_do_not_matter_and_names_do():
    source = "".join(f"a{n} = b{n} + f('text {n}')\n" for n in range(40))
    other = source.replace("text", "other") + "# a comment\n"
    assert code_of(source).tokens == code_of(other.replace(" = ", "=")).tokens
    assert code_of(source).tokens != code_of(source.replace("b7", "c7")).tokens


def test_groups_have_a_first_script_to_which_all_are_near():
    base = words(3)
    scripts = {
        "a": base,
        "b": base[:1900] + words(4, 100),
        "c": words(5),
        "d": base[:1850] + words(6, 150),
        "e": [],
        "f": ["x"],
    }
    near = alike.pairs({name: alike.shingles(tokens) for name, tokens in scripts.items()})
    assert set(near) == {("a", "b"), ("a", "d"), ("b", "d")}
    assert alike.clusters(list(scripts), near) == [["a", "b", "d"]]


def test_a_chain_is_no_group():
    near = {("a", "b"): 0.9, ("b", "c"): 0.9, ("c", "d"): 0.9}
    assert alike.clusters(list("abcd"), near) == [["a", "b"], ["c", "d"]]


def test_hashes_are_the_same_in_another_process():
    program = "from pgolf.triage import alike; print(alike.sketch(alike.shingles(list('abcdefghijkl')))[:3].tolist())"
    said = {subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": s, "PYTHONPATH": ":".join(sys.path)},
                           capture_output=True, text=True, check=True).stdout for s in ("1", "2")}  # fmt: skip
    assert len(said) == 1
