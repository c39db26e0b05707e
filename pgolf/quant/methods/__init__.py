"""Quantizers, one a file: (weight, curvature, settings) → Plane."""
