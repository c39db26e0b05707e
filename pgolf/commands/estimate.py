"""`pgolf estimate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import device_option, json_option, print_lines, state_option
from pgolf.errors import BudgetError


@click.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="As in pack; without one, the method's settings as they are.")
@click.option("--curvature", "curvature_file", metavar="CURV", type=click.Path(path_type=Path), help="From calibrate.")
@click.option("--method", metavar="M", help="As in pack.")
@click.option("--set", "rules", metavar="PATTERN=...", multiple=True, help="As in pack.")
@click.option("--code", metavar="FILE", multiple=True, help="Script that counts against the budget (repeatable).")
@click.option("--model", metavar="FILE.py:NAME|DIR", help="Says which tensors are buffers; its code is run.")
@click.option("--drop", metavar="NAME", multiple=True, help="As in pack; needs --model.")
@click.option("--advise", is_flag=True, help="Also: would a larger or a smaller model serve better in these bytes?")
@state_option
@device_option
@json_option
def estimate(
    ckpt: Path,
    budget: str | None,
    curvature_file: Path | None,
    method: str | None,
    rules: tuple[str, ...],
    code: tuple[str, ...],
    model: str | None,
    drop: tuple[str, ...],
    advise: bool,
    state: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Foresee in seconds what pack would give: bytes, and what they cost. Exit code 4 if it would not fit.

    Example: pgolf estimate ckpt.pt --budget 16MB --code train.py
    """
    from pgolf import report
    from pgolf.fitting import advice
    from pgolf.fitting import estimate as forecast
    from pgolf.kernels.device import need
    from pgolf.quant.curvature.store import Curvature
    from pgolf.train.model.rebuild import Maker

    need(device, kernels=False)
    curvature = Curvature.load(curvature_file, device) if curvature_file else None
    made = Maker(model, state).read(ckpt)
    foresee = advice.advise if advise else forecast.estimate
    told = foresee(made, budget=budget, curvature=curvature, method=method, rules=rules, code=code, drop=drop)
    print_lines([json.dumps(told.to_json())] if as_json else report.estimate_lines(told.to_json()))
    found = told.here if isinstance(told, advice.Advice) else told
    if found.fits is False:
        raise BudgetError(f"would not fit: about {found.total_bytes:,} B of at most {found.budget:,} B")
