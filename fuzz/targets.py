"""Every reader of files and strings from strangers, with honest inputs to start from.

A reader may do two things with any bytes: return what they mean, or raise a PgolfError. A new format is one function
and one line in TARGETS.
"""

from __future__ import annotations

from fuzz import artifacts, files, mutate, words
from fuzz.target import Target, on_file, on_text

_JSON = (mutate.damaged, mutate.json_lie)

TARGETS: dict[str, Target] = {
    "artifact": Target(
        artifacts.meaning,
        artifacts.artifacts,
        (mutate.damaged, lambda d, rng: mutate.repaired(mutate.damaged(d, rng))),
        sealed=True,
    ),
    "forged-artifact": Target(artifacts.meaning, artifacts.artifacts, (mutate.forged,)),
    "shard": Target(on_file("shard.bin", files.read_shard), files.shards),
    "sidecar": Target(on_file("sidecar.bin", files.read_sidecar), files.shards),
    "tokenizer": Target(on_file("t.model", files.read_tokenizer), files.tokenizers),
    "checkpoint": Target(on_file("ckpt.pt", files.read_checkpoint), files.checkpoints, sealed=True),
    "forged-checkpoint": Target(on_file("forged.pt", files.read_checkpoint), files.checkpoints, (mutate.rezipped,)),
    "old-checkpoint": Target(on_file("old.pt", files.read_checkpoint), files.old_checkpoints),
    "safetensors": Target(
        on_file("ckpt.safetensors", files.read_checkpoint),
        files.safetensors,
        (mutate.damaged, mutate.safetensors_lie),
    ),
    "config": Target(on_file("folder/config.json", files.read_config), files.configs, _JSON),
    "index": Target(on_file("shards/model.safetensors.index.json", files.read_index), files.indices, _JSON),
    "curvature": Target(
        on_file("a.curvature", files.read_curvature),
        files.curvatures,
        (mutate.damaged, mutate.safetensors_lie),
    ),
    "result": Target(on_file("result.json", files.read_result), files.results, _JSON),
    "log": Target(on_file("train.jsonl", files.read_log), files.logs, (mutate.damaged, mutate.json_lines_lie)),
    "state": Target(on_file("state.pt", files.read_state), files.states, (mutate.damaged, mutate.rezipped)),
    "sweep": Target(on_file("sweep/sweep.json", files.read_sweep), files.sweeps, _JSON),
    "points": Target(on_file("points/all.json", files.read_points), files.points, _JSON),
    "rule": Target(on_text(words.read_rule), lambda: words.RULES),
    "size": Target(on_text(words.read_size), lambda: words.SIZES),
    "qat": Target(on_text(words.read_qat), lambda: words.QAT),
    "methods": Target(on_text(words.read_methods), lambda: words.METHODS),
    "settings": Target(on_text(words.read_settings), lambda: words.SETTINGS),
}
