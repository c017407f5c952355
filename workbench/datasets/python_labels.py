"""Labels of Python source: token kinds, scopes, positions, syntax and character classes, one value per character.

Every label is painted on the characters of a text first. A token then has the value of its first visible character (a
token of spaces alone: of its first), so the labels fit any tokenizer. ``has_...`` and ``is_line_end`` hold for every
token that touches such a character.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.datasets.protocol import Kind, LabelSpec, Span, SpanLabel
from workbench.datasets.python_syntax import STATEMENTS, Syntax
from workbench.datasets.python_tokens import Lines

Values = NDArray[Any]  # one number per character, NaN where there is none
Flags = NDArray[np.bool_]

KINDS = ("space", "newline", "comment", "string", "number", "keyword", "name", "operator", "bracket")
WORD = re.compile(r"\w+")


def _specs(group: str, kind: Kind, unit: str = "", **described: str) -> list[LabelSpec]:
    return [LabelSpec(name, group, "row", kind, unit=unit, description=text) for name, text in described.items()]


SPECS: tuple[LabelSpec, ...] = (
    LabelSpec("kind", "tokens", "row", "categories", KINDS, description="what tokenize calls the token"),
    *_specs(
        "tokens",
        "binary",
        is_keyword="a keyword (True, False and None are; soft keywords are names)",
        is_name="an identifier that is no keyword",
        is_number="a number",
        is_operator="an operator or delimiter, brackets left out",
        is_bracket="one of ( ) [ ] { }",
        is_definition="the name that a def or class defines",
        is_attribute="a name after a dot",
        is_called="a name that an opening parenthesis follows, definitions left out",
    ),
    *_specs(
        "scopes",
        "binary",
        in_string="in a string of any kind, quotes and prefix included",
        in_fstring="in an f-string, replacement fields included",
        in_docstring="in the docstring of a module, class or function",
        in_comment="in a comment",
        in_function="in a function or method, from def to its end",
        in_class="in a class, from class to its end",
        in_call_arguments="between the parentheses of a call",
        in_parentheses="between round brackets of any meaning",
        in_decorator="in a decorator, @ included",
        in_type_annotation="in the annotation of a parameter, a return value or a variable",
        in_import="in an import statement",
        in_loop="in a for or while loop, its head and else branch included",
    ),
    *_specs("positions", "number", "characters", column="characters before the token in its line"),
    *_specs("positions", "number", "characters", line_length="characters in the token's line"),
    *_specs("positions", "number", "lines", line_number="line of the module, from 1"),
    *_specs("positions", "number", "share", line_position="column over the line's length, 0 to 1"),
    *_specs("positions", "ordered", "levels", indentation="blocks around the line; a comment has the code's before it"),
    *_specs("positions", "binary", is_line_start="first visible token of its line"),
    *_specs("positions", "binary", is_line_end="last visible token of its line"),
    *_specs("syntax", "ordered", "nodes", ast_depth="syntax-tree nodes around the token, the module not counted"),
    *_specs("syntax", "ordered", "brackets", bracket_depth="open brackets around the token"),
    *_specs("syntax", "ordered", "definitions", definition_depth="functions and classes around the token"),
    *_specs("syntax", "number", "characters", bracket_distance="characters since the innermost bracket"),
    *_specs("syntax", "ordered", "edges", tree_distance="syntax-tree edges from the Python token before this one"),
    LabelSpec("statement", "syntax", "row", "categories", STATEMENTS, description="kind of the innermost statement"),
    *_specs(
        "characters",
        "binary",
        has_upper="touches an upper-case letter",
        has_digit="touches a digit",
        has_underscore="touches an underscore",
        is_space="white space alone",
        is_capitalised="in a word that starts with an upper-case letter and has a lower-case one",
        is_all_caps="in a word of two letters or more, all upper case",
        starts_with_underscore="in a word that starts with an underscore",
    ),
)  # fmt: skip


def python_labels(text: str) -> dict[str, SpanLabel]:
    """Return all labels of a text.

    Parameters
    ----------
    text : str
        Python source. Where it does not parse, the labels that need its syntax are undefined and the others are there.
    """
    characters = Characters(text)
    labels = positions(characters) | character_classes(characters)
    try:
        syntax = Syntax(characters.lines)
    except SyntaxError:
        nowhere = SpanLabel((), None)
        return {spec.name: labels.get(spec.name, nowhere) for spec in SPECS}
    for paint in (kinds, scopes, depths):
        labels |= {name: characters.spans(values) for name, values in paint(syntax).items()}
    return {spec.name: labels[spec.name] for spec in SPECS}


class Characters:
    """The characters of a text, and how values on them become spans.

    Parameters
    ----------
    text : str
        Any text.
    """

    def __init__(self, text: str) -> None:
        self.text, self.lines = text, Lines(text)
        self.visible = self.where(lambda c: not c.isspace())
        places = np.arange(len(text) + 1)
        # The first visible character at or after each place, and the end of the last one before it.
        self.next_visible = np.minimum.accumulate(np.where(np.append(self.visible, True), places, len(text))[::-1])[
            ::-1
        ]
        self.last_visible = np.maximum.accumulate(np.where(np.append(True, self.visible), places, 0))

    def where(self, test: Callable[[str], bool]) -> Flags:
        """Return which characters pass a test, bool [character]."""
        passed = {c: test(c) for c in set(self.text)}
        return np.fromiter(map(passed.__getitem__, self.text), bool, len(self.text))

    def spans(self, values: Values) -> SpanLabel:
        """Return a label from a value per character, undefined where it is NaN.

        Of the characters that a token covers the first visible one must win, and spans overrule those before them in
        the list. Hence all runs of one value first, then each again from its first to its last visible character, and
        both from the last run to the first.
        """
        if not len(values):
            return SpanLabel((), None)
        flat = np.asarray(values, np.float64)
        changed = (flat[1:] != flat[:-1]) & ~(np.isnan(flat[1:]) & np.isnan(flat[:-1]))
        edges = np.concatenate([[0], np.flatnonzero(changed) + 1, [len(flat)]])
        starts, ends = edges[-2::-1], edges[:0:-1]
        first, last = self.next_visible[starts], self.last_visible[ends]
        seen, padded = first < last, (first > starts) | (last < ends)
        starts, ends = np.concatenate([starts[padded], first[seen]]), np.concatenate([ends[padded], last[seen]])
        return SpanLabel(np.column_stack([starts, ends, flat[starts], np.ones(len(starts))]), None)

    def touching(self, flags: Flags) -> SpanLabel:
        """Return a label that is 1 on every token that touches a flagged character, else 0."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
        return SpanLabel([Span(int(a), int(b), 1.0, True) for a, b in edges.reshape(-1, 2)])


def positions(characters: Characters) -> dict[str, SpanLabel]:
    """Return where in its line and module each character is."""
    lines = characters.lines
    lengths = np.array([len(line) for line in lines.lines])
    number = np.repeat(np.arange(len(lengths)), lengths + 1)[: len(characters.text)]
    column = np.arange(len(characters.text)) - np.array(lines.starts)[number]
    starts, ends = np.zeros(len(number), bool), np.zeros(len(number), bool)
    seen = np.flatnonzero(characters.visible)
    first = np.diff(number[seen], prepend=-1) != 0
    starts[seen[first]] = True
    ends[seen[np.append(first[1:], True)[: len(seen)]]] = True
    length = lengths[number]
    return {
        "column": characters.spans(column),
        "line_length": characters.spans(length),
        "line_number": characters.spans(number + 1),
        "line_position": characters.spans(column / np.maximum(length, 1)),
        "is_line_start": characters.spans(starts),
        "is_line_end": characters.touching(ends),
    }


def character_classes(characters: Characters) -> dict[str, SpanLabel]:
    """Return what letters the tokens are made of."""
    text = characters.text
    words = {name: np.zeros(len(text), bool) for name in ("is_capitalised", "is_all_caps", "starts_with_underscore")}
    for match in WORD.finditer(text):
        word, place = match.group(), slice(*match.span())
        if word[0] == "_":
            words["starts_with_underscore"][place] = True
        elif word[0].isupper() and any(c.islower() for c in word):
            words["is_capitalised"][place] = True
        if word.isupper() and sum(c.isalpha() for c in word) >= 2:
            words["is_all_caps"][place] = True
    return {
        "has_upper": characters.touching(characters.where(str.isupper)),
        "has_digit": characters.touching(characters.where(str.isdigit)),
        "has_underscore": characters.touching(characters.where(partial(str.__eq__, "_"))),
        "is_space": characters.spans(~characters.visible),
        **{name: characters.spans(flags) for name, flags in words.items()},
    }


def kinds(syntax: Syntax) -> dict[str, Values]:
    """Return what `tokenize` makes of each character."""
    kind = np.zeros(syntax.n_characters)
    marks = {name: syntax.nowhere() for name in ("is_definition", "is_attribute", "is_called")}
    for i, word, start, end in classified(syntax):
        kind[start:end] = KINDS.index(word)
        if word == "name":
            before, after = syntax.word(i - 1), syntax.word(i + 1)
            if before in ("def", "class"):
                marks["is_definition"][start:end] = True
            elif after == "(":
                marks["is_called"][start:end] = True
            if before == ".":
                marks["is_attribute"][start:end] = True
    binary = {f"is_{word}": kind == KINDS.index(word) for word in ("keyword", "name", "number", "operator", "bracket")}
    return {"kind": kind, **binary, **marks}


def classified(syntax: Syntax) -> Iterator[tuple[int, str, int, int]]:
    """Yield each Python token that has characters: its place among the tokens, its category of `KINDS`, start, end."""
    names = {"NUMBER": "number", "STRING": "string", "COMMENT": "comment", "NEWLINE": "newline", "NL": "newline"}
    for i, (kind, start, end) in enumerate(syntax.pieces):
        if kind == "NAME":
            yield i, "keyword" if keyword.iskeyword(syntax.text[start:end]) else "name", start, end
        elif kind == "OP":
            yield i, "bracket" if syntax.text[start:end] in "()[]{}" else "operator", start, end
        elif kind in names:
            yield i, names[kind], start, end


def scopes(syntax: Syntax) -> dict[str, Values]:
    """Return what each character is inside of."""
    return {spec.name: syntax.painted(spec.name) for spec in SPECS if spec.group == "scopes"}


def depths(syntax: Syntax) -> dict[str, Values]:
    """Return how deep in the syntax each character is, and how far from what came before."""
    bracket_depth, bracket_distance = syntax.brackets()
    return {
        "indentation": syntax.indentation(),
        "ast_depth": syntax.depth[syntax.owner + 1],
        "definition_depth": syntax.definition_depth,
        "statement": syntax.statement,
        "bracket_depth": bracket_depth,
        "bracket_distance": bracket_distance,
        "tree_distance": syntax.tree_distance(),
    }
