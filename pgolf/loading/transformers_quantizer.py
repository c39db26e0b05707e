"""`AutoModelForCausalLM.from_pretrained` of a folder that holds an artifact (hf_folder.py), as a quantizer of transformers.

The artifact is decoded into a temporary file of transformers' own kind, which takes the place of the file that config.json
names: dtype, device_map, offloading and the renaming of old names are then its own, not ours. The file is gone once the
model is there, or, where some of it is offloaded to disk, once the model is gone. Dense weights make a plain model, which
save_pretrained writes as any other.

`import pgolf` registers it, before or after `import transformers` (common/when_imported.py).
"""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import save_file

from pgolf.common import extras
from pgolf.errors import ArtifactError
from pgolf.loading import dense
from pgolf.loading.hf_folder import METHOD
from pgolf.models import huggingface, ties
from pgolf.models.huggingface import ARTIFACT

LOG = logging.getLogger("pgolf")
AUTO = "transformers.quantizers.auto"


def register() -> None:
    """Make transformers know `"quant_method": "pgolf"`. Does nothing where it does already, or has no such registry."""
    extras.need("transformers")
    auto = import_module(AUTO)
    if METHOD in auto.AUTO_QUANTIZER_MAPPING or not hasattr(auto, "register_quantizer"):
        return
    mixin = import_module("transformers.utils.quantization_config").QuantizationConfigMixin
    base = import_module("transformers.quantizers.base").HfQuantizer
    auto.register_quantization_config(METHOD)(type("PgolfConfig", (_Config, mixin), {}))
    auto.register_quantizer(METHOD)(type("PgolfQuantizer", (_Quantizer, base), {}))


class _Config:
    """What config.json says under quantization_config. packed: on a GPU, weights of 8 bits a code or less stay packed."""

    def __init__(self, packed: bool = False, **_: Any) -> None:
        self.quant_method, self.packed = "pgolf", bool(packed)
        self.dequantize = not self.packed  # a dense model is a plain one


class _Quantizer:
    """The hooks of transformers' HfQuantizer, in the order in which from_pretrained calls them."""

    quantization_config: _Config
    requires_calibration = False
    required_packages = ("pgolf",)
    is_trainable = False
    _artifact: Path
    _folder: str
    _clean: weakref.finalize[[str, bool], _Quantizer]

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        named = [Path(name) for name in checkpoint_files or ()]
        if not named or named[0].name != huggingface.STAND_IN:
            raise ArtifactError(
                f"config.json speaks of pgolf and names no {huggingface.STAND_IN}: write the folder again, pgolf unpack"
            )
        self._artifact = named[0].with_name(ARTIFACT)
        self._folder = mkdtemp(prefix="pgolf-weights-")
        self._clean = weakref.finalize(
            self, shutil.rmtree, self._folder, True
        )  # errors ignored; also where loading fails
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        checkpoint_files[:] = [str(_decoded(self._artifact, Path(self._folder), tied))]
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if "disk" in (getattr(model, "hf_device_map", None) or {}).values():  # where what is offloaded is read from
            self._clean.detach()
            weakref.finalize(model, shutil.rmtree, self._folder, True)
        else:
            self._clean()
        places = {parameter.device for parameter in model.parameters()}
        if not self.quantization_config.packed:
            return model
        if len(places) == 1 and (device := places.pop()).type == "cuda":
            from pgolf.loading.modules import load_module  # brings triton

            LOG.info("%s", load_module(self._artifact, model, packed=True, device=device))
        else:
            LOG.warning("pgolf: weights are dense, for packed ones take one GPU: device_map='cuda'")
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Packed weights are not written back: the folder that they come from is smaller than what would be."""
        return False


def _decoded(artifact: Path, folder: Path, tied: Mapping[str, str]) -> Path:
    """The artifact's weights as a file of transformers' kind. tied: name -> the one that the model ties it to by itself, and
    which is written alone: it compares both where both are there, and cannot where one is offloaded. Raises ArtifactError."""
    state = dense.load(artifact)
    shared = ties.in_storage(state)
    path = folder / huggingface.WEIGHTS
    again = {n for n, kept in tied.items() if {n, kept} <= state.keys() and shared.get(n, n) == shared.get(kept, kept)}
    whole = {
        name: tensor.clone() if name in shared else tensor.contiguous()
        for name, tensor in state.items()
        if name not in again
    }
    save_file(whole, path, {"format": "pt"})
    return path
