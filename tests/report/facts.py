"""What the pictures and pages of these tests are drawn from, as `pgolf sweep` and `pgolf inspect` would give it."""

NASTY = "</script><b>&\"'"


def point(series, size, rise, **more):
    return {
        "key": f"{series}-{size}", "series": series, "label": f"{size:,} B", "bytes": size, "bits_per_weight": 3.0,
        "bpb": 1.5 + rise, "rise": rise, "pack_seconds": 1.0, **more,
    }  # fmt: skip


def sweep():
    """Every kind of point: refused, better than the unquantized model, with a spread, of a method with a nasty name."""
    points = [
        *(point("auto", size, rise) for size, rise in ((800_000, 0.02), (1_200_000, 0.004), (1_600_000, -0.0001))),
        *(point("contest", size, rise) for size, rise in ((1_200_000, 0.02), (1_500_000, 0.008))),
        point(NASTY, 1_000_000, 0.05, rise_spread=0.001),
        {"key": "r", "series": "rtn", "label": "900 B", "refused": "does not fit"},
    ]
    row = {
        "series": "auto", "baseline": "k=20", "baseline_bytes": 1_200_000, "baseline_bpb": 1.52, "baseline_rise": 0.02,
        "bytes_at_equal_bpb": 800_000, "bytes_ratio": 2 / 3, "bytes_extrapolated": False, "bpb_at_equal_bytes": 1.504,
        "rise_at_equal_bytes": 0.004, "rise_ratio": 0.2, "bpb_extrapolated": True,
    }  # fmt: skip
    before = {"bpb": 1.5, "tokens": 1000, "weights": 3_000_000}
    return {"points": points, "before": before, "baseline": "contest", "pareto": ["auto-800000"], "comparison": [row]}


def artifact():
    """Every kind of tensor: quantized with and without curvature, shared, kept, a scalar, with a long or a nasty name."""
    head = {
        "name": "tok_emb.weight", "shape": [64, 48], "dtype": "float32", "weights": 3072, "note": "auto trellis=8",
        "bytes": 2290.5, "bits_per_weight": 5.965, "code_range": [-102, 122], "histogram": {"step": 4, "counts": [0, 3, 9, 2]},
        "curvature_share": 0.74,
    }  # fmt: skip
    long = head | {"name": f"{'blocks.0.' * 8}{NASTY}", "bytes": 800.0, "curvature_share": 0.0}
    shared = {
        "name": "lm_head", "shape": [64, 48], "dtype": "float32", "weights": 0, "note": "", "shared_with": "tok_emb.weight",
        "bytes": 0.0, "bits_per_weight": 0.0, "histogram": {"step": 1, "counts": [0, 0]},
    }  # fmt: skip
    scalar = {"name": "gain", "shape": [], "dtype": "float32", "weights": 1, "note": "a scalar", "bytes": 4.0,
              "bits_per_weight": 32.0}  # fmt: skip
    layers = [
        {"layer": "tok_emb", "weights": 3072, "bytes": 2290.5, "bits_per_weight": 5.965, "curvature_share": 0.74},
        {"layer": NASTY, "weights": 3073, "bytes": 804.0, "bits_per_weight": 2.1, "curvature_share": None},
    ]
    return {
        "bytes": 3500,
        "shared_bytes": 405.5,
        "weights": 6145,
        "layers": layers,
        "tensors": [head, long, shared, scalar],
    }
