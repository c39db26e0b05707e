"""Quantization-aware training: hooks for anybody's trainer, the grids that they round to, what their codes would cost."""

from pgolf.common import moved

__getattr__ = moved.names(__name__, {"QAT": "hooks"})
