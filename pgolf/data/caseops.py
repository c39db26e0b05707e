"""CaseOps: capitals as operators before lower-case text, so that The, THE and the share their pieces. Lossless.

    The NASA file  ->  ⟨title⟩the⟨caps⟩ nasa file          PR #1729 of openai/parameter-golf

An operator stands before the space of its word, so that "▁the" is one piece with or without a capital. Whatever the
contest's own transform wrote, which puts it after the space and knows ASCII alone, is decoded too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unicodedata import ucd_3_2_0

import numpy as np
from numpy.typing import NDArray

TITLE, CAPS, INNER, ESCAPE = OPERATORS = "\ue001\ue002\ue003\ue004"
"""Next letter upper, at a word's start; letters upper up to the word's end or the next operator; next letter upper,
within a word; what follows is literal. Private-use characters of UTF-8 length 3."""
SPACE, SPACE_SUBSTITUTE = "▁", "_"  # a literal ▁, which SentencePiece would take for a space, is ESCAPE and _
_LAST = 0x10450  # no letter of Unicode 3.2 beyond has a capital


def encode(text: str) -> str:
    """`text` without foldable capitals; `decode` brings them back. Linear in its length."""
    text = _rewritten(text, _grammar().foldable, _folded)
    text = _grammar().within_word.sub(INNER, text)
    for operator in (TITLE, CAPS):
        text = text.replace(f" {operator}", f"{operator} ")
    return text


def decode(text: str) -> str:
    """The text that `encode` was given. An operator that has nothing to act upon, as in a model's samples, vanishes."""
    return _rewritten(text, _grammar().operated, _unfolded)


def _rewritten(text: str, pattern: re.Pattern[str], rewrite: Callable[[str], str]) -> str:
    """`text` with every match rewritten, each distinct one once. pattern: one group, the whole match."""
    parts = pattern.split(text)
    made = {match: rewrite(match) for match in set(parts[1::2])}
    parts[1::2] = map(made.__getitem__, parts[1::2])
    return "".join(parts)


def _folded(match: str) -> str:
    """A word of ASCII letters that begins with a capital, or a run of characters beyond ASCII.

    They are words of their own, so É in CAFÉ has its own operator: decoding the contest's text demands it.
    """
    if match.isascii() and match[1:].islower():
        return TITLE + match.lower()  # the usual case, without which encoding takes twice as long
    grammar = _grammar()
    if not match.isascii():
        match = grammar.literal.sub(lambda found: ESCAPE + found[0].replace(SPACE, SPACE_SUBSTITUTE), match)
    marked = grammar.capitals.sub(lambda run: (CAPS if len(run[0]) > 1 else TITLE) + run[0], match)
    return marked.translate(grammar.lower)


def _unfolded(match: str) -> str:
    """An operator and what it acts upon, if anything."""
    operator, rest = match[0], match[1:]
    if operator == ESCAPE:
        return SPACE if rest == SPACE_SUBSTITUTE else rest
    return rest.translate(_grammar().upper)


@dataclass(frozen=True)
class _Grammar:
    """lower, upper: code points both ways, as str.translate takes them.

    foldable: what `_folded` rewrites; literal: what it escapes; capitals: those that share an operator, without the last
    one where that begins a segment of its own (HTTP-Server); within_word: a TITLE after a letter; operated: what
    `_unfolded` rewrites. The two that search whole texts begin with a set of characters of few ranges: `re` is fast then.
    """

    lower: dict[int, int]
    upper: dict[int, int]
    foldable: re.Pattern[str]
    literal: re.Pattern[str]
    capitals: re.Pattern[str]
    within_word: re.Pattern[str]
    operated: re.Pattern[str]


@cache
def _grammar() -> _Grammar:
    lower = {ord(upper): ord(letter) for upper, letter in filter(None, map(_pair, map(chr, range(_LAST))))}
    upper = {letter: capital for capital, letter in lower.items()}
    capitals, letters = ("".join(map(chr, sorted(table))) for table in (lower, upper))
    beyond_ascii = "".join(letter for letter in letters if not letter.isascii())
    return _Grammar(
        lower,
        upper,
        foldable=re.compile("([A-Z\\x80-\\U0010ffff](?:(?<=[A-Z])[A-Za-z]*|(?<![A-Z])[^\\x00-\\x7f]*))"),
        literal=re.compile(f"[{OPERATORS}{SPACE}]"),
        capitals=re.compile(f"[{capitals}]+(?![{letters}])|[{capitals}]"),
        within_word=re.compile(f"{TITLE}(?<=[{letters}]{TITLE})"),
        operated=re.compile(
            f"([{OPERATORS}](?:(?<={ESCAPE})[{OPERATORS}{SPACE_SUBSTITUTE}]|(?<=[{TITLE}{INNER}]) ?[{letters}]"
            f"|(?<={CAPS}) ?(?:[a-z]+|[{beyond_ascii}]+)|))"
        ),
    )


def _pair(capital: str) -> tuple[str, str] | None:
    """(capital, its lower-case letter), or None where that is not one letter of equal UTF-8 length that leads back.

    So ß, İ, final sigma and titlecase digraphs stay as they are and a piece's bytes are the text's; both are known to
    Unicode 3.2, so that all Pythons agree for ever.
    """
    letter = capital.lower()
    if len(letter) != 1 or letter == capital or letter.upper() != capital:
        return None
    known = "Cn" not in (ucd_3_2_0.category(capital), ucd_3_2_0.category(letter))
    return (capital, letter) if known and len(capital.encode()) == len(letter.encode()) else None


@dataclass(frozen=True)
class OperatorIds:
    """Token ids of the four operators in a tokenizer that has a piece for each."""

    all: tuple[int, ...]

    @property
    def escape(self) -> int:
        return self.all[OPERATORS.index(ESCAPE)]


def operator_ids(processor: Any) -> OperatorIds | None:
    """Of a SentencePieceProcessor; None if it is not for text with operators."""
    ids = tuple(processor.piece_to_id(operator) for operator in OPERATORS)
    return None if processor.unk_id() in ids else OperatorIds(ids)


def text_of(processor: Any, ids: Sequence[int]) -> str:
    """The text that a SentencePieceProcessor made `ids` of, operators undone where it has them."""
    text: str = processor.decode(list(ids))
    return text if operator_ids(processor) is None else decode(text)


def count_escaped(tokens: NDArray[np.integer], counts: NDArray[np.uint16], operators: OperatorIds) -> None:
    """Correct `counts` [N], which has 0 for operators of `tokens` [N], in place: an escaped operator is three bytes of
    text, and the escape of a literal ▁ carries the two by which its substitute is shorter."""
    literal = -1
    for at in np.flatnonzero(tokens == operators.escape).tolist():
        if at == literal:
            continue  # itself escaped
        if at + 1 < len(tokens) and tokens[at + 1] in operators.all:
            literal = at + 1
            counts[literal] = len(TITLE.encode())
        else:
            counts[at] = len(SPACE.encode()) - len(SPACE_SUBSTITUTE)
