"""Tokenizers of folders that bring no tokenizer.json: vocab.json with merges.txt, and tiktoken's ranks.

Neither says how text is split before pieces are looked for, nor which pieces are none of the text. The other files of the
folder name its family, which does; where they name none that is known here, nothing is guessed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.common import extras
from pgolf.errors import DataError

JSON, VOCABULARY, MERGES, RANKS = "tokenizer.json", "vocab.json", "merges.txt", ".tiktoken"
PIECES = "tokenizer.model"  # SentencePiece's, or tiktoken's ranks
SETTINGS, CONFIG, ADDED, MAP = "tokenizer_config.json", "config.json", "added_tokens.json", "special_tokens_map.json"
STARTS = ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "<|im_start|>")  # where no file says which it is
MOST_SPECIAL = 4096  # ids beyond the pieces

_TAILS, _ENDS = "'s|'t|'re|'ve|'m|'ll|'d", r"\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = rf"{_TAILS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_ENDS}"
_WORDS = rf"(?i:{_TAILS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_ENDS}"
CL100K, QWEN = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}", rf"{_WORDS}|\p{{N}}|{_SIGNS}"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:{_TAILS})?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:{_TAILS})?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_ENDS}"
)


@dataclass(frozen=True)
class Family:
    """How a family splits text; normal: by which Unicode form it is written before, "" for as it stands."""

    pattern: str
    normal: str = ""


_GPT2, _LLAMA3, _QWEN, _O200K = Family(GPT2), Family(CL100K), Family(QWEN, "NFC"), Family(O200K)
RANKED = {  # by the name of a file of ranks
    **dict.fromkeys(("gpt2", "r50k_base", "p50k_base", "p50k_edit"), _GPT2),
    "cl100k_base": _LLAMA3,
    **dict.fromkeys(("o200k_base", "o200k_harmony"), _O200K),
    "qwen": _QWEN,
}
CLASSES = {  # by tokenizer_class or model_type, in small letters and without what is added to the class's name
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "codegen", "phi", "opt"), _GPT2),
    **dict.fromkeys(("qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _QWEN),
}
OF_RANKS = {"llama": _LLAMA3, "gpt_oss": _O200K} | CLASSES  # a Llama with a vocab.json is none of Llama 3's


def brings(folder: Path) -> bool:
    """Whether `read` has something to read in a folder."""
    return _has_merges(folder) or _ranks_in(folder) is not None


def read(path: Path) -> Any:
    """A `tokenizers.Tokenizer` of the files of a folder that `brings` one, or of one of them. Raises DataError,
    MissingExtraError."""
    extras.need("tokenizers")
    if path.is_dir():
        ranks = _ranks_in(path)
        return _of_merges(path) if ranks is None or _has_merges(path) else _of_ranks(ranks)
    return _of_merges(path.parent) if path.name in (VOCABULARY, MERGES) else _of_ranks(path)


def reads(path: Path) -> bool:
    """Whether a file is one that `read` takes."""
    if path.name in (VOCABULARY, MERGES):
        return _has_merges(path.parent)
    return path.suffix == RANKS or is_ranks(path)


def _has_merges(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (VOCABULARY, MERGES))


def _ranks_in(folder: Path) -> Path | None:
    found = sorted(folder.glob(f"*{RANKS}")) if folder.is_dir() else []
    pieces = folder / PIECES
    return found[0] if found else pieces if is_ranks(pieces) else None


def is_ranks(path: Path) -> bool:
    """Whether a file holds tiktoken's ranks: lines of base64 and a number."""
    try:
        with path.open("rb") as file:
            first = file.readline(200).split()
    except OSError:
        return False
    return len(first) == 2 and first[1].isdigit()


def _of_merges(folder: Path) -> Any:
    extras.need("tokenizers")
    from tokenizers import models

    family = _family(folder, CLASSES)
    if family is None:
        raise DataError(
            f"{folder}: its {VOCABULARY} and {MERGES} do not say how text is split, and neither {SETTINGS} nor {CONFIG} names "
            f"a family that is known here: write {JSON} with AutoTokenizer.from_pretrained(...).save_pretrained(DIR)"
        )
    try:
        vocabulary, merges = models.BPE.read_file(str(folder / VOCABULARY), str(folder / MERGES))
        made = _byte_level(models.BPE(vocabulary, merges), family, facts(folder / SETTINGS))
    except Exception as error:  # it raises bare ones
        raise DataError(f"{folder}: {VOCABULARY} and {MERGES} make no tokenizer ({_short(error)})") from None
    _add_special(made, folder, folder / VOCABULARY)
    return made


def _of_ranks(path: Path) -> Any:
    extras.need("tokenizers")
    from tokenizers import models

    family = RANKED.get(path.stem) or _family(path.parent, OF_RANKS)
    if family is None:
        raise DataError(
            f"{path} is tiktoken's, which does not say how text is split, and neither its name nor {CONFIG} does: save it as "
            f"{JSON} first"
        )
    ranks = _ranks(path)
    letters = _letters()
    words = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    merges = [(words[left], words[right]) for left, right in _merges(ranks)]
    vocabulary = {words[piece]: rank for piece, rank in ranks.items()}
    made = _byte_level(models.BPE(vocabulary, merges, ignore_merges=True), family, {})
    _add_special(made, path.parent, path)
    return made


def _ranks(path: Path) -> dict[bytes, int]:
    """Piece → its rank, which is its id, ascending."""
    ranks, number = dict[bytes, int](), 0
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):  # noqa: B007  # for the message
            if line.strip():
                piece, rank = line.split()
                ranks[base64.b64decode(piece, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        raise DataError(f"{path}, line {number}: no base64 and rank, as tiktoken writes them") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not all(bytes([byte]) in ranks for byte in range(256)) or len(set(ranks.values())) < len(ranks):
        raise DataError(f"{path}: has no rank for every byte, or one for two pieces: is it truncated?")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _merges(ranks: Mapping[bytes, int]) -> Iterable[tuple[bytes, bytes]]:
    """All pairs that make a piece, as tiktoken joins them: the piece of the lowest rank first."""
    for piece in ranks:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        yield from sorted(
            (p for p in pairs if p[0] in ranks and p[1] in ranks), key=lambda p: (ranks[p[0]], ranks[p[1]])
        )


def _letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it is printed, else from 256 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]


def _byte_level(model: Any, family: Family, settings: Mapping[str, Any]) -> Any:
    extras.need("tokenizers")
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    made = tokenizers.Tokenizer(model)
    prefix = bool(settings.get("add_prefix_space", False))
    parts = [
        pre_tokenizers.Split(tokenizers.Regex(family.pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    usual = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # which splits as GPT-2 does
    made.pre_tokenizer = usual if family.pattern == GPT2 else pre_tokenizers.Sequence(parts)
    if family.normal:
        made.normalizer = getattr(normalizers, family.normal)()
    made.decoder = decoders.ByteLevel()
    return made


def _family(folder: Path, known: Mapping[str, Family]) -> Family | None:
    """By what the files of a folder call tokenizer or model."""
    named = str(facts(folder / SETTINGS).get("tokenizer_class", ""))
    kinds = (named.removesuffix("Fast").removesuffix("Tokenizer"), facts(folder / CONFIG).get("model_type", ""))
    return next((known[kind] for kind in (str(kind).lower() for kind in kinds) if kind in known), None)


def _add_special(made: Any, folder: Path, path: Path) -> None:
    """Make what is none of the text known: pieces that the folder's files call special, and all ids beyond the pieces.

    Raises DataError where a file gives one an id that it cannot have.
    """
    extras.need("tokenizers")
    from tokenizers import AddedToken

    pieces, names = made.get_vocab_size(), _special(folder)
    inside = [word for word in (*names.values(), *_words(folder), *STARTS) if made.token_to_id(word) is not None]
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in dict.fromkeys(inside)])
    end = max([*names, int(_number(facts(folder / CONFIG).get("vocab_size"))) - 1, pieces - 1]) + 1
    if end - pieces > MOST_SPECIAL:
        raise DataError(f"{path}: has {pieces:,} pieces, for a model of {end:,}: another model's tokenizer?")
    words = [names.get(token) or f"<|{token} of no name|>" for token in range(pieces, end)]
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    wrong = [word for token, word in names.items() if made.token_to_id(word) != token]
    if wrong:
        raise DataError(f"{folder}: {wrong[0]!r} has another number in {path.name} than beside it: of two models?")


def _special(folder: Path) -> dict[int, str]:
    """Id → the word of what was added to the pieces, as the files of a folder say."""
    told = facts(folder / SETTINGS).get("added_tokens_decoder")
    found = {_number(token): _word(what) for token, what in (told if isinstance(told, dict) else {}).items()}
    found |= {_number(token): word for word, token in facts(folder / ADDED).items()}
    return {int(token): str(word) for token, word in found.items() if token >= 0 and word}


def _words(folder: Path) -> list[str]:
    """The words that files call by a role, as bos_token."""
    found = facts(folder / MAP) | facts(folder / SETTINGS)
    return [word for name, what in found.items() if name.endswith("_token") and (word := _word(what))]


def _word(what: Any) -> str:
    word = what.get("content") if isinstance(what, dict) else what
    return word if isinstance(word, str) else ""


def _number(value: Any) -> int:
    """A number that JSON may have as a word; -1 for none."""
    return int(value) if isinstance(value, (int, str)) and str(value).isdigit() else -1


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def facts(path: Path) -> dict[str, Any]:
    """What a JSON object in a file says, {} where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
