"""The shapes of our own model and its options, each switched by one number; a checkpoint carries them all.

An option's default is off, so that a configuration without it rebuilds the model that it was written for.
docs/MODELS.md tells what each is worth.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, fields
from typing import Any

from pgolf.errors import UsageError

MOST = 1 << 53  # of any number in a configuration


@dataclass(frozen=True)
class GPTConfig:
    """Shapes and options of a `GPT`.

    rope_dims: rotated dimensions of each head (even); softcap: bound of the logits' magnitude; bos_id: the token that
    begins a document, which SmearGate and BigramHash never look across; None: there is none.

    Options, off at 0; each is one file of `pgolf.train.model.parts`, which names its source:

    xsa: last layers whose attention leaves out a token's own value. smear: 1 mixes the previous token's embedding in.
    bigram_buckets, bigram_dim: rows and width of the table of hashed token pairs. loop: middle layers run twice once
    the loop is on; loop_untied: how many of them get an MLP of their own for it. resid_mix: 1 mixes the embedding into
    every block's input. spectral: exponent of the power law of the embedding's first singular values. attn_gate:
    channels that each head's output gate reads. value_residual: 1 mixes the first layer's values into the others'.
    lanes: last layers whose attention and MLP run side by side on two residual streams.
    """

    vocab_size: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    mlp_mult: int
    rope_dims: int = 16
    rope_base: float = 10000.0
    softcap: float = 30.0
    bos_id: int | None = 1
    xsa: int = 0
    smear: int = 0
    bigram_buckets: int = 0
    bigram_dim: int = 64
    loop: int = 0
    loop_untied: int = 0
    resid_mix: int = 0
    spectral: float = 0.0
    attn_gate: int = 0
    value_residual: int = 0
    lanes: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "dim", "heads", "kv_heads", "mlp_mult"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be at least 1")
        if self.dim % self.heads or self.heads % self.kv_heads:
            raise UsageError(f"dim {self.dim}, heads {self.heads} and kv_heads {self.kv_heads} must divide in turn")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise UsageError(f"rope_dims {self.rope_dims} must be even and at most the head's {self.head_dim}")
        self._check_options()

    def _check_options(self) -> None:
        limits = {"xsa": self.layers, "loop": self.layers, "lanes": self.layers, "attn_gate": self.dim}
        limits |= {"loop_untied": self.loop, "smear": 1, "resid_mix": 1, "value_residual": 1}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise UsageError(f"{name} {getattr(self, name)} must lie between 0 and {limit}")
        if self.bigram_buckets == 1 or (self.bigram_buckets and self.bigram_dim < 1):
            raise UsageError("bigram_buckets must be 0 or at least 2, and bigram_dim at least 1")
        if self.looped and self.lanes and self.looped[-1] >= self.layers - self.lanes:
            raise UsageError(f"loop {self.loop} and lanes {self.lanes} overlap: a looped layer has one residual stream")

    @staticmethod
    def checked(values: dict[str, Any]) -> GPTConfig:
        """The configuration in a stranger's checkpoint.

        TypeError for an unknown name, and unless counts are integers and the rest finite numbers, above zero where
        zero does not switch something off. UsageError for shapes that do not fit.
        """
        for field in fields(GPTConfig):
            if field.name in values and not _holds(field, values[field.name]):
                raise TypeError(f"{field.name} is {values[field.name]!r}")
        return GPTConfig(**values)

    @property
    def least_weights(self) -> int:
        """Fewer than the model has, in closed form: what a file must hold for it to be built."""
        mlp = 2 * self.mlp_mult * self.dim**2
        blocks = self.layers * (2 * self.dim**2 + mlp) + self.loop_untied * mlp
        return self.vocab_size * self.dim + blocks + self.bigram_buckets * self.bigram_dim

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def looped(self) -> range:
        """The layers that `loop` runs twice."""
        first = (self.layers - self.loop) // 2
        return range(first, first + self.loop)


def _holds(field: Field[Any], value: object) -> bool:
    if value is None:
        return "None" in str(field.type)
    whole = str(field.type).startswith("int")
    if not (type(value) is int or (type(value) is float and not whole and math.isfinite(value))) or value >= MOST:
        return False
    return value > 0 or (value == 0 and (field.default == 0 or field.name in {"rope_dims", "bos_id"}))


PRESETS = {
    "tiny": GPTConfig(vocab_size=1024, layers=2, dim=192, heads=3, kv_heads=1, mlp_mult=3),
    "small": GPTConfig(  # a third of its weights is a table, which costs a CPU nothing: twice the tokens in its 20 minutes
        vocab_size=1024,
        layers=3,
        dim=256,
        heads=4,
        kv_heads=2,
        mlp_mult=3,
        smear=1,
        bigram_buckets=32768,
        bigram_dim=32,
        attn_gate=16,
        value_residual=1,
    ),
    "golf": GPTConfig(  # with the options that paid on `small`, see docs/MODELS.md
        vocab_size=8192,
        layers=11,
        dim=512,
        heads=8,
        kv_heads=4,
        mlp_mult=4,
        smear=1,
        bigram_buckets=4096,
        bigram_dim=128,
    ),
}
