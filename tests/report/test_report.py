import json

import pytest

from pgolf import report
from pgolf.report import Report, TensorRow


@pytest.fixture
def made():
    rows = [
        TensorRow("up.weight", [64, 32], "float32", "gptq int6 k=12.85", "", 2048, 900.0, 0.11, 1.5e-4),
        TensorRow("gain", [32], "float32", "kept as float32", "a vector", 32, 120.0),
    ]
    return Report(
        rows,
        b"x" * 1100,
        {"train.py": 300},
        budget=1500,
        step=1.25,
        notes=["state dict found under 'model'"],
        shared_bytes=80,
    )


def test_derived_figures(made):
    assert made.bits_per_weight == pytest.approx(8 * 900 / 2048)
    assert made.total_bytes == 1400
    assert made.headroom == 100
    assert made.loss_rise == 1.5e-4


def test_json_holds_everything_but_the_artifact(made):
    facts = json.loads(json.dumps(made.to_json()))
    assert facts["artifact_bytes"] == 1100
    assert facts["headroom"] == 100
    assert facts["rows"][0]["bits_per_weight"] == pytest.approx(3.515625)
    assert "data" not in facts


def test_the_summary_tells_sizes_and_notes(made):
    summary = "\n".join(report.pack_summary(made.to_json()))
    assert "headroom 100 B (6.67%)" in summary
    assert "300 B  train.py" in summary
    assert "state dict found under 'model'" in summary
    assert "shared             80 B of header and tables" in summary


def test_json_is_written_whole(tmp_path):
    report.write_json(tmp_path / "r.json", {"b": 1, "a": [1.5]})
    assert (tmp_path / "r.json").read_text() == '{\n "a": [\n  1.5\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        report.write_json(tmp_path / "r.json", {"a": float("nan")})
    assert json.loads((tmp_path / "r.json").read_text())["b"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json"]
