"""Quantization-aware training: hooks for anybody's trainer, the grids that they round to, what their codes would cost."""
