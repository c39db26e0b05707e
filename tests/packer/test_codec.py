from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer.backends import rans_numba
from pgolf.packer.coder import codec, tables
from pgolf.packer.format import plain
from pgolf.packer.plane import HALF, SPREAD_STEPS, Plane, Scale, Spread


def weights_like(rows, cols, sigma=2.0, seed=0, per_octave=8):
    """Codes with lognormal row and column spreads, and the scales that a quantizer would choose."""
    rng = np.random.default_rng(seed)
    r, c = np.exp(rng.normal(0, 0.4, rows)), np.exp(rng.normal(0, 0.5, cols))
    codes = np.rint(rng.normal(0, sigma, (rows, cols)) * r[:, None] * c).astype(np.int32)
    return Plane(codes, Scale.nearest(0.01 / r, per_octave), Scale.nearest(c, HALF))


def trellis_plane(rows, cols):
    """All even codes lead from state 0 to itself on branch 0: multiples of four are a path."""
    rng = np.random.default_rng(1)
    codes = 4 * rng.integers(-5, 6, (rows, cols)).astype(np.int32)
    return Plane(codes, None, None, 8, -3, Spread(rng.integers(8, 12, rows), rng.integers(-2, 3, cols)))


def round_trip(planes, loops=rans_numba):
    packed = codec.encode(planes, loops)
    codec.check_planes(packed.head["planes"])
    return packed, codec.read(packed.head, packed.sections, loops)


def assert_same(before, after):
    assert after.codes.shape == before.codes.shape
    assert (after.codes == before.codes).all()
    for old, new in ((before.row_scale, after.row_scale), (before.col_scale, after.col_scale)):
        assert (old is None) == (new is None)
        if old is not None and new is not None:
            assert new.per_octave == old.per_octave
            assert (new.index == old.index).all()


PLANES = {
    "usual": weights_like(512, 60),
    "fine scales": weights_like(40, 30, per_octave=64),
    "octaves": weights_like(9, 7, per_octave=1),
    "wide": weights_like(300, 20, 500.0),
    "sparse": weights_like(300, 40, 0.05),
    "bare": Plane(np.arange(-20, 20, dtype=np.int32).reshape(8, 5)),
    "zeros": Plane(np.zeros((64, 64), np.int32)),
    "constant": Plane(np.full((64, 64), 7, np.int32)),
    "one": Plane(np.array([[-3]], np.int32)),
    "no rows": Plane(np.zeros((0, 5), np.int32), None, Scale(np.zeros(5, np.int32), 8)),
    "no columns": Plane(np.zeros((5, 0), np.int32), Scale(np.arange(5, dtype=np.int32), 4)),
    "16 bits": Plane(np.random.default_rng(0).integers(-(2**15), 2**15, (40, 30)).astype(np.int32)),
    "32 bits": Plane(np.random.default_rng(0).integers(-(2**31), 2**31, (40, 30)).astype(np.int32)),
    "skew": Plane(np.where(np.random.default_rng(0).random((200, 200)) < 1e-4, 10**6, 0).astype(np.int32)),
    "trellis": trellis_plane(1030, 6),
}


@pytest.mark.parametrize("name", PLANES)
def test_one_plane_round_trip(name):
    _, (after,) = round_trip([PLANES[name]])
    assert_same(PLANES[name], after)
    if PLANES[name].trellis:
        assert (after.trellis, after.trellis_from) == (8, -3)
        assert (after.spread.rows == PLANES[name].spread.rows).all()


@pytest.mark.parametrize("loops", [None, rans_numba])
def test_all_planes_together(loops):
    _, after = round_trip(list(PLANES.values()), loops)
    for old, new in zip(PLANES.values(), after, strict=True):
        assert_same(old, new)


def test_nothing_round_trips():
    assert round_trip([])[1] == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 31), st.integers(0, 2**32))
def test_any_matrix_round_trips(rows, cols, bits, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-(2**bits), 2**bits, (rows, cols)).astype(np.int32)
    plane = Plane(codes, Scale(rng.integers(-500, 500, rows).astype(np.int32), 4))
    assert_same(plane, round_trip([plane])[1][0])


def test_bits_add_up_to_the_sections():
    packed, _ = round_trip([weights_like(2048, 200), weights_like(512, 300, seed=1)])
    claimed = (sum(packed.plane_bits) + sum(packed.side_bits)) / 8
    size = sum(map(len, packed.sections.values()))
    assert claimed < size < 1.004 * claimed + 400


def test_spread_classes_beat_one_histogram():
    plane = weights_like(1024, 512)
    counts = np.unique(plane.codes, return_counts=True)[1]
    one_histogram = float((counts * np.log2(plane.codes.size / counts)).sum())
    packed = codec.encode([plane])
    assert packed.plane_bits[0] + packed.side_bits[0] - 16 * 512 < 0.97 * one_histogram


def test_classes_follow_the_row_scale_for_nothing():
    """Steps in proportion to the rows' spread: the class plus the scale's octaves is one constant."""
    rng = np.random.default_rng(0)
    octaves = rng.integers(-12, 12, 2000).astype(np.int32)
    codes = np.rint(rng.normal(0, 300.0, (2000, 50)) * np.exp2(-octaves / SPREAD_STEPS)[:, None]).astype(np.int32)
    plane = Plane(codes, Scale(octaves, SPREAD_STEPS))
    packed, (after,) = round_trip([plane])
    assert_same(plane, after)
    assert packed.head["planes"][0][5][2][0] == 1
    assert packed.side_bits[0] < 2000 * (np.log2(24) + 1.5)  # the scales themselves, and little else


def test_the_same_bytes_for_any_number_of_threads(monkeypatch):
    planes = [weights_like(300, 200), weights_like(100, 70, seed=2)]
    first = codec.encode(planes, rans_numba)
    for count in (1, 3):
        monkeypatch.setattr("pgolf.common.threads.workers", lambda count=count: count)
        assert codec.encode(planes, rans_numba) == first


def _record(head):
    return head["planes"][0]


def _set(at, value):
    def change(head):
        _record(head)[at] = value

    return change


def _vector(which, at, value):
    def change(head):
        _record(head)[5][which][at] = value

    return change


HOSTILE = {
    "negative rows": _set(0, -512),
    "a bool": _set(0, True),
    "a float": _set(1, 60.0),
    "huge": _set(0, 1 << 50),
    "half of 2^33": _set(0, 1 << 30),
    "many rows of nothing": lambda head: _record(head).__setitem__(slice(2), [1 << 30, 0]),
    "trellis": _set(2, 6),
    "a trellis with a scalar's tables": _set(2, 8),
    "family": _set(4, 6),
    "a trellis' family": _set(4, 1),
    "vectors": _set(5, []),
    "no vectors": _set(5, None),
    "steps": _vector(0, 0, 3),
    "base": _vector(0, 1, 1 << 30),
    "class": _vector(0, 2, 1 << 20),
    "vector's family": _vector(0, 3, 12),
    "short vector": lambda head: _record(head)[5][0].pop(),
    "no classes": lambda head: _record(head)[5].__setitem__(2, None),
    "follows half bits": _vector(3, 0, 1),
    "another kind of following": _vector(2, 0, 2),
    "a constant instead": lambda head: _record(head)[5].__setitem__(0, [8, 0]),
    "short record": lambda head: _record(head).pop(),
    "no record": lambda head: head["planes"].pop(),
    "string": lambda head: head["planes"].__setitem__(0, "plane"),
}


def checked_read(packed):
    codec.check_planes(packed.head["planes"])
    return codec.read(packed.head, packed.sections)


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_headers_are_refused(how):
    packed = codec.encode([weights_like(512, 60)])
    HOSTILE[how](packed.head)
    with pytest.raises((ArtifactError, ValueError, TypeError, StopIteration)):
        checked_read(packed)


def test_an_index_that_no_reader_takes_is_a_bug():
    for limit in (1 << 20, -(1 << 20)):
        plane, beyond = (
            Plane(np.zeros((2, 2), np.int32), Scale(np.array([0, i], np.int32), 8)) for i in (limit, 2 * limit)
        )
        assert_same(plane, round_trip([plane])[1][0])
        with pytest.raises(ValueError, match="index"):
            codec.encode([beyond])


@pytest.mark.parametrize("name", [n for n in PLANES if n != "trellis"])
def test_plain_round_trip(name):
    sections, head = plain.encode([PLANES[name]])
    plain.check_planes(head["planes"])
    limits = plain.section_limits(head["planes"])
    assert {n: (len(d), len(d)) for n, d in sections.items()} == {n: size for n, size in limits.items() if size[1]}
    assert_same(PLANES[name], plain.read(head, sections)[0])


def test_plain_planes_all_together():
    planes = list(PLANES.values())
    sections, head = plain.encode(planes)
    for old, new in zip(planes, plain.read(head, sections), strict=True):
        assert_same(old, new)


def test_plain_codes_take_the_narrowest_width():
    sections, _ = plain.encode([PLANES["usual"], PLANES["16 bits"], PLANES["32 bits"]])
    assert {n: len(d) for n, d in sections.items() if n.startswith("codes")} == {
        "codes.1": 512 * 60, "codes.2": 2 * 1200, "codes.4": 4 * 1200,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "width"),
    [
        (0, 127, 1), (-128, 0, 1), (0, 128, 2), (-129, 0, 2), (-(2**15), 2**15 - 1, 2), (0, 2**15, 4),
        (-(2**15) - 1, 0, 4), (-(2**31), 2**31 - 1, 4),
    ],
)  # fmt: skip
def test_plain_widths_at_their_ends(low, high, width):
    plane = Plane(np.array([[low, high]], np.int32))
    sections, head = plain.encode([plane])
    assert list(sections) == [f"codes.{width}"]
    assert_same(plane, plain.read(head, sections)[0])


@pytest.mark.parametrize(
    "fields",
    [
        [1, 2, 0, 0],
        [1, 2, 0, 0, 3],
        [-1, 2, 0, 0, 1],
        [1, 2, 5, 0, 1],
        [1, 2, 0, 5, 1],
        [1, -2, 0, 0, 1],
        [1, True, 0, 0, 1],
        7,
    ],
)
def test_plain_hostile_records(fields):
    with pytest.raises(ArtifactError, match="plane record"):
        plain.check_planes([fields])


def test_section_limits_literal():
    """Of 12 codes under the tables of families 0 to 2, and 4 classes under those of 0 and 1; then no codes under family 0."""
    most = 255 * tables.MAX_BYTES
    records = [[4, 3, 0, 0, 2, [None, None, [0, 0, 0, 1], [0, 0]]], [0, 0, 0, 0, 0, [None, None, [0, 0, 0, 0], [0, 0]]]]
    side = {"tables": 20 + most, "lanes": 32, "words": 8, "aside": 12, "escapes": 16}
    codes = {"tables": 30 + most, "lanes": 96, "words": 24, "aside": 36, "escapes": 48}
    limits = {f"{name}.{part}": (0, n) for name, of in (("side", side), ("codes", codes)) for part, n in of.items()}
    assert codec.section_limits(records) == limits
    nothing = codec.section_limits([])
    assert {name: sizes for name, sizes in nothing.items() if sizes[1]} == {
        "side.tables": (0, most),
        "codes.tables": (0, most),
    }


@pytest.mark.parametrize(("cols", "stream"), [(3, "codes"), (0, "side")])
def test_more_codes_than_a_stream_can_hold(cols, stream):
    record = [4, cols, 0, 0, 0, [None, None, [0, 0, 0, 0], [0, 0]]]
    enough = {"codes.lanes": bytes(8), "side.lanes": bytes(8)}
    codec.check_amounts([record], enough)
    del enough[f"{stream}.lanes"]
    with pytest.raises(ArtifactError, match=f"{4 * (cols or 1)} codes cannot be in"):
        codec.read({"planes": [record]}, enough)


def test_more_codes_than_are_read():
    """2^33 codes pass, one row more does not; both readers draw the line there."""
    for side in (1 << 16, (1 << 16) + 1):
        records = [[[side, 1 << 17, -1, -1, 1]], [[side, 1 << 17, 0, 0, 0, [None, None, [0, 0], [0, 0]]]]]
        for check, record in zip((plain.check_planes, codec.check_planes), records, strict=True):
            if side == 1 << 16:
                check(record)
            else:
                with pytest.raises(ArtifactError, match="more codes"):
                    check(record)


@pytest.mark.parametrize("shape", [[(1 << 31) - 1, 1], [1, (1 << 31) - 1], [1 << 31, 1], [1, 1 << 31]])
def test_sides_of_planes_end_where_the_format_ends(shape):
    records = [*shape, -1, -1, 1], [*shape, 0, 0, 0, [None, None, [0, 0], [0, 0]]]
    for check, record in zip((plain.check_planes, codec.check_planes), records, strict=True):
        if max(shape) < 1 << 31:
            check([record])
        else:
            with pytest.raises(ArtifactError, match="plane record"):
                check([record])


def test_indices_of_scales_and_classes_stay_within_their_range():
    limit = 1 << 20
    codec.check_indices(np.array([limit, -limit]), None, np.zeros(0, np.int32))
    for index in (limit + 1, -limit - 1):
        with pytest.raises(ArtifactError, match="out of range"):
            codec.check_indices(None, np.array([0, index]))


def plane_record(row_scale=None, rows=None):
    return [4, 3, 0, 0, 0, [row_scale, None, rows or [0, 0], [0, 0]]]


def test_scales_have_the_steps_of_the_format():
    taken = []
    for steps in range(-1, 130):
        with suppress(ArtifactError):
            codec.check_planes([plane_record(row_scale=[steps, 0])])
            plain.check_planes([[4, 3, steps, 0, 1]])
            taken.append(steps)
    assert taken == [0, 1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("at", [2, 3])
def test_classes_and_families_of_vectors_stay_within_their_range(at):
    for number in (999, -999, 1000, -1000):
        vector = [0, 0, 0, 0]
        vector[at] = number
        if abs(number) < 1000:
            codec.check_planes([plane_record(rows=vector)])
        else:
            with pytest.raises(ArtifactError, match="plane record"):
                codec.check_planes([plane_record(rows=vector)])


def test_rows_without_codes_are_bounded_too():
    most = 1 << 20
    shapes = {(most, 0): True, (0, most): True, (most + 1, 0): False, (0, most + 1): False}
    for shape, good in shapes.items():
        record = [*shape, 0, 0, 0, [None, None, [0, 0], [0, 0]]]
        codec.check_planes([record] if good else [])
        with pytest.raises(ArtifactError, match="rows without codes"):
            codec.check_planes([record, [0, 1, *record[2:]]] if good else [record])


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({0: -1}, False), ({1: -1}, False), ({3: 1 << 20}, True), ({3: -(1 << 20)}, True), ({3: (1 << 20) + 1}, False),
        ({5: [None, None, [0, 0]]}, False), ({5: [None, None, [0, 0], [0, 0], [0, 0]]}, False),
        ({5: [[3, 0], None, [0, 0], [0, 0]]}, False), ({5: [None, [3, 0], [0, 0], [0, 0]]}, False),
        ({5: [None, None, None, [0, 0]]}, False), ({5: [None, None, [0, 0], None]}, False),
        ({5: [None, None, [0, 1 << 20], [0, 0]]}, True), ({5: [None, None, [0, -(1 << 20) - 1], [0, 0]]}, False),
        ({5: [None, None, [0, 0, 0, 0, 0], [0, 0]]}, False), ({5: [None, None, [0], [0, 0]]}, False),
    ],
)  # fmt: skip
def test_plane_records_at_their_ends(change, good):
    record = plane_record()
    for at, value in change.items():
        record[at] = value
    if good:
        codec.check_planes([record])
    else:
        with pytest.raises(ArtifactError, match="plane record"):
            codec.check_planes([record])


@pytest.mark.parametrize(
    ("scale", "kinds"), [(None, {0}), ([HALF, 0], {0}), ([1, 0], {0, 1}), ([8, 5], {0, 1}), ([8, 5, 1, 0], {0, 1})]
)
def test_classes_follow_only_what_has_steps(scale, kinds):
    taken = set()
    for kind in range(-2, 9):
        with suppress(ArtifactError):
            codec.check_planes([[4, 3, 0, 0, 0, [scale, None, [kind, 0], [0, 0]]]])
            codec.check_planes([[4, 3, 0, 0, 0, [None, scale, [0, 0], [kind, 0]]]])
            taken.add(kind)
    assert taken == kinds


def test_integers_are_of_a_moderate_size():
    assert codec.all_integers([2**40 - 1, 1 - 2**40])
    assert not any(codec.all_integers([0, odd]) for odd in (2**40, -(2**40), True, 1.0, None, "1"))


def test_classes_that_follow_out_of_range_are_refused():
    record = [4, 0, 0, 0, 0, [[1, 1 << 20], None, [1, 0], [0, 0]]]
    codec.check_planes([record])
    with pytest.raises(ArtifactError, match="index is out of range"):
        codec.read({"planes": [record]}, {})


def test_the_spread_class_of_a_vector():
    """Four times log2 of the residual's standard deviation, however rare what is not zero."""
    assert codec._vector(np.array([95, 100, 105] * 2 + [84, 116]), 8).base == 100
    assert codec._vector(np.array([-8, 8] * 9), 8).spread_class == 12
    assert codec._vector(np.eye(1, 1 << 12, dtype=np.int32)[0], 8).spread_class == -20
