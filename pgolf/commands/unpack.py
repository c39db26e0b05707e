"""`pgolf unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from pgolf.commands.shared import force_option, refuse_overwrite
from pgolf.errors import UsageError


@click.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, metavar="OUT.safetensors|OUT.pt", type=click.Path(path_type=Path))
@force_option
def unpack(art: Path, out: Path, force: bool) -> None:
    """Turn an artifact back into a checkpoint.

    Example: pgolf unpack model.pgolf -o model.safetensors
    """
    import torch

    from pgolf import pipeline
    from pgolf.packer.container import replacing

    if out.suffix not in {".safetensors", ".pt"}:
        raise UsageError(f"-o {out}: the name must end in .safetensors or .pt")
    refuse_overwrite(out, force)
    state = pipeline.load(art)
    with replacing(out) as file:
        if out.suffix == ".pt":
            torch.save(state, file)
        else:
            from safetensors.torch import save

            file.write(save({name: tensor.clone().contiguous() for name, tensor in state.items()}))
    click.echo(f"{len(state)} tensors written to {out}")
