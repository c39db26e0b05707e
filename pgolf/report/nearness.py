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
