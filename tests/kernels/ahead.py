"""Compile kernels for sm_90 without a GPU, as their launchers would, and print what came out as JSON.

Run in a process of its own, without TRITON_INTERPRET: `python -m tests.kernels.ahead [PTX_FOLDER]`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends import compiler as backend
from triton.compiler import ASTSource

POINTERS = {
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.uint16: "*u16", torch.int32: "*i32",
    torch.uint32: "*u32", torch.int64: "*i64", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
}  # fmt: skip


def compiled(kernel: Any, *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> Any:
    """The kernel for these arguments, specialised as a launch specialises it: a dtype stands for an aligned tensor."""
    signature, constants, aligned = {}, {}, []
    for parameter in kernel.params:
        value = arguments.pop(parameter.name)
        if (
            parameter.is_constexpr
            or value is None
            or (type(value) is int and value == 1 and not parameter.do_not_specialize)
        ):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        is_pointer = isinstance(value, torch.dtype)
        signature[parameter.name] = POINTERS[value] if is_pointer else "fp32" if isinstance(value, float) else "i32"
        if is_pointer or (type(value) is int and value % 16 == 0 and not parameter.do_not_specialize):
            aligned.append(parameter.num)
    assert not arguments, f"no parameters {sorted(arguments)}"
    source = _source(kernel, signature, constants, aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}
    return triton.compile(source, target=backend.GPUTarget("cuda", 90, 32), options=options)


def _source(kernel: Any, signature: dict[str, str], constants: dict[str, Any], aligned: list[int]) -> ASTSource:
    """aligned: numbers of the parameters that 16 divides. triton 3.2 has a class for them and takes no constants' types."""
    if not hasattr(backend, "AttrsDescriptor"):
        return ASTSource(kernel, signature, constants, {(n,): [["tt.divisibility", 16]] for n in aligned})
    properties = {"tt.divisibility": aligned, "tt.equal_to": []}
    described = backend.AttrsDescriptor.from_dict({"arg_properties": properties, "cls": "AttrsDescriptor"})
    return ASTSource(kernel, {n: t for n, t in signature.items() if t != "constexpr"}, constants, described)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of its stack, from the tool that triton brings along."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK", "LOCAL")}


def facts(result: Any) -> dict[str, Any]:
    """What a test asks of compiled code: widest global loads and stores in bits, local memory, shared memory, barriers."""
    ptx = result.asm["ptx"]
    return {
        "loads": sorted({_bits(op) for op in re.findall(r"ld\.global\S*", ptx)} | _asynchronous(ptx)),
        "stores": sorted({_bits(op) for op in re.findall(r"st\.global\S*", ptx)}),
        **resources(result.asm["cubin"]),
        "shared": result.metadata.shared,
        "warps": result.metadata.num_warps,
        "handover": _hands_over(ptx),
        "barriers": len(re.findall(r"bar\.sync", ptx)),
        "matrix": len(re.findall(r"mma\.sync|wgmma\.mma_async", ptx)),
        "wide_matrix": len(re.findall(r"wgmma\.mma_async", ptx)),
        "shared_stores": len(re.findall(r"st\.shared", ptx)),
        "instructions": len(re.findall(r"^\s+(?:@\S+ )?[a-z]\S*\s.*;$", ptx, re.MULTILINE)),
    }


def _hands_over(ptx: str) -> bool:
    """Whether sums are stored, all threads meet, one counts at the device's scope, all meet, and only then others' are read,
    past the first cache; also where nothing is counted."""
    kinds = {"st.global": "s", "bar.sync": "b", "atom.global.gpu.acq_rel": "a", "ld.global.cg": "r"}
    order = "".join(kinds[op] for op in re.findall("|".join(map(re.escape, kinds)), ptx))
    return "a" not in order or re.fullmatch(r"[^ar]*sb+ab+r+s+", order) is not None


def _bits(op: str) -> int:
    many = re.search(r"\.v(\d)", op)
    return int(many[1] if many else 1) * int(re.search(r"\.[busf](\d+)$", op)[1])


def _asynchronous(ptx: str) -> set[int]:
    return {
        8 * int(size, 16)
        for size in re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^,]+, \[[^,]+, 0x([0-9a-f]+)", ptx)
    }


def cases() -> dict[str, Any]:
    """Name -> compiled kernel, on the shapes that the benchmark times."""
    from pgolf.kernels import dequant, packed, quant_linear, rans_decode, round_block, softcap_nll, strips
    from pgolf.packer.coder.trellis import STRIP

    f32, bf16, i8, i16 = torch.float32, torch.bfloat16, torch.int8, torch.int16
    i32, i64 = torch.int32, torch.int64
    out = {}
    for name, codes, turned, stride in (
        ("bytes", i8, False, 512),
        ("words", i16, False, 512),
        ("turned", i16, True, 1024),
    ):
        rows, cols = dequant.tile(512, turned)
        out[f"dequant {name}"] = compiled(
            dequant.dequant_kernel, codes=codes, row_scale=f32, col_scale=f32, out=i16, rows=2048, cols=512, stride=stride,
            TURNED=turned, ROW_SCALE=True, COL_SCALE=True, BF16=True, BLOCK_R=rows, BLOCK_C=cols, num_warps=dequant.WARPS,
        )  # fmt: skip
    for name, capped in (("plain", False), ("capped", True)):
        out[f"softcap_nll {name}"] = compiled(
            softcap_nll.softcap_nll_kernel, logits=bf16, targets=i64, out=f32, stride=8192, softcap=30.0, VOCAB=8192,
            CAPPED=capped, BLOCK=8192, num_warps=softcap_nll.WARPS,
        )  # fmt: skip
    int64 = {n: i64 for n in ("first_word", "bounds", "first_strip", "starts", "base", "first_row", "final", "ends")}
    int16 = {n: i16 for n in ("words", "rows", "lookup", "codes")}
    for block in (8, 32):
        out[f"rans_decode {block}"] = compiled(
            rans_decode.rans_decode_kernel, states=i32, pages=i32, entries=i32, symbols=torch.uint8, lanes=2625,
            last_word=1 << 23, feedback=5, branch=2, BLOCK=block, num_warps=1, **int64, **int16,
        )  # fmt: skip
    of_strips = {n: i64 for n in ("starts", "base", "first_row")} | {"codes": i16, "rows": i16, "kind": torch.uint8}
    shape = {"BLOCK": STRIP, "num_warps": strips.WARPS}
    out["strips count"] = compiled(strips.count_kernel, counts=i64, **of_strips, **shape)
    out["strips restore"] = compiled(
        strips.restore_kernel, firsts=i64, fields=torch.uint8, listed=i32, out=i32, first=1024, **of_strips, **shape
    )
    floats = "targets bare errors U push rows cols decoded_rows decoded_cols lam bits parabola"
    whole = "state out row_classes col_classes before"
    of_blocks = dict.fromkeys(floats.split(), f32) | dict.fromkeys(whole.split(), i32) | {"info": i64}
    numbers = {"count": 512, "first": -24, "trellis_from": -2, "tables": 29, "last": 64, "widest": 99}
    for states, fed in ((1, True), (8, True), (8, False), (64, True)):
        out[f"round {states} {fed}"] = compiled(
            round_block.round_kernel, STATES=states, FED=fed, LINES=round_block.LINES, ROWS=round_block.ROWS,
            INFO=round_block.INFO, num_warps=round_block.warps(states), **of_blocks, **numbers,
        )  # fmt: skip
    high = dict(zip(packed.WIDTHS, (None, i8, i16, i32), strict=True))
    for bits, inputs, rows, cols in (
        (4, 1, 8192, 8192), (4, 16, 8192, 8192), (4, 64, 512, 512), (4, 17, 1000, 4100), (5, 1, 512, 512), (5, 16, 8192, 8192),
        (5, 32, 8192, 8192), (5, 64, 2048, 512), (6, 1, 512, 2048), (6, 4, 2048, 512), (6, 16, 8192, 8192), (8, 1, 100, 7),
        (8, 4, 8192, 8192), (8, 64, 512, 2048), (8, 64, 8192, 8192),
    ):  # fmt: skip
        words = packed.unit_words(cols)
        units = -(-cols // (packed.FIELDS * words))
        how = quant_linear.launch_shape(inputs, rows, units, bits, 132)
        several = {"parts": f32, "arrived": i32} if how.split > 1 else {"parts": None, "arrived": None}
        out[f"quant_linear {bits} {inputs} {rows}x{cols}"] = compiled(
            quant_linear.quant_linear_kernel, x=bf16, low=i32, high=high[bits], row_scale=f32, col_scale=f32, out=bf16,
            inputs=inputs, outputs=rows, stride_x=cols, COLS=cols, BITS=bits, WORDS=words, UNITS=units, SPLIT=how.split,
            BLOCK_M=how.block_m, BLOCK_N=how.block_n, num_warps=how.warps, num_stages=how.stages, **several,
        )  # fmt: skip
    out["unpack 6"] = compiled(
        packed.unpack_kernel, low=i32, high=i16, row_scale=f32, col_scale=f32, out=i16, rows=8192, cols=8192, row_words=1024,
        BITS=6, WORDS=64, BF16=True, BLOCK_R=packed.TILE_ROWS,
    )  # fmt: skip
    return out


if __name__ == "__main__":
    results = cases()
    for name, result in results.items() if len(sys.argv) > 1 else ():
        (Path(sys.argv[1]) / f"{name}.ptx").write_text(result.asm["ptx"])
        (Path(sys.argv[1]) / f"{name}.cubin").write_bytes(result.asm["cubin"])
        (Path(sys.argv[1]) / f"{name}.ttgir").write_text(result.asm["ttgir"])
    print(json.dumps({name: facts(result) for name, result in results.items()}, indent=1))
