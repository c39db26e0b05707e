"""The text that a sweep's tuned points learn from, kept in its folder: made once, read by every worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from pgolf.common.files import replacing
from pgolf.errors import DataError
from pgolf.fitting.live import Live


def path_in(folder: Path, tokens: int) -> Path:
    """Where the text is kept of which so many tokens are tuned on."""
    return folder / f"text-{tokens}.safetensors"


@dataclass(frozen=True)
class Tuning:
    """held: int64 [M, T] to measure on, more: [N, T] to tune on; what: names the text, for people."""

    held: Tensor
    more: Tensor
    what: str

    def save(self, path: Path) -> None:
        """Write it whole."""
        tensors = {"held": self.held.contiguous(), "more": self.more.contiguous()}
        data = safetensors.torch.save(tensors, {"what": self.what})
        with replacing(path) as file:
            file.write(data)

    def live(self, model: nn.Module, logits: str | None) -> Live:
        """What `pack` measures and tunes with."""
        return Live(model, self.held, self.more, self.what, logits)


def load(path: Path) -> Tuning:
    """What `Tuning.save` wrote. Raises DataError."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return Tuning(file.get_tensor("held"), file.get_tensor("more"), file.metadata()["what"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no text of a sweep ({error}): remove it, it is made again") from None
