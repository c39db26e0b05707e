"""`pgolf eval A [B] --against C`: how far changed models are from the unquantized one."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.commands.models import model_with, usable_context
from pgolf.commands.shared import ModelOptions, TextOptions
from pgolf.common.progress import Progress
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.models.logits import Logits
    from pgolf.scoring.evaluation import Text


def compare(
    sources: Sequence[Path],
    reference: Path,
    data: Sequence[Path],
    bos: int | None,
    documents: bool,
    user: ModelOptions,
    options: TextOptions,
    progress: Progress,
) -> dict[str, Any]:
    """The figures of one source, or of two as `a`, `b` and `difference`, as JSON. Raises what reading and running raise."""
    from pgolf.data import shards
    from pgolf.scoring import against

    text = _text(data, bos, options)
    starts = shards.document_starts(text.scored, text.bos, required=documents)
    before, *changed = (_logits(source, user, options.device) for source in (reference, *sources))
    seq_len = options.seq_len or min(usable_context(each.model, user.logits) for each in (before, *changed))
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):  # what the models print: stdout is for our data
        found = against.figures(
            before,
            changed,
            text.scored,
            seq_len=seq_len,
            stride=options.stride,
            starts=starts,
            within_documents=documents,
            progress=lambda done, total: progress(f"against {reference.name}", done, total),
        )
    shared = {
        "against": str(reference),
        "how": f"windows of {seq_len}, stride {options.stride or seq_len}{' within documents' if documents else ''}",
        "units": {"of": found[0].unit, "count": len(found[0].cuts)},
        "seconds": time.perf_counter() - began,
    }
    each = [
        {"source": str(source), "bytes": size_of(source)} | asdict(made.divergence())
        for source, made in zip(sources, found, strict=True)
    ]
    if len(each) == 1:
        return shared | each[0]
    return shared | {"a": each[0], "b": each[1], "difference": against.difference(*found).to_json()}


def size_of(source: Path) -> int:
    """Bytes of an artifact or a checkpoint; of a folder, those of its files of weights."""
    from pgolf.models.huggingface import weight_files

    return sum(path.stat().st_size for path in (weight_files(source) if source.is_dir() else [source]))


def _logits(source: Path, user: ModelOptions, device: str) -> Logits:
    from pgolf.kernels.device import need
    from pgolf.models.logits import logits_of
    from pgolf.scoring.static import to_device

    return logits_of(to_device(model_with(source, user), need(device)), user.logits)


def _text(data: Sequence[Path], bos: int | None, options: TextOptions) -> Text:
    """The text or shard --data; the bytes of a shard's tokens are nobody's business here."""
    import numpy as np

    from pgolf.data import shards
    from pgolf.data.text import refuse_mixed
    from pgolf.scoring import bpb, evaluation

    if not data:
        raise UsageError("eval needs --data, text or a token shard to score")
    if not refuse_mixed(data, "--data"):
        return evaluation.read_text(data, tokenizer=options.tokenizer, bos=bos, max_tokens=options.max_tokens)
    tokens = shards.read_shard(data[0])
    start = evaluation.start_of_shard(bos, options.tokenizer)
    total = bpb.num_targets(tokens, max_tokens=options.max_tokens)
    return evaluation.Text(tokens, np.zeros(len(tokens), np.uint16), start, total, "")
