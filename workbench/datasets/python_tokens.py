"""Python source as a flat list of tokens with character positions, the same on every version of Python.

From 3.12 on `tokenize` takes f-strings apart (FSTRING_START, what is inside, FSTRING_END); before, and here, an
f-string is one string, from its prefix to its closing quote.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple


class Piece(NamedTuple):
    """A token: its type by `tokenize`'s name, and where it lies.

    Attributes
    ----------
    kind : str
        ``NAME``, ``OP``, ``NUMBER``, ``STRING``, ``COMMENT``, ``NEWLINE``, ``NL``, ``INDENT``, ``DEDENT``, ...
    start, end : int
        Characters of the text.
    """

    kind: str
    start: int
    end: int


class Lines:
    """Where the lines of a text start, for positions given as line and column.

    Parameters
    ----------
    text : str
        Line ends are ``\\n``, as in all source read by `read_source`.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.split("\n")
        self.starts = [0, *accumulate(len(line) + 1 for line in self.lines)]

    def at(self, line: int, column: int) -> int:
        """Return a character's index; lines count from 1, columns are characters from 0."""
        return min(self.starts[min(line, len(self.starts)) - 1] + column, len(self.text))

    def at_bytes(self, line: int, column: int) -> int:
        """Return a character's index where the column counts the line's UTF-8 bytes, as in `ast`."""
        written = self.lines[line - 1]
        if not written.isascii():
            column = len(written.encode()[:column].decode())
        return self.at(line, column)

    def line_of(self, index: int) -> int:
        """Return the number of the line, from 1, that holds a character."""
        return bisect_right(self.starts, index)


def join_strings(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield tokens with each f-string (and t-string) as one ``STRING``, those inside its fields included."""
    depth = start = 0
    for piece in pieces:
        if piece.kind in ("FSTRING_START", "TSTRING_START"):
            start = piece.start if depth == 0 else start
            depth += 1
        elif piece.kind in ("FSTRING_END", "TSTRING_END"):
            depth -= 1
            if depth == 0:
                yield Piece("STRING", start, piece.end)
        elif depth == 0:
            yield piece


def read_pieces(lines: Lines) -> list[Piece]:
    """Return the tokens of a text.

    Raises
    ------
    SyntaxError
        If the text is not Python.
    """
    try:
        found = [
            Piece(tokenize.tok_name[token.type], lines.at(*token.start), lines.at(*token.end))
            for token in tokenize.generate_tokens(io.StringIO(lines.text).readline)
        ]
    except tokenize.TokenError as error:
        raise SyntaxError(str(error)) from None
    return list(join_strings(found))


def read_tree(text: str) -> ast.Module:
    """Return the syntax tree of a text.

    Raises
    ------
    SyntaxError
        If the text is not Python, or nested too deeply to be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a doubtful escape in somebody's source is no concern of ours
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:  # null bytes; depth
            raise SyntaxError(str(error)) from None
