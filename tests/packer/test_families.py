import numpy as np
import pytest

from pgolf.errors import ArtifactError
from pgolf.packer.coder import families
from pgolf.packer.coder.families import MAX_TABLES, SLOTS


def counts(*cells):
    """int64 [SLOTS, 256] from (slot, symbol, count)."""
    out = np.zeros((SLOTS, 256), np.int64)
    for slot, symbol, count in cells:
        out[slot, symbol] = count
    return out


def filled(slots, symbol, count=10_000):
    """So many slots, each of one symbol."""
    return counts(*((slot, symbol, count) for slot in range(slots)))


def test_numbers_of_the_format():
    assert (SLOTS, families.BITMAP_BYTES, families.MAX_FAMILIES) == (80, 10, 256)


def test_saving_literal():
    """256 symbols take 2 bits each from the shared table and 1 from an own one, whose two symbols cost 10 bits each."""
    own = counts((4, 5, 128), (4, 6, 128))
    assert families._saving(own, own + counts((4, 7, 256), (6, 7, 1))) == 256 * 2 - 256 - 2 * 10


def test_a_matrix_shares_unless_its_own_tables_pay():
    mine, other = filled(1, 5), filled(1, 6)
    assert families.choose_families([], []) == []
    assert families.choose_families([mine, mine], [False, True]) == [0, 1]
    assert families.choose_families([mine, mine, mine], [False] * 3) == [0, 0, 0]
    assert families.choose_families([filled(1, 5, 3), filled(1, 6, 3)], [False] * 2) == [0, 0]
    assert families.choose_families([mine, other], [False, True]) == [0, 1]


def test_private_families_are_even_for_scalar_codes_and_odd_for_trellises():
    mine, other, third = filled(1, 5), filled(1, 6), filled(1, 7)
    chosen = families.choose_families([mine, other, third] * 2, [False] * 3 + [True] * 3)
    assert sorted(chosen) == [2, 3, 4, 5, 6, 7]
    assert all(family % 2 == trellis for family, trellis in zip(chosen, [False] * 3 + [True] * 3, strict=True))


def test_the_largest_saving_gets_the_tables_while_there_is_room():
    """Besides all shared tables there is room for 135, and 34 slots may take 68."""
    few, more, most = filled(34, 5, 10_000), filled(34, 6, 20_000), filled(34, 7, 30_000)
    assert families.choose_families([few, more, most], [False] * 3) == [
        0,
        2,
        0,
    ]  # 10 000 · log2 6 < 30 000 · log2 2 < 20 000 · log2 3
    room = MAX_TABLES - SLOTS - SLOTS // 2
    exactly = families.choose_families([filled(room // 2, 5, 50), filled(room // 2, 6, 50_000)], [False] * 2)
    assert sorted(exactly) == [0, 2]
    assert families.choose_families([filled(room // 2 + 1, 5), filled(room // 2 + 1, 6)], [False] * 2) == [0, 0]


def test_families_end_where_the_format_ends(monkeypatch):
    monkeypatch.setattr(families, "MAX_FAMILIES", 4)
    matrices = [filled(1, symbol) for symbol in range(10, 16)]
    assert sorted(families.choose_families(matrices, [False] * 3 + [True] * 3)) == [0, 0, 1, 1, 2, 3]


def test_any_choice_can_be_written():
    """Tables of all families, of which a trellis needs both parities, are no more than a context can name."""
    rng = np.random.default_rng(0)
    matrices = [filled(int(rng.integers(1, SLOTS)), symbol, 10_000) for symbol in range(2, 30)]
    trellis = [bool(symbol % 2) for symbol in range(2, 30)]
    chosen = families.choose_families(matrices, trellis)
    used = families.directory(matrices, chosen)
    assert used.sum() <= MAX_TABLES
    assert (families.parse(families.dump(used)) == used).all()


def test_a_trellis_has_tables_of_both_parities():
    used = families.directory([counts((3, 9, 1)), counts((3, 9, 1), (6, 9, 1))], [2, 1])
    assert used.shape == (3, SLOTS)
    assert np.argwhere(used).tolist() == [[1, 2], [1, 3], [1, 6], [1, 7], [2, 3]]
    assert families.directory([], []).shape == (0, SLOTS)


def test_totals_are_of_all_that_share_a_table():
    matrices = [counts((0, 9, 1)), counts((0, 9, 2), (5, 9, 3)), counts((0, 9, 4))]
    used = families.directory(matrices, [0, 0, 2])
    assert families.totals(used, matrices, [0, 0, 2])[:, 9].tolist() == [3, 3, 4]


def test_as_many_tables_as_a_context_can_name_are_read():
    used = np.arange(SLOTS) < [[80], [80], [79], [16]]
    assert used.sum() == MAX_TABLES == 255
    assert (families.parse(families.dump(used)) == used).all()
    used[2] = True
    with pytest.raises(ArtifactError, match="directory"):
        families.parse(families.dump(used))
