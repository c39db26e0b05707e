"""Settings that differ are named, however deep they lie."""

from pgolf.common.nested import differences


def test_differences_go_into_nested_settings():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}) == {
        "a.c": (2, 4),
        "d": (3, None),
        "e": (None, 5),
    }
    assert list(differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}})) == ["a.c", "d"]
    assert differences({"a": {"b": None}}, {"a": {}}) == {}
