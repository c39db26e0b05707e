"""What an error in a weight costs: traced products, their sums H and G, where they are kept, and text to collect them on."""

from pgolf.common import moved

__getattr__ = moved.names(__name__, {"Curvature": "store", "MatrixCurvature": "store"})
