"""The model of a checkpoint, built again: by the user's code, by transformers, or as ours, from what the file says of itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pgolf.errors import ModelError, UsageError
from pgolf.loading import hf_folder
from pgolf.models import blueprint, buffers, checkpoint, huggingface, transformers_model, usermodel
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.usermodel import load_state, one_line
from pgolf.train.model.gpt import untrained

ARCH = "pgolf.train.model:GPT"  # what checkpoints call it: kept for ever, wherever the class lives
OTHER_SEED = 1  # of the module that tells what is drawn at random from what is made alike every time


@dataclass(frozen=True)
class Maker:
    """How a user says what a model is. model: FILE.py:NAME, or a folder whose config.json says it; None: the checkpoint
    does. state: which weights of the checkpoint. trusted: code that lies in a folder of transformers may be run."""

    model: str | None = None
    state: str | None = None
    trusted: bool = False

    def read(self, path: Path, *, everything: bool = False) -> Checkpoint:
        """The checkpoint at `path`, under the names of its module where one can be built. everything: as in
        `checkpoint.read`."""
        if huggingface.artifact_in(path):
            return self._of_artifact(path)
        if self._folder is None and self.model is not None:
            like = usermodel.load(self.model)
            found = checkpoint.read(path, everything=everything, state=self.state, like=like)
            spec = self.model
            return buffers.compared(found, like, lambda: usermodel.load(spec, seed=OTHER_SEED))
        if self._folder is not None:
            like = transformers_model.build(self._config(None), what=str(self.model), code=self.code(path))
            return checkpoint.read(path, everything=everything, state=self.state, like=like)
        as_it_lies = everything or self.state is not None
        if path.is_dir() and not as_it_lies and self.can_build(huggingface.config(path), path):
            return transformers_model.read(path, code=self.code(path))
        return checkpoint.read(path, everything=everything, state=self.state)

    def _of_artifact(self, folder: Path) -> Checkpoint:
        """Of a folder that holds one in the place of weights."""
        if self.model is None:
            return hf_folder.read(folder, code=self.code(folder))
        found = hf_folder.held(folder)
        module = (
            usermodel.load(self.model)
            if self._folder is None
            else transformers_model.build(self._config(None), what=self.model, code=self.code(folder))
        )
        return checkpoint.from_mapping(found.tensors, found.config, found.notes, like=blueprint.of(module))

    def build(
        self,
        state: Mapping[str, Tensor],
        config: Mapping[str, Any] | None,
        source: Path | None = None,
        dropped: Collection[str] = (),
    ) -> nn.Module:
        """The module, holding `state`, in eval mode. config: what the file says; source: where both are from; dropped: as in
        `usermodel.load_state`. Raises ModelError, UsageError, MissingExtraError."""
        if self.model is not None and self._folder is None:
            return usermodel.load(self.model, state, dropped=dropped)
        config, what = self._config(config), str(self.model or source or "the checkpoint")
        if transformers_model.is_theirs(config):
            code = self.code(source)
            return transformers_model.build(config, state, what=what, code=code, dropped=dropped)
        if config is None:
            raise ModelError(f"{what} does not say which model it is: add --model FILE.py:NAME")
        return from_config(config, state, dropped)

    def can_build(self, config: Mapping[str, Any] | None, source: Path | None = None) -> bool:
        """Whether `build` knows which module it would be."""
        if self.model is not None or is_ours(config):
            return True
        return transformers_model.is_known(config, code=self.code(source))

    def code(self, source: Path | None) -> Path | None:
        """The folder whose own code may be run, if the user trusts it."""
        folder = self._folder or source
        return folder if self.trusted and folder is not None and folder.is_dir() else None

    @property
    def _folder(self) -> Path | None:
        """The folder that `model` names, None where it names a file."""
        return Path(self.model) if self.model is not None and Path(self.model).is_dir() else None

    def _config(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        return config if self._folder is None else huggingface.config(self._folder)


def from_config(config: Mapping[str, Any], state: Mapping[str, Tensor], dropped: Collection[str] = ()) -> nn.Module:
    """The model of a checkpoint that our trainer wrote, holding `state`, in eval mode; dropped: as in `load_state`. Raises
    ModelError."""
    if not is_ours(config):
        raise ModelError("the checkpoint's configuration is not of a pgolf model: add --model FILE.py:NAME")
    try:
        model = untrained(dict(config), state)
    except (KeyError, TypeError, ValueError, ArithmeticError, UsageError) as error:
        raise ModelError(f"the checkpoint's configuration does not make a model ({one_line(error)})") from None
    load_state(model, state, dropped)
    return model.eval()


def is_ours(config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration is of our own trainer's model, rather than of somebody's run."""
    return config is not None and config.get("arch") == ARCH
