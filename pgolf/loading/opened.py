"""`pgolf.open`: an artifact's tensors one by one, as `safetensors.safe_open` gives those of its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pgolf.errors import UsageError
from pgolf.loading import dense
from pgolf.packer.format.partly import Partly

KINDS = {"bfloat": "BF", "float": "F", "complex": "C", "uint": "U", "int": "I", "bool": "BOOL"}  # safetensors' words


def open(path: str | Path, device: torch.device | str = "cpu") -> Opened:  # as safe_open is `open` to safetensors
    """An artifact for reading some of its tensors: decoded are those that are asked for, when they are asked for.

    with pgolf.open("model.pgolf") as file: file.keys(), file["blocks.0.attn.q.weight"], file.metadata().
    device: where tensors are moved to. Raises ArtifactError for what is no artifact. A file that is damaged behind its header
    opens; it raises when the first tensor is asked for.
    """
    return Opened(path, device)


class Opened:
    """An artifact that is open; `open` makes it. Names are those of `load`, and so is every bit."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        self.path, self._device = Path(path), torch.device(device)
        with dense.named(self.path):
            self._file: Partly | None = dense.mapped(self.path)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; tensors that were read stay."""
        self._file = None

    def keys(self) -> list[str]:
        """The names of all tensors, tied ones and those left as they are included."""
        return self._whole.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def metadata(self) -> dict[str, Any]:
        """What the artifact says of its model: its configuration, buffers that were left out."""
        meta: dict[str, Any] = self._whole.head["meta"]
        return meta

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, undecoded. Raises UsageError where there is none of this name, as all below."""
        return self._whole.shape(self._known(name))

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, undecoded."""
        found: torch.dtype = getattr(torch, self._whole.dtype(self._known(name)))
        return found

    def tied_to(self, name: str) -> str | None:
        """The name of the tensor that this one is, None where it is its own."""
        home = self._whole.home(self._known(name))
        return None if home == name else home

    def get_tensor(self, name: str) -> Tensor:
        """The tensor, as `load` gives it; tied names are decoded anew, each into a tensor of its own.

        Of an artifact of a general coder (--coder brotli) the codes of all tensors are decompressed with the first.
        """
        whole = self._whole
        with dense.named(self.path):
            return dense.tensor_of(whole, self._known(name)).to(self._device)

    __getitem__ = get_tensor

    def get_slice(self, name: str) -> Slice:
        """The tensor for reading a part of it: file.get_slice("w")[:10]. It is decoded whole, at each reading."""
        self._known(name)
        return Slice(self, name)

    @property
    def _whole(self) -> Partly:
        if self._file is None:
            raise UsageError(f"{self.path}: is closed; read its tensors inside the with block")
        return self._file

    def _known(self, name: str) -> str:
        if name not in self._whole.names:
            raise UsageError(f"{self.path}: has no tensor {name!r}; {self._some()}")
        return name

    def _some(self) -> str:
        return f"names look like {', '.join(self.keys()[:3])}" if self.keys() else "it holds none"


class Slice:
    """A tensor of an open artifact, undecoded, with the methods of those that safe_open gives."""

    def __init__(self, file: Opened, name: str) -> None:
        self._file, self._name = file, name

    def get_shape(self) -> list[int]:
        """Of the whole tensor."""
        return list(self._file.shape(self._name))

    def get_dtype(self) -> str:
        """As safetensors writes it: "BF16"."""
        name = str(self._file.dtype(self._name)).removeprefix("torch.")
        kind = next(kind for kind in KINDS if name.startswith(kind))
        return KINDS[kind] + name.removeprefix(kind).removesuffix("fn").upper()

    def __getitem__(self, index: Any) -> Tensor:
        return self._file.get_tensor(self._name)[index]
