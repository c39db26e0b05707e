import json

import pytest

from pgolf.sweep import demo_story


@pytest.mark.slow
def test_the_quick_demo_tells_the_whole_story_twice_alike(tmp_path):
    results = [demo_story.run(tmp_path / name, quick=True, progress=lambda *_: None) for name in ("a", "b")]
    for name in ("contest.pgolf", "pgolf-0.pgolf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == results[0]
    assert (tmp_path / "a" / "frontier.png").stat().st_size > 5000
    contest, ours = (next(p for p in results[0]["points"] if p["series"] == n) for n in ("contest packer", "pgolf"))
    assert ours["bytes"] <= contest["bytes"]
    assert abs(ours["bpb"] - results[0]["bpb_before"]) < 0.05
