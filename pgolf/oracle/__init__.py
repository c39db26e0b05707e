"""What a training log says of the end of its run: logs.py reads, features.py describes, model.py foresees, curve.py extrapolates.

The fitted numbers are coefficients.json, made by benchmarks/oracle.py; docs/ORACLE.md says how good they are. No torch here.
"""
