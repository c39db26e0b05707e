"""Models that Hugging Face's transformers knows, built from a config.json: no network, no code of a stranger's, no words.

What the folder holds is read by `huggingface`; here are only the class and its names. Where a class calls its weights
otherwise than the folder does (GPT-2 without its prefix, experts one by one), transformers renames what we have read.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.common import extras
from pgolf.errors import CheckpointError, MissingExtraError, ModelError
from pgolf.models import blueprint, checkpoint, huggingface
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.huggingface import Folder
from pgolf.models.usermodel import load_state, one_line

COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KIND, CODE, QUANTIZED = "model_type", "auto_map", "quantization_config"
KERNELS = ("attn_implementation", "experts_implementation", "_implementation_internal")


def is_theirs(config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration is of the kind that transformers writes: it says which architecture the weights are of."""
    return config is not None and isinstance(config.get(KIND), str)


def is_known(config: Mapping[str, Any] | None, *, code: Path | None = None) -> bool:
    """Whether `build` can make a module of a configuration, by the transformers that is installed."""
    return config is not None and is_theirs(config) and obstacle(config, code=code) is None


def obstacle(config: Mapping[str, Any], *, code: Path | None = None) -> str | None:
    """Why `build` can make no module of a configuration that `is_theirs`, None if it can."""
    try:
        return _refusal(config, code)
    except MissingExtraError as error:
        return str(error)


def build(
    config: Mapping[str, Any] | None,
    state: Mapping[str, Tensor] | None = None,
    *,
    what: str = "the checkpoint",
    code: Path | None = None,
    dropped: Collection[str] = (),
) -> nn.Module:
    """The causal language model of a configuration, holding `state`, in eval mode and without a cache of keys.

    It computes in the dtype that most of `state` has, or the configuration's. state: under the class's names, or those that
    transformers writes; None: the weights are whatever lies in memory. what: for messages. code: the folder whose own model
    code may be run; None: no such code is. dropped: as in `usermodel.load_state`. torch's random state stays as it was.
    Raises ModelError (no such architecture, weights that do not fit) and MissingExtraError.
    """
    config = _refuse_unbuildable(config, what, code)
    dtype = _dtype_of(config, state)
    module = _made(config, dtype, what, code)
    if state is not None:
        given = state if _fits(module, state, dropped) else _renamed(module, state, what)
        load_state(module, given, dropped, filed=True)
    return module.eval()


def read(folder: Path, *, code: Path | None = None) -> Checkpoint:
    """The checkpoint in a folder under the names of the class that its config.json speaks of. Raises as `build`, and
    CheckpointError."""
    return named(huggingface.read(folder), str(folder), code=code)


def named(found: Folder, what: str, *, code: Path | None = None) -> Checkpoint:
    """The same of what a folder holds; what: for messages."""
    config = _refuse_unbuildable(found.config, what, code)
    like = _made(config, _dtype_of(config, found.tensors), what, code)
    plan, tensors, notes = blueprint.of(like), found.tensors, found.notes
    if not _fits(like, tensors, ()):
        tensors, notes = _renamed(like, tensors, what), (*notes, "names and shapes as in transformers' class")
    return checkpoint.from_mapping(tensors, found.config, notes, like=plan, tied=found.ties)


def config_of(module: nn.Module) -> dict[str, Any] | None:
    """The configuration that a module of transformers carries, as its config.json would say it; None of all others."""
    config = getattr(module, "config", None)
    library = sys.modules.get("transformers")  # where nobody imported it there is no such module
    if library is None or not isinstance(config, library.PretrainedConfig):
        return None
    said: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return said | {"architectures": [type(module).__name__]}


def _refuse_unbuildable(config: Mapping[str, Any] | None, what: str, code: Path | None) -> Mapping[str, Any]:
    if config is None or not is_theirs(config):
        raise ModelError(f"{what} has no config.json that says which model it is: add --model FILE.py:NAME")
    if why := _refusal(config, code):
        raise ModelError(f"{what}: {why}")
    return config


def _refusal(config: Mapping[str, Any], code: Path | None) -> str | None:
    """Why no module can be built of a configuration, None if one can. Raises MissingExtraError."""
    kind = config[KIND]
    if method := _quantized_by(config):
        return f"its weights are quantized already ({method}): give the folder from before"
    own = isinstance(config.get(CODE), Mapping) and any("ForCausalLM" in str(key) for key in config[CODE])
    if code is not None and own:
        return None
    with _quietly() as library:
        causal = kind in library.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        known = kind in library.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        version, encoder = library.__version__, causal and _sees_ahead(library, config)
    mend = "name the module that gives logits, --model FILE.py:NAME"
    if causal:
        return f"{kind} without is_decoder is an encoder, a token sees those that follow: {mend}" if encoder else None
    if own:
        return f"its model ({kind}) is code that lies beside the weights: read it, then --trust-remote-code runs it"
    if known:
        return f"{kind} is no causal language model: {mend}"
    return f"transformers {version} knows no architecture {kind!r}: a newer one may, or add --model FILE.py:NAME"


def _sees_ahead(library: Any, config: Mapping[str, Any]) -> bool:
    """Whether an architecture that is trained on masked words would be built without a causal mask."""
    masked = library.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    halves = (
        library.models.auto.modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    )  # of which the decoder is built
    kind = config[KIND]
    return kind in masked and kind not in halves and not (config.get("is_decoder") or config.get("causal"))


def _quantized_by(config: Mapping[str, Any]) -> str:
    said = huggingface.plain(config).get(QUANTIZED)
    return str(said.get("quant_method", "quantization_config")) if isinstance(said, Mapping) and said else ""


def _dtype_of(config: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> torch.dtype:
    """What most weights are stored in; without weights, what the configuration says."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in (state or {}).values():
        if tensor.dtype in COMPUTED_IN:
            sizes[tensor.dtype] += tensor.numel()
    if sizes:
        return max(COMPUTED_IN, key=lambda dtype: sizes[dtype])
    said = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), None)
    return said if said in COMPUTED_IN else torch.float32


def _made(config: Mapping[str, Any], dtype: torch.dtype, what: str, code: Path | None) -> nn.Module:
    """A module without weights: what it would draw for them is left out, which takes longer than all the rest."""
    with _quietly() as library, torch.random.fork_rng(devices=[]), _unfilled(library):
        try:
            settings = _settings(library, config, code)
            settings.use_cache = False
            module = library.AutoModelForCausalLM.from_config(
                settings, dtype=dtype, **({} if code is None else {"trust_remote_code": True})
            )
        except Exception as error:
            raise ModelError(
                f"{what}: transformers {library.__version__} builds no model of config.json "
                f"({type(error).__name__}: {one_line(error)})"
            ) from error
    assert isinstance(module, nn.Module)
    return module


def _settings(library: Any, config: Mapping[str, Any], code: Path | None) -> Any:
    if code is not None and config.get(CODE):
        return library.AutoConfig.from_pretrained(code, trust_remote_code=True, local_files_only=True)
    rest = {
        name: value for name, value in _without_kernels(huggingface.plain(config)).items() if name not in (KIND, CODE)
    }
    return library.AutoConfig.for_model(config[KIND], **rest)


def _without_kernels(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, and those within it, that ask for no kernels: such a word may name code in a cache of the hub's."""
    kept = {name: value for name, value in config.items() if not name.endswith(KERNELS)}
    return {name: _without_kernels(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _fits(module: nn.Module, state: Mapping[str, Tensor], dropped: Collection[str]) -> bool:
    """Whether a state dict has the module's own names and shapes."""
    plan = blueprint.of(module)
    there = {plan.ties.get(name, name) for name in (*state, *dropped)}
    return (
        all(plan.ties.get(name, name) in there for name in plan.full)
        and state.keys() <= plan.full.keys()
        and all(state[name].shape == plan.shapes[name] for name in state)
    )


def _renamed(module: nn.Module, state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`state` under the module's names, by the rules that transformers has for folders of this architecture.

    Raises CheckpointError that names what the module lacks then, or what it would not use.
    """
    with _quietly() as library, torch.random.fork_rng(devices=[]):
        try:
            made, told = type(module).from_pretrained(  # type: ignore[attr-defined]
                None,
                config=module.config,
                state_dict=dict(state),
                dtype=module.dtype,
                ignore_mismatched_sizes=True,  # told below, by name
                output_loading_info=True,
            )
        except Exception as error:
            raise CheckpointError(
                f"{what}: transformers {library.__version__} cannot read its weights "
                f"({type(error).__name__}: {one_line(error)})"
            ) from error
    wrong = {
        "it lacks": [*told["missing_keys"]],
        "of no use to the class:": sorted({*told["unexpected_keys"]} - _buffers(module)),
        "of another shape:": [name for name, *_ in told["mismatched_keys"]],
    }
    if said := "; ".join(f"{words} {_some(names)}" for words, names in wrong.items() if names):
        raise CheckpointError(f"{what} does not hold the weights of {type(module).__name__}: {said}")
    tied = blueprint.of(made).ties
    return {name: tensor.detach() for name, tensor in made.state_dict().items() if name not in tied}


def _buffers(module: nn.Module) -> set[str]:
    """Names of what the class makes by itself, as the first GPT-2's masks, also without the front of its inner model."""
    front = f"{getattr(module, 'base_model_prefix', '')}."
    names = {name for name, _ in module.named_buffers()}
    return names | {name.removeprefix(front) for name in names}


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@contextmanager
def _quietly() -> Iterator[Any]:
    """transformers, in here without network and without words; afterwards it is as its user had set it."""
    extras.need("transformers")
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        import transformers
        from huggingface_hub import constants

        root, bars = logging.getLogger("transformers"), transformers.utils.logging
        before = root.level, bars.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE
        root.setLevel(logging.CRITICAL)
        bars.disable_progress_bar()
        constants.HF_HUB_OFFLINE = True
        try:
            yield transformers
        finally:
            root.setLevel(before[0])
            if before[1]:
                bars.enable_progress_bar()
            constants.HF_HUB_OFFLINE = before[2]


def _unfilled(library: Any) -> Any:
    """A context in which weights are not drawn at random, where this transformers has one."""
    found = getattr(getattr(library, "initialization", None), "no_init_weights", None)
    return nullcontext() if found is None else found()
