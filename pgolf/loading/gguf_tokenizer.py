"""A tokenizer as the keys of a GGUF file: byte-level BPE of tokenizer.json, or a SentencePiece model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgolf.common import extras
from pgolf.errors import UsageError

JSON, PIECES = "tokenizer.json", "tokenizer.model"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's types of tokens
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SHORT, _REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {  # the pattern that words are split by: llama.cpp's name for it
    rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_SHORT}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}


def add(writer: Any, folder: Path, rows: int) -> None:
    """Write the tokenizer of a folder, for a model of `rows` tokens. Raises UsageError for kinds that GGUF cannot say.

    A SentencePiece model is taken before a tokenizer.json that says the same in other words.
    """
    if (folder / PIECES).is_file():
        tokens = _pieces(writer, folder / PIECES)
    elif (folder / JSON).is_file():
        tokens = _byte_level(writer, folder / JSON)
    else:
        raise UsageError(f"--format gguf: {folder} brings no tokenizer ({JSON} or {PIECES})")
    if len(tokens) > rows:
        raise UsageError(
            f"--format gguf: the tokenizer of {folder} has {len(tokens)} tokens, the model {rows}: another model's?"
        )
    tokens += [(f"[PAD{index}]", UNUSED, 0.0) for index in range(len(tokens), rows)]
    texts, types, scores = zip(*tokens, strict=True)
    writer.add_token_list(list(texts))
    writer.add_token_types(list(types))
    if (folder / PIECES).is_file():
        writer.add_token_scores(list(scores))
    _special(writer, folder, rows)


def _special(writer: Any, folder: Path, rows: int) -> None:
    """Which tokens begin and end a text, and the chat template, as the folder's files say."""
    extras.need("gguf")
    from gguf import SpecialVocab  # optional

    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    SpecialVocab(folder, load_merges=False, n_vocab=rows).add_to_gguf(writer, quiet=True)


def _byte_level(writer: Any, path: Path) -> list[tuple[str, int, float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        model, vocabulary = found["model"], dict(found["model"]["vocab"])
        added = {int(each["id"]): each for each in found.get("added_tokens") or []}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--format gguf: {path} is no tokenizer.json ({type(error).__name__})") from None
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise UsageError(
            f"--format gguf: {path} is not byte-level BPE: put the tokenizer.model beside it that it was made of"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(found.get("pre_tokenizer"), path))
    merges = model.get("merges") or []
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    names = {int(index): str(text) for text, index in vocabulary.items()}
    names |= {index: str(each["content"]) for index, each in added.items()}
    kinds = {index: CONTROL if each.get("special") else USER_DEFINED for index, each in added.items()}
    return [
        (names.get(index, f"[PAD{index}]"), kinds.get(index, NORMAL if index in names else UNUSED), 0.0)
        for index in range(max(names) + 1)
    ]


def _split(rule: Any, path: Path) -> str:
    """llama.cpp's name for the way in which a text is split into words."""
    for each in _rules(rule):
        pattern = (each.get("pattern") or {}).get("Regex") if each.get("type") == "Split" else None
        if pattern in SPLITS:
            return SPLITS[pattern]
    rules = list(_rules(rule))
    if len(rules) == 1 and rules[0].get("type") == "ByteLevel" and rules[0].get("use_regex", True):
        return "gpt-2"
    raise UsageError(f"--format gguf: {path} splits words in a way that llama.cpp has no name for, or none known here")


def _rules(rule: Any) -> Iterator[dict[str, Any]]:
    if isinstance(rule, dict) and rule.get("type") == "Sequence":
        for each in rule.get("pretokenizers") or []:
            yield from _rules(each)
    elif isinstance(rule, dict):
        yield rule


def _pieces(writer: Any, path: Path) -> list[tuple[str, int, float]]:
    extras.need("sentencepiece")
    from sentencepiece import SentencePieceProcessor  # optional

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        raise UsageError(f"--format gguf: {path} is not a SentencePiece model") from None
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")

    def kind(index: int) -> int:
        checks = (
            (model.is_unknown, UNKNOWN),
            (model.is_control, CONTROL),
            (model.is_unused, UNUSED),
            (model.is_byte, BYTE),
        )
        return next((number for check, number in checks if check(index)), NORMAL)

    return [(model.id_to_piece(i), kind(i), float(model.get_score(i))) for i in range(model.get_piece_size())]
