"""How large everything is that is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """layers: of the synthetic artifact. linear, large: [R, C] of products; compared: of those that are compared with others';
    inputs: rows of x. tokens, vocab, dim: of the losses. weights: [R, C] that `dequant` makes. copy_bytes, square: of the
    limits. preset, seq_len, batch, batches: of the evaluation. trained: the preset whose training steps are timed, with and
    without QAT, `updates` of each. peak_tflops: dense bfloat16 peak of the device, for MFU. shapes, embedding: of the synthetic
    artifact's layers and table. toy: small enough for a processor, where a run shows that everything works and its figures
    mean nothing."""

    layers: int = 11
    shapes: tuple[tuple[int, int], ...] = ((512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048))
    embedding: tuple[int, int] = (8192, 512)
    linear: tuple[tuple[int, int], ...] = (
        (512, 512), (256, 512), (2048, 512), (512, 2048), (8192, 512), (4096, 4096), (8192, 8192),
    )  # fmt: skip
    large: tuple[int, int] = (8192, 8192)
    compared: tuple[tuple[int, int], ...] = ((512, 512), (512, 2048), (8192, 8192))
    inputs: tuple[int, ...] = (1, 4, 16, 64, 256, 8192)
    tokens: int = 8192
    vocab: int = 8192
    dim: int = 512
    weights: tuple[int, int] = (70_000, 512)
    copy_bytes: int = 1 << 29
    square: int = 8192
    preset: str = "golf"
    seq_len: int = 1024
    batch: int = 32
    batches: int = 40
    trained: str = "golf"
    updates: int = 40
    peak_tflops: float = 989.0
    toy: bool = False


TOY = Sizes(
    layers=1, shapes=((12, 6),), embedding=(10, 6), linear=((16, 32),), large=(16, 32), compared=((16, 32),), inputs=(1, 3),
    tokens=3, vocab=70, dim=8, weights=(5, 7), copy_bytes=64, square=8, preset="tiny", seq_len=16, batch=2, batches=2,
    trained="tiny", updates=1, toy=True,
)  # fmt: skip
