"""`pgolf unpack`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.shared import force_option, gathered, json_option, print_lines, refuse_overwrite
from pgolf.common.files import same_file
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


FORMATS = ("safetensors", "pt", "hf", "pgolf-hf", "gguf")
FOLDERS = ("hf", "pgolf-hf")


@dataclass(frozen=True)
class FormatOptions:
    """--format, None where the name -o says it; --gguf-type of matrices; --packed in a GPU's memory; --like: the folder that the
    artifact was made of, for what is in none."""

    format: str | None
    gguf_type: str
    packed: bool
    like: Path | None


@click.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, metavar="OUT.safetensors|OUT.pt|OUT.gguf|DIR", type=click.Path(path_type=Path)
)
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="hf: a folder of plain weights; pgolf-hf: one that holds the artifact. [default: as -o is named, hf for a folder]",
)
@click.option(
    "--like",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Hugging Face folder to copy the rest from: config, tokenizer.",
)
@click.option(
    "--gguf-type", type=click.Choice(["F16", "Q8_0"]), default="F16", show_default=True, help="Of a GGUF's matrices."
)
@click.option("--packed", is_flag=True, help="pgolf-hf: weights stay packed in a GPU's memory.")
@json_option
@force_option
@gathered(how=FormatOptions)
def unpack(art: Path, out: Path, force: bool, as_json: bool, how: FormatOptions) -> None:
    """Turn an artifact back into a checkpoint, a Hugging Face folder or a GGUF file.

    Example: pgolf unpack model.pgolf -o model.safetensors
    """
    from pgolf.loading import dense
    from pgolf.report.terminal import left_out_lines

    art, kind = dense.file_of(art), _format(out, how)
    if how.like is not None and same_file(out, how.like):
        raise UsageError(f"-o {out} is the folder of --like, whose weights would be lost: name another")
    refuse_overwrite(_weights(out, kind), force, art)
    entries, meta = dense.read(art)
    state = dense.tensors_of(entries)
    names = _written(art, out, kind, how, state, meta)
    left = dense.dropped_of(meta)
    print_lines(left_out_lines(left), err=True)
    if as_json:
        click.echo(json.dumps({"path": str(out), "format": kind, "tensors": len(state), "dropped": left}))
    else:
        more = f" and {len(names) - 1} more files" if kind in FOLDERS else ""
        click.echo(f"{len(state)} tensors{more} written to {out}")


def _format(out: Path, how: FormatOptions) -> str:
    """What is to be written. Raises UsageError for a name that says none, or another."""
    by_name = out.suffix.removeprefix(".") if not out.is_dir() else ""
    if how.format is not None:
        if how.format in FOLDERS and out.exists() and not out.is_dir():
            raise UsageError(f"-o {out} is a file: --format {how.format} writes a folder")
        if how.format not in FOLDERS and (out.is_dir() or by_name not in {how.format, ""}):
            raise UsageError(f"-o {out}: --format {how.format} writes a file whose name ends in .{how.format}")
        return how.format
    if by_name == "gguf":
        return "gguf"
    if how.like is not None or not by_name:
        return "hf"
    if by_name not in FORMATS:
        raise UsageError(f"-o {out}: the name must end in .safetensors, .pt or .gguf, or be a folder's")
    return by_name


def _weights(out: Path, kind: str) -> Path:
    """What is not to be overwritten: of a folder that is there, its weights."""
    from pgolf.models import huggingface

    return out / (huggingface.ARTIFACT if kind == "pgolf-hf" else huggingface.WEIGHTS) if out.is_dir() else out


def _written(
    art: Path, out: Path, kind: str, how: FormatOptions, state: dict[str, Tensor], meta: dict[str, Any]
) -> list[str]:
    """Write `out`; the names of a folder's files."""
    from pgolf.loading import gguf_file, hf_folder
    from pgolf.models import huggingface

    if kind == "hf":
        return huggingface.write(out, state, meta.get("config"), how.like)
    if kind == "pgolf-hf":
        return hf_folder.write(out, art, how.like, packed=how.packed)
    if kind == "gguf":
        gguf_file.write(out, state, hf_folder.said(meta, how.like, art), how.like, how.gguf_type)
    else:
        _write_file(out, kind, state)
    return [out.name]


def _is_unicode(name: str) -> bool:
    return name.isascii() or name == name.encode(errors="replace").decode()


def _write_file(out: Path, kind: str, state: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    from pgolf.common.files import replacing
    from pgolf.models.torchfile import torch_save

    if kind == "pt":
        torch_save(state, out)
        return
    for name, tensor in state.items():
        if str(tensor.dtype) == "torch.complex128" or not _is_unicode(name):
            raise UsageError(
                f"-o {out}: safetensors cannot hold {name!r} ({tensor.dtype}): name a file that ends in .pt"
            )
    with replacing(out) as file:
        file.write(save({name: tensor.clone().contiguous() for name, tensor in state.items()}))
