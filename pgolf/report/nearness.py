"""How near a packed model is to the unquantized one, in lines for the terminal, drawn from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def asked_lines(asked: Mapping[str, Any] | None) -> list[str]:
    """What `pack` was to stay below in place of a budget, and where it ended."""
    if asked is None:
        return []
    said = {
        "bits": "{:.3f} bits a quantized weight at most",
        "target_rise": "a predicted rise of {:.3g} at most",
        "max_kl": "a measured KL of {:.3g} at most",
        "max_rise": "a measured rise of {:.3g} at most",
    }[asked["what"]].format(asked["limit"])
    trials = f", the smallest of {asked['trials']} tried" if asked["trials"] else ""
    return [f"asked for          {said}: {asked['found']:.4g}{trials}"]


def measured_lines(found: Mapping[str, Any] | None, tuned: Mapping[str, Any] | None) -> list[str]:
    """What `pack` says of the KL and the rise that it measured, and of its closed loop."""
    lines = []
    if tuned:
        change = (
            f"KL {tuned['kl_before']:.5f} -> {tuned['kl']:.5f}"
            if tuned["helped"]
            else "the open loop's artifact is kept"
        )
        reason = f" ({tuned['notes']})" if tuned["notes"] else ""
        lines.append(f"tuned              on {tuned['tokens']:,} tokens, seed {tuned['seed']}: {change}{reason}")
    if found:
        lines.append(
            f"measured KL        {found['kl']:.5f} ± {found['kl_error']:.5f} nats per token, on {found['tokens']:,} tokens"
        )
        sure = f" ± {found['rise_error']:.5f}" if found.get("rise_error") else ""
        lines.append(
            f"measured rise      {found['rise']:+.5f}{sure} nats per token of {found['loss']:.4f} ({found['text']})"
        )
        lines.append(
            f"same likeliest     {100 * found['same_top']:.2f}% of tokens; KL of the worst 1%: above {found['kl_rare']:.4f}"
        )
        if found["culprits"]:
            lines.append(
                "warning: the KL is more than twice the predicted rise; most of the difference seems to come from "
                + ", ".join(found["culprits"])
            )
    return lines


def divergence_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `pgolf eval --against` says of one model or of two."""
    both = "difference" in facts
    lines = [f"against {facts['against']}, {facts['how']}"]
    for name, found in {"A": facts["a"], "B": facts["b"]}.items() if both else [("", facts)]:
        lines += [f"{name}  {found['source']}"] if name else []
        lines += [
            f"KL                 {found['kl']:.5f} ± {found['kl_error']:.5f} nats per token, on {found['tokens']:,} tokens; "
            f"99th percentile {found['kl_rare']:.4f}",
            f"same likeliest     {100 * found['same_top']:.2f}% of tokens",
            f"rise of the loss   {found['rise']:+.5f} ± {found['rise_error']:.5f} nats per token of {found['loss']:.4f}",
            f"bytes              {found['bytes']:,}",
        ]
    if not both:
        return lines
    change, units = facts["difference"], facts["units"]
    if change["standard_error"] is None:
        return [*lines, f"difference B - A   KL {change['value']:+.5f}  (one of the {units['of']}: no standard error)"]
    return [
        *lines,
        f"difference B - A   KL {change['value']:+.5f} ± {change['standard_error']:.5f}  (95% {change['low']:+.5f} to "
        f"{change['high']:+.5f}, p {change['p']:.2g}, bootstrap of {change['units']:,} {units['of']})",
    ]
