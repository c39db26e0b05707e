"""An artifact inside a Hugging Face folder: config.json says who can read it, and the rest of the folder is as it was.

What will surprise you: config.json names a file of weights that is not there. transformers knows no other way to be told of
weights that are neither its own nor pickled: it asks for that file, and our quantizer answers (transformers_quantizer.py).
Where pgolf is not imported the load ends there, and no model of random weights comes out of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import UsageError
from pgolf.loading import dense
from pgolf.models import checkpoint, huggingface, transformers_model
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.huggingface import ARTIFACT, Folder

METHOD = "pgolf"  # quant_method of config.json


def write(folder: Path, artifact: Path, like: Path | None = None, *, packed: bool = False) -> list[str]:
    """Put an artifact into a folder that from_pretrained opens where pgolf is imported; returns the names, the artifact first.

    like: as in `huggingface.write`. packed: weights stay packed in a GPU's memory. Raises ArtifactError, and UsageError where
    nobody says which model it is, other weights lie in the folder, or buffers were left out, which transformers would not make.
    """
    refuse_other_weights(folder)
    entries, meta = dense.read(artifact)
    if left := dense.dropped_of(meta):
        raise UsageError(f"{artifact} leaves out {left[0]} (--drop), which transformers would not make: pack it again")
    config = said(meta, like, artifact)
    more: dict[str, Any] = {
        "quantization_config": {"quant_method": METHOD, "packed": packed},
        "transformers_weights": huggingface.STAND_IN,
    }
    if not (config.get("dtype") or config.get("torch_dtype")):
        more["dtype"] = most_common_dtype(dense.tensors_of(entries))
    names = huggingface.write_rest(folder, config, like, more)
    with replacing(folder / ARTIFACT) as file, artifact.open("rb") as original:
        shutil.copyfileobj(original, file)
    return [ARTIFACT, *names]


def read(folder: Path, *, code: Path | None = None) -> Checkpoint:
    """The weights of the artifact in a folder, as those of any other: under the names of the class that config.json speaks of,
    where that can be built (code: as in `transformers_model.build`). Raises as `transformers_model.read`, and ArtifactError."""
    found = held(folder)
    if transformers_model.is_known(found.config, code=code):
        return transformers_model.named(found, str(folder), code=code)
    return checkpoint.from_mapping(found.tensors, found.config, found.notes)


def held(folder: Path) -> Folder:
    """What a folder holds, its artifact decoded."""
    said = huggingface.config(folder)
    note = f"weights as {ARTIFACT} gives them: what was lost when it was packed is lost twice"
    return Folder(dense.load(folder), None if said is None else huggingface.plain(said), (note,))


def refuse_other_weights(folder: Path) -> None:
    """Raises UsageError for a folder that holds weights beside which an artifact would be a second model."""
    others = (
        [path.name for path in huggingface.weight_files(folder) if path.name != ARTIFACT] if folder.is_dir() else []
    )
    if others:
        raise UsageError(f"{folder} holds other weights ({', '.join(others[:3])}): name another folder")


def said(meta: Mapping[str, Any], like: Path | None, artifact: Path) -> dict[str, Any]:
    """The configuration that a folder made of an artifact will have. Raises UsageError where there is none."""
    theirs = huggingface.config(like) if like is not None and like.is_dir() else None
    found = theirs or meta.get("config")
    if not isinstance(found, dict) or "model_type" not in found:
        raise UsageError(
            f"{artifact} does not say which model of transformers it is: add --like DIR, the folder it was made of"
        )
    return found


def most_common_dtype(state: Mapping[str, Tensor]) -> str:
    """Of the numbers of a state dict."""
    sizes: dict[str, int] = {}
    for tensor in state.values():
        if tensor.is_floating_point():
            name = checkpoint.dtype_name(tensor.dtype)
            sizes[name] = sizes.get(name, 0) + tensor.numel()
    return max(sizes, key=lambda name: sizes[name], default="float32")
