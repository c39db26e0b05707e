"""`pgolf unpack`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgolf.commands.shared import force_option, json_option, print_lines, refuse_overwrite
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, metavar="OUT.safetensors|OUT.pt|DIR", type=click.Path(path_type=Path))
@click.option(
    "--like", metavar="DIR", type=click.Path(path_type=Path), help="Hugging Face folder to copy the rest from."
)
@json_option
@force_option
def unpack(art: Path, out: Path, like: Path | None, force: bool, as_json: bool) -> None:
    """Turn an artifact back into a checkpoint, or into a Hugging Face folder.

    Example: pgolf unpack model.pgolf -o model.safetensors
    """
    from pgolf.loading import dense
    from pgolf.models import huggingface
    from pgolf.report.terminal import left_out_lines

    as_folder = like is not None or out.is_dir() or not out.suffix
    if not as_folder and out.suffix not in {".safetensors", ".pt"}:
        raise UsageError(f"-o {out}: the name must end in .safetensors or .pt, or be a folder's")
    refuse_overwrite(out / huggingface.WEIGHTS if out.is_dir() else out, force)
    entries, meta = dense.read(art)
    state = dense.tensors_of(entries)
    more = ""
    if as_folder:
        names = huggingface.write(out, state, meta.get("config"), like)
        more = f" and {len(names) - 1} more files"
    else:
        _write_file(out, state)
    left = dense.dropped_of(meta)
    print_lines(left_out_lines(left), err=True)
    if as_json:
        click.echo(json.dumps({"path": str(out), "tensors": len(state), "dropped": left}))
    else:
        click.echo(f"{len(state)} tensors{more} written to {out}")


def _is_unicode(name: str) -> bool:
    return name.isascii() or name == name.encode(errors="replace").decode()


def _write_file(out: Path, state: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    from pgolf.common.files import replacing
    from pgolf.models.torchfile import torch_save

    if out.suffix == ".pt":
        torch_save(state, out)
        return
    for name, tensor in state.items():
        if str(tensor.dtype) == "torch.complex128" or not _is_unicode(name):
            raise UsageError(
                f"-o {out}: safetensors cannot hold {name!r} ({tensor.dtype}): name a file that ends in .pt"
            )
    with replacing(out) as file:
        file.write(save({name: tensor.clone().contiguous() for name, tensor in state.items()}))
