"""A state dict of the llama family as a GGUF file, for engines that read those: F16 or Q8_0 matrices, all else float32.

llama.cpp rotates neighbours (0, 1), (2, 3) of a head where transformers rotates its halves: for its architecture `llama` the
rows of q and k are put into that order; qwen2 and qwen3 keep theirs. Names and keys are the `gguf` package's own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common import extras
from pgolf.errors import UsageError
from pgolf.loading import gguf_tokenizer

Array = NDArray[Any]
FAMILY = {  # architecture of config.json: GGUF's name for it
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
KINDS = ("F16", "Q8_0")
BLOCK = 32  # numbers of a row that share a scale in Q8_0
LARGEST = 65504.0  # of float16
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SKIPPED = "rotary_emb.inv_freq"  # which every engine makes


def write(path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Path | None, kind: str) -> int:
    """Write the file, whole or not at all; returns how many tensors it has.

    config: as config.json of transformers; tokenizer: the folder with tokenizer.json or tokenizer.model, None for a file without
    one. kind: of KINDS; matrices whose rows are no multiple of 32 are F16 in any. Raises UsageError for what GGUF's llama family
    cannot say, MissingExtraError without the gguf package.
    """
    extras.need("gguf")
    import gguf  # optional

    name = architecture(config)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    made = [*_tensors(state, config, name, names), *_rope_factors(config)]
    quantized = getattr(gguf.GGMLQuantizationType, kind)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        file = Path(folder) / path.name
        writer = gguf.GGUFWriter(file, name)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind}"))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _describe(writer, config, name)
        if tokenizer is not None:
            gguf_tokenizer.add(writer, tokenizer, int(config["vocab_size"]))
        for theirs, array in made:
            _add(writer, gguf, theirs, array, quantized)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(file, path)
    return len(made)


def architecture(config: Mapping[str, Any]) -> str:
    """GGUF's name of a model. Raises UsageError for one that is not of the llama family."""
    said = [str(name) for name in config.get("architectures") or []]
    found = next((FAMILY[name] for name in said if name in FAMILY), None)
    if found is None:
        raise UsageError(
            f"--format gguf: {', '.join(said) or config.get('model_type')} is not of the llama family: {', '.join(FAMILY)} are"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UsageError(f"--format gguf: GGUF's {found} has silu in its layers, not {config['hidden_act']}")
    return found


def head_width(config: Mapping[str, Any]) -> int:
    """Numbers of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def interleaved(rows: Array, heads: int) -> Array:
    """Rows [heads · 2 · h, ...] of a projection whose halves are rotated with each other, as neighbours."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def _tensors(
    state: Mapping[str, Tensor], config: Mapping[str, Any], arch: str, names: Any
) -> Iterator[tuple[str, Array]]:
    """(GGUF's name, float32 values) of every tensor, but for a head that is the embedding: engines take that without one."""
    head, table = (state.get(name) for name in (HEAD, EMBEDDING))
    tied = head is not None and table is not None and torch.equal(head, table)
    heads = int(config["num_attention_heads"])
    rotated = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)} if arch == "llama" else {}
    for name, tensor in state.items():
        if name.endswith(SKIPPED) or (tied and name == HEAD):
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None or tensor.dim() > 2:
            raise UsageError(f"--format gguf: {name} {list(tensor.shape)} has no place in GGUF's {arch}")
        values: Array = tensor.detach().to("cpu", torch.float32).numpy()
        count = next((count for part, count in rotated.items() if f".{part}." in name), None)
        yield theirs, values if count is None else interleaved(values, count)


def _add(writer: Any, gguf: Any, name: str, values: Array, quantized: Any) -> None:
    """Write a vector as float32, a matrix as it was asked for."""
    if values.ndim < 2:
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        return
    kinds = gguf.GGMLQuantizationType
    kind = quantized if values.shape[-1] % BLOCK == 0 else kinds.F16
    if kind == kinds.F16 and np.abs(values).max(initial=0.0) > LARGEST:
        raise UsageError(f"--format gguf: {name} has values beyond what F16 holds")
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values, np.float32), kind), raw_dtype=kind)


def _describe(writer: Any, config: Mapping[str, Any], arch: str) -> None:
    heads, width = int(config["num_attention_heads"]), head_width(config)
    context, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    if window and config.get("use_sliding_window", True):  # beyond it GGUF's llama sees what the model does not
        context = min(context, int(window))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(context)
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_dimension_count(width)
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope["rope_type"] in {"linear", "yarn"}:
        writer.add_rope_scaling_type(_scaling(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _scaling(kind: str) -> Any:
    extras.need("gguf")
    from gguf import RopeScalingType  # optional

    return {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}[kind]


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are rotated, as transformers of either generation says it. Raises UsageError for other ways."""
    said = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **said}
    rope["rope_type"] = said.get("rope_type") or said.get("type") or "default"
    if rope["rope_type"] not in {"default", "linear", "yarn", "llama3"}:
        raise UsageError(f"--format gguf: positions are scaled by {rope['rope_type']!r}, which is not written here")
    return rope


def _rope_factors(config: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """The divisor of each frequency, which Llama 3.1 interpolates between 1 (short waves) and `factor` (long ones)."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return
    width, whole = head_width(config), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = whole * float(rope["rope_theta"]) ** -(np.arange(0, width, 2) / width) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    yield "rope_freqs.weight", (1 / ((1 - share) / float(rope["factor"]) + share)).astype(np.float32)
