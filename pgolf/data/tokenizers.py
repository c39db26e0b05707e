"""How many bytes every token stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.data import caseops
from pgolf.data.shards import CHUNK, check_vocabulary
from pgolf.errors import DataError

Convention = Literal["exact", "contest"]
"""exact: the UTF-8 length of the decoded text. contest: the contest's own rule, which differs at a document that starts
with a space, at unknown pieces (it counts 0) and at pieces with more than one `▁` (all but the first count three bytes,
the UTF-8 length of `▁`)."""
SPACE = "▁"


@dataclass(frozen=True)
class TokenBytes:
    """What each of a tokenizer's V pieces stands for.

    exact: int64 [V], UTF-8 bytes of the decoded piece inside a text; body: int64 [V], the contest's bytes of the piece
    without one leading `▁`; leading_space, boundary (control, unknown or unused: the contest's rule),
    control: bool [V]. strips: decoding drops the leading space of a text's first piece, as tokenizers do that add a dummy
    space to every text or remove extra ones. operators: of CaseOps; such pieces count 0 unless they are escaped.
    spelled_space: the three byte pieces that an encoder without a piece for a lone space writes for it, if it is one;
    prefixes: a space is put before every text, which is none of the text's.
    """

    exact: NDArray[np.int64]
    body: NDArray[np.int64]
    leading_space: NDArray[np.bool_]
    boundary: NDArray[np.bool_]
    control: NDArray[np.bool_]
    strips: bool
    operators: caseops.OperatorIds | None = None
    spelled_space: tuple[int, int, int] | None = None
    prefixes: bool = False

    @property
    def vocab_size(self) -> int:
        return len(self.exact)


def token_bytes(tokenizer: str | Path) -> TokenBytes:
    """The table of a SentencePiece model file. DataError if it is not one."""
    try:
        return _table(load_tokenizer(tokenizer))
    except (ValueError, RuntimeError, LookupError) as error:  # pieces that are no UTF-8, or in contradiction
        raise DataError(f"{tokenizer} is a damaged SentencePiece model ({error})") from None


def _table(sp: Any) -> TokenBytes:
    ids = range(sp.get_piece_size())
    operators = caseops.operator_ids(sp)
    pieces = ["" if operators and i in operators.all else sp.id_to_piece(i) for i in ids]
    control = np.array([sp.is_control(i) for i in ids])
    unknown = np.array([sp.is_unknown(i) for i in ids])
    spaced = [i for i in ids if pieces[i].startswith(SPACE)]
    return TokenBytes(
        exact=np.array([_decoded_bytes(sp, i, pieces[i]) for i in ids], np.int64),
        body=np.array([1 if sp.is_byte(i) else len(pieces[i].removeprefix(SPACE).encode()) for i in ids], np.int64),
        leading_space=np.array([piece.startswith(SPACE) for piece in pieces]),
        boundary=control | unknown | np.array([sp.is_unused(i) for i in ids]),
        control=control,
        strips=bool(spaced) and not sp.decode([spaced[0]]).startswith(" "),  # asked, not read from its settings
        operators=operators,
        spelled_space=_spelled_space(sp),
        prefixes=_prefixes(sp),
    )


def _spelled_space(sp: Any) -> tuple[int, int, int] | None:
    """The byte pieces that an encoder without a piece for a lone space writes in its place: those of `▁`, not of " "."""
    first, second, third = (sp.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode())
    alone = sp.piece_to_id(SPACE)
    if (alone != sp.unk_id() and sp.id_to_piece(alone) == SPACE) or not all(map(sp.is_byte, (first, second, third))):
        return None
    return first, second, third


def _prefixes(sp: Any) -> bool:
    """Whether the tokenizer puts a space before every text."""
    return any(piece.startswith((SPACE, "<0xE2>")) for piece in sp.encode("a", out_type=str)[:1])


def load_tokenizer(path: str | Path) -> Any:
    """A SentencePieceProcessor; DataError with one line instead of SentencePiece's own exceptions."""
    extras.need("sentencepiece")
    import sentencepiece

    if not Path(path).is_file():
        raise DataError(f"no tokenizer at {path}")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, ValueError):
        raise DataError(f"{path} is not a SentencePiece model") from None


def _decoded_bytes(sp: Any, token: int, piece: str) -> int:
    if sp.is_control(token):
        return 0
    if sp.is_byte(token):
        return 1
    text = sp.decode([token]) if sp.is_unknown(token) else piece.replace(SPACE, " ")
    return len(text.encode())


def count_bytes(
    tokens: NDArray[np.integer], previous: NDArray[np.integer], lut: TokenBytes, *, convention: Convention = "exact"
) -> NDArray[np.int64]:
    """int64 [N]: bytes of every one of `tokens` [N], given the token before it, `previous` [N].

    "exact" sums to the UTF-8 length of the decoded documents, for tokens that an encoder produced; documents begin
    after control pieces. "contest" is the rule of train_gpt.py in openai/parameter-golf.
    """
    if convention == "contest":
        body = np.where(lut.boundary, 0, lut.body)
        space = lut.leading_space[tokens] & ~lut.boundary[previous]
        counts: NDArray[np.int64] = body[tokens] + space
    else:
        dropped = lut.strips & lut.leading_space[tokens] & lut.control[previous]
        counts = lut.exact[tokens] - dropped
    return counts


def stream_bytes(
    tokens: NDArray[np.integer], lut: TokenBytes, *, convention: Convention = "exact"
) -> NDArray[np.uint16]:
    """uint16 [N]: `count_bytes` of a whole stream `tokens` [N], what a byte sidecar of it would hold.

    The first token is taken as a document's first. DataError for tokens that the tokenizer does not know.
    """
    check_vocabulary(tokens, lut.vocab_size, owner="tokenizer")
    out = np.empty(len(tokens), np.uint16)
    before = np.flatnonzero(lut.control)[:1] if lut.control.any() else tokens[:1]
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        previous = np.concatenate([before, chunk[:-1]])
        out[start : start + CHUNK] = count_bytes(chunk, previous, lut, convention=convention)
        before = chunk[-1:]
    if lut.operators:
        caseops.count_escaped(tokens, out, lut.operators)
    if lut.spelled_space and convention == "exact":
        _count_spelled(tokens, out, lut)
    return out


def _count_spelled(tokens: NDArray[np.integer], out: NDArray[np.uint16], lut: TokenBytes) -> None:
    """Correct `out` where a space is spelled in bytes: the three pieces stand for one byte, a dummy prefix for none."""
    first, second, third = lut.spelled_space or (0, 0, 0)
    for start in range(0, len(tokens), CHUNK):
        some = np.asarray(tokens[start : start + CHUNK + 2])
        spelled = (some[:-2] == first) & (some[1:-1] == second) & (some[2:] == third)
        for at in start + np.flatnonzero(spelled):
            begins = at == 0 or lut.control[tokens[at - 1]]
            out[at : at + 3] = (0 if lut.prefixes and begins else 1), 0, 0


def unspelled(text: str, table: TokenBytes) -> str:
    """A document that SentencePiece decoded, with the spaces that were spelled in bytes, which it gives back as `▁`; the
    space that the tokenizer put before the document is dropped."""
    return (text.removeprefix(SPACE) if table.prefixes else text).replace(SPACE, " ")


def unknown_share(tokens: NDArray[np.integer], unknown: int | None) -> float:
    """The share of `tokens` [N] that are the tokenizer's unknown piece, if it has one: of their text nothing is left."""
    if unknown is None:
        return 0.0
    found = sum(int((tokens[s : s + CHUNK] == unknown).sum()) for s in range(0, len(tokens), CHUNK))
    return found / max(len(tokens), 1)
