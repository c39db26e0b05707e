"""A script as its code alone: comments, docstrings and prose gone, one statement a line; and what its settings are by default.

By tokens rather than by the syntax tree: a script for a later Python, or one that is cut off, still has them.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

WORD = re.compile(r"[\w./*%+:-]{1,80}")  # a string that names something; others are prose or data
_VALUE = r'(?:"([^"\n]*)"|(-?[\w.]+))'  # one token
_ASKED = re.compile(rf'\(\s*"([A-Z][A-Z0-9_]+)",{_VALUE}[,)]')  # os.environ.get("NAME", "0"), or whatever it is called
_GIVEN = re.compile(rf"^\s*([A-Za-z_]\w*)(?::[\w.|\[\] ]+)?={_VALUE}$", re.M)
_WRAPPED = re.compile(rf'^\s*([A-Za-z_]\w*)(?::[\w.|\[\] ]+)?=[\w.(]*\(\s*"[A-Z][A-Z0-9_]+",{_VALUE}[,)]', re.M)
_ARGUED = re.compile(rf'add_argument\("--([\w-]+)"[^\n]*?(?:default={_VALUE}|action="(store_true)")')
_COMMANDED = re.compile(r"(?<![\w$])([A-Z][A-Z0-9_]+)=[\"']?(?:\$\{\w+:-)?([\w./+-]+)")
_LOGGED = re.compile(r"^\s*([a-z_]\w*)\s*[:=]\s*'?([\w./+-]+)'?\s*$", re.M)
_TYPES = {"int", "str", "bool", "float", "list", "dict", "tuple", "bytes", "set", "object", "type"}
OFF = {"", "false", "none", "off", "no"}


@dataclass(frozen=True)
class Code:
    """text: statements, one a line, indented by a space a level; tokens: of all of it, each string as one sign. whole: whether
    it was read to its end."""

    text: str
    tokens: list[str]
    whole: bool = True

    @property
    def lines(self) -> int:
        """Statements."""
        return self.text.count("\n") + bool(self.text)


def code_of(source: str) -> Code:
    """The code of a script of any version of Python."""
    lines: list[str] = []
    tokens: list[str] = []
    try:
        for line in _statements(source):
            tokens += [('""' if part.startswith('"') else part) for part in line[1:]]
            lines.append(line[0] + _joined(line[1:]))
    except (tokenize.TokenError, SyntaxError):
        return Code("\n".join(lines), tokens, False)
    return Code("\n".join(lines), tokens)


def _statements(source: str) -> Iterator[list[str]]:
    """Statements as [indent, token...]; a string that stands alone is a docstring, and none."""
    level, depth, line = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind, text = tokenize.tok_name[token.type], token.string
        if kind == "FSTRING_START":
            depth += 1
        elif kind == "FSTRING_END":
            depth -= 1
            line += ['""'] if not depth else []
        elif depth or kind in {"COMMENT", "NL", "ENCODING", "TYPE_COMMENT"}:
            continue
        elif kind in {"INDENT", "DEDENT"}:
            level += 1 if kind == "INDENT" else -1
        elif kind in {"NEWLINE", "ENDMARKER"} or text == ";":
            if any(not part.startswith('"') for part in line):
                yield [" " * level, *line]
            line = []
        elif kind == "ERRORTOKEN":
            if text.strip():
                raise SyntaxError(text)
        else:
            line.append(_plain(text) if kind == "STRING" else text)


def _plain(literal: str) -> str:
    """A string in double quotes, empty where it is no name."""
    prefix, quote, rest = re.match(r"(\w*)('''|\"\"\"|'|\")(.*)", literal, re.S).groups()  # type: ignore[union-attr]
    body = rest[: -len(quote)]
    return f'"{body}"' if "f" not in prefix.lower() and WORD.fullmatch(body) else '""'


def _joined(parts: list[str]) -> str:
    """Tokens without spaces, but between words."""
    said: list[str] = []
    for part in parts:
        if said and _is_word(said[-1][-1]) and _is_word(part[0]):
            said.append(" ")
        said.append(part)
    return "".join(said)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def defaults(code: str) -> dict[str, str]:
    """name in lower case -> value, as the code sets it: the environment's defaults, plain assignments, arguments."""
    found: dict[str, str] = {}
    for pattern in (_ASKED, _WRAPPED, _GIVEN):
        for name, text, plain in pattern.findall(code):
            found.setdefault(name.lower(), text or plain)
    for name, text, plain, flag in _ARGUED.findall(code):
        found.setdefault(name.replace("-", "_").lower(), "False" if flag else text or plain)
    return {name: found.get(value.lower(), value) for name, value in found.items()}  # minifiers give constants names


def commanded(text: str) -> dict[str, str]:
    """What command lines of a README or a shell script set, NAME=value; of several values the first that is not off."""
    found: dict[str, str] = {}
    for name, value in _COMMANDED.findall(text):
        if is_off(found.get(name.lower(), "")):
            found[name.lower()] = value
    return found


def logged(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """What a log says of settings that are known, `name: value` on a line of its own; the first time counts."""
    found: dict[str, str] = {}
    for name, value in _LOGGED.findall(text):
        if name in known and value not in _TYPES:
            found.setdefault(name, value)
    return found


def is_off(value: str) -> bool:
    """Whether a setting's value means that nothing is done."""
    return value.lower() in OFF or bool(re.fullmatch(r"-?0*\.?0*(?:e-?\d+)?", value))
