"""What others make of a matrix: its codes, what a file would hold beside them, and the weights that come out.

Each by its own package at the settings that its documentation shows; nothing here sees text. A package that is not
installed is left out, and who calls says so. They know matrices only: `apart` makes such of a model, `together` undoes it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple
from unittest.mock import MagicMock

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GGUF_KINDS = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
GGUF_SIDE = {
    "Q8_0": 2,
    "Q5_0": 6,
    "Q5_1": 8,
    "Q4_0": 2,
    "Q4_1": 4,
}  # bytes of a block before its codes: scales, fifth bits
BITS, GROUP = (8, 4, 3), 64
SMALLEST = 32  # side of what is a matrix
TORCHAO_GROUP = 32
QUANTO = ("qint8", "qint4", "qint2")
# Modules that nncodec's loaders of pictures import: torchvision has no build for every torch, and the codec needs none.
PICTURES = ("torchvision", "torchvision.models", "torchvision.transforms", "torchvision.datasets", "cv2")


class Coded(NamedTuple):
    """packed: as a file holds it, codes in as few bits as they have. codes: one a byte in the order of the weights; side:
    scales and the like. weights: float32, of the matrix's shape."""

    packed: bytes
    codes: bytes
    side: bytes
    weights: Tensor


Quantizer = Callable[[Tensor], Coded]


def packed_bits(codes: NDArray[np.uint8], bits: int) -> bytes:
    """Codes below 2^bits, `bits` each."""
    return np.packbits(np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 8 - bits :].reshape(-1)).tobytes()


def coded(codes: NDArray[np.uint8], bits: int, side: Sequence[Tensor], weights: Tensor) -> Coded:
    """side: in half precision."""
    rest = b"".join(tensor.half().numpy().tobytes() for tensor in side)
    return Coded(packed_bits(codes, bits) + rest, codes.tobytes(), rest, weights)


def of_gguf(kind: str) -> Quantizer:
    """Blocks of 32 along a row, as the gguf package makes them."""
    number, side = getattr(gguf.GGMLQuantizationType, kind), GGUF_SIDE[kind]

    def quantize(weight: Tensor) -> Coded:
        blocks = gguf.quants.quantize(weight.float().numpy(), number)
        apart = blocks.reshape(-1, side + (32 if kind == "Q8_0" else 16))
        codes = apart[:, side:]
        loose = codes if kind == "Q8_0" else np.concatenate([codes & 15, codes >> 4], axis=1)
        weights = torch.from_numpy(gguf.quants.dequantize(blocks, number))
        return Coded(blocks.tobytes(), loose.tobytes(), apart[:, :side].T.tobytes(), weights)

    return quantize


def of_hqq(bits: int) -> Quantizer:
    """Half-quadratic quantization, groups of GROUP along a row, float16 scales and zeros; codes `bits` each."""
    from hqq.core.quantize import Quantizer as Hqq  # optional

    def quantize(weight: Tensor) -> Coded:
        codes, meta = Hqq.quantize(
            weight.float(),
            nbits=bits,
            group_size=GROUP,
            axis=1,
            device="cpu",
            compute_dtype=torch.float32,
            bitpack=False,
        )
        for name in ("scale", "zero"):
            meta[name] = meta[name].half().float()
        made = Hqq.dequantize(codes, meta).reshape(weight.shape)
        return coded(codes.numpy().astype(np.uint8), bits, [meta["scale"], meta["zero"]], made)

    return quantize


def of_torchao(bits: int) -> Quantizer:
    """`IntxWeightOnlyConfig` by groups of TORCHAO_GROUP, symmetric, its scales in half precision."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_  # optional
    from torchao.quantization.granularity import PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(TORCHAO_GROUP))

    def quantize(weight: Tensor) -> Coded:
        layer = torch.nn.Linear(*reversed(weight.shape), bias=False)
        layer.weight.data.copy_(weight)
        quantize_(layer, config)
        found = layer.weight
        codes, scale = found.qdata, found.scale.half().float()
        made = (codes.float().view(len(weight), -1, TORCHAO_GROUP) * scale[..., None]).view(weight.shape)
        return coded((codes.numpy().astype(np.int16) + (1 << bits - 1)).astype(np.uint8), bits, [scale], made)

    return quantize


def of_quanto(kind: str) -> Quantizer:
    """qint8 by rows, symmetric; fewer bits by groups of GROUP with a shift; half-precision scales."""
    from optimum import quanto  # optional

    qtype = quanto.qtypes[kind]

    def quantize(weight: Tensor) -> Coded:
        if qtype.bits == 8:
            scale = quanto.AbsmaxOptimizer()(weight, qtype, 0).half().float()
            found = quanto.quantize_weight(weight, qtype, 0, scale, optimized=False)
            codes = (found._data.numpy().astype(np.int16) + 128).astype(np.uint8)
            return coded(codes, 8, [scale], found.dequantize())
        scale, shift = (part.half().float() for part in quanto.MaxOptimizer()(weight, qtype, 0, GROUP))
        found = quanto.quantize_weight(weight, qtype, 0, scale, shift, GROUP, optimized=False)
        return coded(found._data.unpack().numpy(), qtype.bits, [scale, shift], found.dequantize())

    return quantize


def by_nncodec(parts: Mapping[str, Tensor], qp: int) -> tuple[bytes, dict[str, Tensor]]:
    """Of `apart`: a bitstream of the NNC standard, dependent quantization and DeepCABAC on, and what it decodes to. Vectors
    keep the finer step that it has for them."""
    absent = [name for name in PICTURES if not find_spec(name.partition(".")[0])]
    sys.modules |= {name: MagicMock() for name in absent}
    from nncodec import nn as codec  # optional

    for name in absent:  # others look whether they are there
        del sys.modules[name]
    made = codec.encode(
        {k: v.numpy() for k, v in parts.items()}, {"qp": qp, "verbose": False, "results": tempfile.gettempdir()}
    )
    return bytes(made), {k: torch.from_numpy(np.array(v)) for k, v in codec.decode(made).items()}


def rivals() -> Iterator[tuple[str, Quantizer, torch.dtype]]:
    """(name, what it does to a matrix, dtype of vectors) of all that is installed."""
    for kind in GGUF_KINDS:
        yield f"gguf {kind}", of_gguf(kind), torch.float32
    for bits in BITS if find_spec("hqq") else ():
        yield f"hqq int{bits} g{GROUP}", of_hqq(bits), torch.float16
    for bits in BITS if find_spec("torchao") else ():
        yield f"torchao int{bits} g{TORCHAO_GROUP}", of_torchao(bits), torch.float16
    for kind in QUANTO if find_spec("optimum") else ():
        yield f"quanto {kind}", of_quanto(kind), torch.float16


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def apart(tensors: Mapping[str, Tensor], turned: Collection[str] = ()) -> dict[str, Tensor]:
    """float32: matrices with their inputs along a row, slices of a bank one by one, all else flat.

    turned: names of those that are kept the other way round. SystemExit for rows that no whole number of groups fills.
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _is_matrix(tensor):
            parts[name] = tensor.float().flatten()
        elif tensor.dim() == 2:
            parts[name] = (tensor.mT if name in turned else tensor).float().contiguous()
        else:
            parts |= {f"{name}.{i}": part for i, part in enumerate(tensor.float())}
    for name, part in parts.items():
        if part.dim() == 2 and part.shape[1] % GROUP:
            raise SystemExit(f"{name} has rows of {part.shape[1]} weights: the rivals here share scales among {GROUP}")
    return parts


def together(
    parts: Mapping[str, Tensor], tensors: Mapping[str, Tensor], turned: Collection[str] = ()
) -> dict[str, Tensor]:
    """The inverse of `apart`, in the shapes of `tensors`."""
    found = {}
    for name, like in tensors.items():
        if name in parts:
            found[name] = (parts[name].mT if name in turned else parts[name]).reshape(like.shape)
        else:
            found[name] = torch.stack([parts[f"{name}.{i}"] for i in range(len(like))])
    return found


def _is_matrix(tensor: Tensor) -> bool:
    """What rivals quantize; gains of several layers in one parameter are none."""
    return tensor.dim() in (2, 3) and min(tensor.shape[-2:]) >= SMALLEST


def quantized(
    parts: Mapping[str, Tensor], quantize: Quantizer, vectors: torch.dtype, known: Mapping[str, Coded] | None = None
) -> tuple[list[Coded], bytes, dict[str, Tensor]]:
    """Of `apart`: (every matrix, the vectors' bytes, the weights). known: matrices that are quantized already."""
    ready = known or {}
    matrices = {name: ready.get(name) or quantize(part) for name, part in parts.items() if part.dim() == 2}
    rest = {name: part.to(vectors) for name, part in parts.items() if part.dim() == 1}
    weights = {name: found.weights for name, found in matrices.items()}
    weights |= {name: part.float() for name, part in rest.items()}
    return list(matrices.values()), b"".join(part.numpy().tobytes() for part in rest.values()), weights
