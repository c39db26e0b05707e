"""`pgolf train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgolf.commands.shared import first_rank, json_option, progress_bars
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.train.loop.foresight import Foreseen


@click.command()
@click.option("--preset", type=click.Choice(["tiny", "small", "golf"]), default="tiny", show_default=True)
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--data", metavar="DIR", type=click.Path(path_type=Path), help="Token shards [tiny: Python's own library]."
)
@click.option(
    "--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="[default: the one beside the data]"
)
@click.option("--minutes", metavar="M", type=float, help="Train this long instead of the preset's steps.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the preset.")
@click.option(
    "--qat",
    metavar="GRID,...",
    help="Quantize while training: 'int6,k=12.85,start=0.85,rounding=ste' (or soft, noise), 'auto,bits=3,rounding=noise'.",
)
@click.option("--qat-set", metavar="PATTERN=...", multiple=True, help="QAT per tensor, as --set of pgolf pack.")
@click.option("--pack", metavar="SIZE", help="Pack the result to this budget: model.pgolf and its report in DIR.")
@click.option(
    "--stop-if",
    metavar="CONDITION",
    help="End a hopeless run: 'final>1.6 and step>=100', of final, packed, size, step, seconds; exit code 5.",
)
@click.option("--device", metavar="D", help="cpu or cuda [default: cuda where there is one].")
@click.option("--resume", is_flag=True, help="Go on where the run in DIR stopped, to the same state.")
@click.option("--seed", metavar="S", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True)
@json_option
def train(
    preset: str,
    out: Path,
    data: Path | None,
    tokenizer: Path | None,
    minutes: float | None,
    overrides: tuple[str, ...],
    qat: str | None,
    qat_set: tuple[str, ...],
    pack: str | None,
    stop_if: str | None,
    device: str | None,
    resume: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Train a model whose checkpoint `pgolf pack` knows without being told.

    From a tenth of the run on the line of progress says what it is foreseen to score, and with --pack what it would weigh.

    Example: pgolf train --preset tiny -o run && pgolf pack run/checkpoint.pt --budget 300kB
    """
    from dataclasses import replace

    from pgolf.train.loop import run_folder
    from pgolf.train.qat.settings import parse_options

    if qat_set and qat is None:
        raise UsageError("--qat-set needs --qat: say how the other tensors are to be treated")
    how = None if qat is None else replace(parse_options(qat), rules=qat_set)
    ahead = ""

    def look(seen: Foreseen) -> None:
        nonlocal ahead
        ahead = f", {seen}" if str(seen) else ""

    with progress_bars() as progress:
        made = run_folder.train(
            preset,
            out,
            data=data,
            tokenizer=tokenizer,
            minutes=minutes,
            overrides=overrides,
            device=device,
            resume=resume,
            seed=seed,
            qat=how,
            pack=pack,
            stop_if=stop_if,
            foreseen=look,
            progress=lambda s: progress(f"train{ahead}", round(1000 * s.progress), 1000),
        )
    if not first_rank():
        return
    facts = made.to_json()
    if as_json:
        click.echo(json.dumps(facts))
        return
    score = f", {made.score.bpb:.4f} bits per byte held out" if made.score else ""
    for note in made.notes:
        click.echo(f"note: {note}")
    click.echo(f"{made.steps} steps, {made.tokens:,} tokens in {made.seconds:.0f} s{score}; {made.checkpoint}")
    if made.qat:
        click.echo(made.qat)
    if made.packed:
        packed = made.packed["score"]
        after = f", {packed['bpb']:.4f} bits per byte" if packed else ""
        click.echo(f"{made.packed['bytes']:,} bytes in {made.checkpoint.with_name(made.packed['file'])}{after}")
