import ast
import io
import tokenize
from pathlib import Path

import numpy as np
import pytest

from workbench.datasets.alignment import Aligner
from workbench.datasets.protocol import Document
from workbench.datasets.python_labels import KINDS, SPECS, python_labels
from workbench.datasets.python_source import is_held_out, modules, read_source
from workbench.datasets.python_stdlib import PythonStdlib
from workbench.datasets.python_syntax import STATEMENTS, Syntax
from workbench.datasets.python_tokens import Lines, Piece, join_strings, read_pieces
from workbench.errors import UserError

SNIPPET = '''@wrap(1)
class Box(Base, meta=M):
    """Doc."""
    size: int = 3  # note é

    def _get(self, key: "T" = f"{a!r} and {b(c)}") -> None:
        for i in range(10):
            self.MAX_x(key, [i])[0]

import os
'''


def on_token(text: str, label: str, word: str, *, nth: int = 0) -> float:
    """The value of a label on a token that covers one word of a text and the spaces before it."""
    at = -1
    for _ in range(nth + 1):
        at = text.index(word, at + 1)
    start = len(text[:at].rstrip(" "))
    offsets = [np.array([[start, at + len(word)]], np.int64)]
    values, _ = Aligner(text, offsets)(python_labels(text)[label])
    return float(values[0])


# By hand: label, word of the snippet (and which of its occurrences), value.
BY_HAND = [
    ("kind", "@", 0, KINDS.index("operator")),
    ("kind", "class", 0, KINDS.index("keyword")),
    ("kind", "Base", 0, KINDS.index("name")),
    ("kind", '"""', 0, KINDS.index("string")),
    ("kind", "#", 0, KINDS.index("comment")),
    ("kind", "note", 0, KINDS.index("comment")),
    ("kind", "10", 0, KINDS.index("number")),
    ("kind", "[", 0, KINDS.index("bracket")),
    ("kind", "\n", 0, KINDS.index("newline")),
    ("is_keyword", "None", 0, 1),
    ("is_keyword", "size", 0, 0),
    ("is_definition", "Box", 0, 1),
    ("is_definition", "_get", 0, 1),
    ("is_definition", "range", 0, 0),
    ("is_called", "wrap", 0, 1),
    ("is_called", "_get", 0, 0),
    ("is_called", "MAX_x", 0, 1),
    ("is_attribute", "MAX_x", 0, 1),
    ("is_attribute", "self", 1, 0),
    ("in_string", "Doc", 0, 1),
    ("in_string", "and", 0, 1),
    ("in_string", "b(c)", 0, 1),
    ("in_string", "->", 0, 0),
    ("in_fstring", "b(c)", 0, 1),
    ("in_fstring", "Doc", 0, 0),
    ("in_docstring", "Doc", 0, 1),
    ("in_docstring", "and", 0, 0),
    ("in_comment", "note", 0, 1),
    ("in_comment", "size", 0, 0),
    ("in_function", "for", 0, 1),
    ("in_function", "size", 0, 0),
    ("in_class", "size", 0, 1),
    ("in_class", "@", 0, 0),
    ("in_class", "os", 0, 0),
    ("in_decorator", "@", 0, 1),
    ("in_decorator", "1", 0, 1),
    ("in_decorator", "class", 0, 0),
    ("in_call_arguments", "10", 0, 1),
    ("in_call_arguments", "range", 0, 0),
    ("in_call_arguments", "Base", 0, 0),
    ("in_parentheses", "Base", 0, 1),
    ("in_parentheses", "Box", 0, 0),
    ("in_type_annotation", "int", 0, 1),
    ("in_type_annotation", "T", 0, 1),
    ("in_type_annotation", "None", 0, 1),
    ("in_type_annotation", "3", 0, 0),
    ("in_import", "os", 0, 1),
    ("in_loop", "range", 0, 1),
    ("in_loop", "self", 1, 1),
    ("in_loop", "_get", 0, 0),
    ("line_number", "size", 0, 4),
    ("line_length", "class", 0, 24),
    ("column", "class", 0, 0),
    ("is_line_start", "size", 0, 1),
    ("is_line_start", "int", 0, 0),
    ("is_line_end", "note é", 0, 1),
    ("is_line_end", "int", 0, 0),
    ("indentation", "class", 0, 0),
    ("indentation", "size", 0, 1),
    ("indentation", "for", 0, 2),
    ("indentation", "self", 1, 3),
    ("indentation", "import", 0, 0),
    ("bracket_depth", "Base", 0, 1),
    ("bracket_depth", "key", 1, 1),
    ("bracket_depth", "i]", 0, 2),
    ("bracket_depth", "0", 1, 1),
    ("definition_depth", "@", 0, 0),
    ("definition_depth", "size", 0, 1),
    ("definition_depth", "for", 0, 2),
    ("ast_depth", "import", 0, 1),
    ("ast_depth", "class", 0, 1),
    ("ast_depth", "Base", 0, 2),
    ("ast_depth", "size", 0, 3),
    ("statement", "size", 0, STATEMENTS.index("AnnAssign")),
    ("statement", "range", 0, STATEMENTS.index("For")),
    ("statement", "import", 0, STATEMENTS.index("Import")),
    ("tree_distance", "int", 0, 1),
    ("has_upper", "MAX_x", 0, 1),
    ("has_digit", "10", 0, 1),
    ("has_underscore", "MAX_x", 0, 1),
    ("is_capitalised", "Base", 0, 1),
    ("is_capitalised", "MAX_x", 0, 1),
    ("is_all_caps", "MAX_x", 0, 0),
    ("starts_with_underscore", "_get", 0, 1),
    ("starts_with_underscore", "size", 0, 0),
]


@pytest.mark.parametrize(("label", "word", "nth", "value"), BY_HAND)
def test_labels_of_a_snippet_by_hand(label, word, nth, value):
    assert on_token(SNIPPET, label, word, nth=nth) == value


def test_labels_are_declared_in_five_groups():
    assert len(SPECS) >= 20
    assert {spec.group for spec in SPECS} == {"tokens", "scopes", "positions", "syntax", "characters"}
    assert len({spec.name for spec in SPECS}) == len(SPECS)
    assert all(spec.description for spec in SPECS)
    assert set(python_labels(SNIPPET)) == {spec.name for spec in SPECS}


def naive_labels(text: str) -> dict[str, list[float]]:
    """An independent labeller, one character at a time, by walking tokens and tree anew for each."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tokens = [
        (t.type, t.string, starts[t.start[0] - 1] + t.start[1], starts[t.end[0] - 1] + t.end[1])
        for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.string
    ]
    nodes = [n for n in ast.walk(ast.parse(text)) if hasattr(n, "lineno")]
    spans = [
        (n, starts[n.lineno - 1] + n.col_offset, starts[n.end_lineno - 1] + n.end_col_offset)  # ASCII text only
        for n in nodes
    ]
    found: dict[str, list[float]] = {}
    for i in range(len(text)):
        around = [n for n, a, b in spans if a <= i < b]
        before = [(string, a) for kind, string, a, _ in tokens if kind == tokenize.OP and a < i]
        opened = sum(s in "([{" for s, _ in before) - sum(s in ")]}" for s, _ in before)
        closes = any(kind == tokenize.OP and string in ")]}" and a == i for kind, string, a, _ in tokens)
        here = [(kind, string) for kind, string, a, b in tokens if a <= i < b]
        values = {
            "ast_depth": len(around),
            "definition_depth": sum(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in around),
            "in_function": any(isinstance(n, ast.FunctionDef) for n in around),
            "in_class": any(isinstance(n, ast.ClassDef) for n in around),
            "in_loop": any(isinstance(n, (ast.For, ast.While)) for n in around),
            "bracket_depth": opened - closes,
            "in_string": any(kind == tokenize.STRING for kind, _ in here),
            "in_comment": any(kind == tokenize.COMMENT for kind, _ in here),
            "is_number": any(kind == tokenize.NUMBER for kind, _ in here),
            "column": i - text.rfind("\n", 0, i) - 1,
            "line_number": text.count("\n", 0, i) + 1,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(float(value))
    return found


@pytest.mark.parametrize("name", ["colorsys", "this", "bisect", "keyword"])
def test_labels_of_real_modules_equal_a_naive_labellers(name):
    dataset = PythonStdlib()
    index = [module for module, _ in dataset.files].index(name)
    text = dataset.document(index).text
    text = text[:3000].rpartition("\n\n\n")[0] or text
    assert text.isascii()
    offsets = [np.stack([np.arange(len(text)), np.arange(len(text)) + 1], axis=1)]
    labels, align = python_labels(text), Aligner(text, offsets)
    for label, expected in naive_labels(text).items():
        values, defined = align(labels[label])
        assert defined.all()
        np.testing.assert_array_equal(values, expected, err_msg=label)


def test_a_token_has_the_value_of_its_first_visible_character():
    text = "x = (1)"
    offsets = [np.array([[1, 3], [3, 6], [4, 7], [3, 4]])]  # " =", " (1", "(1)", " "
    values, _ = Aligner(text, offsets)(python_labels(text)["bracket_depth"])
    assert values.tolist() == [0, 0, 0, 0]
    values, _ = Aligner(text, offsets)(python_labels(text)["is_space"])
    assert values.tolist() == [0, 0, 0, 1]


# What 3.11 and 3.12 make of: x = f"a{y + f'{z}'}b" + g
OLD = [("NAME", 0, 1), ("OP", 2, 3), ("STRING", 4, 21), ("OP", 22, 23), ("NAME", 24, 25)]
NEW = [
    ("NAME", 0, 1), ("OP", 2, 3), ("FSTRING_START", 4, 6), ("FSTRING_MIDDLE", 6, 7), ("OP", 7, 8), ("NAME", 8, 9),
    ("OP", 10, 11), ("FSTRING_START", 12, 14), ("OP", 14, 15), ("NAME", 15, 16), ("OP", 16, 17),
    ("FSTRING_END", 17, 18), ("OP", 18, 19), ("FSTRING_MIDDLE", 19, 20), ("FSTRING_END", 20, 21), ("OP", 22, 23),
    ("NAME", 24, 25),
]  # fmt: skip


@pytest.mark.parametrize("tokens", [OLD, NEW, [(kind.replace("FSTRING", "TSTRING"), a, b) for kind, a, b in NEW]])
def test_an_f_string_is_one_string_on_every_version(tokens):
    assert list(join_strings(Piece(*token) for token in tokens)) == [Piece(*token) for token in OLD]


def test_this_python_joins_f_strings_likewise():
    text = "x = f\"a{y + f'{z}'}b\" + g"
    assert [tuple(p) for p in read_pieces(Lines(text)) if p.end > p.start] == OLD
    assert on_token(text, "is_name", "z") == 0
    assert on_token(text, "ast_depth", "z") == on_token(text, "ast_depth", "b") == 3
    assert on_token(text, "bracket_depth", "z") == 0


@pytest.mark.parametrize("text", ["def f(:\n", "x = 'open\n", "if x:\n  a\n b\n", "x = (1\n", "a\0b", "x = )", "é = $"])
def test_text_that_is_not_python_has_positions_and_letters_only(text):
    labels = python_labels(text)
    offsets = [np.array([[0, 1]])]
    defined = {name for name, label in labels.items() if Aligner(text, offsets)(label)[1].any()}
    assert defined == {s.name for s in SPECS if s.group in ("positions", "characters")} - {"indentation"}


@pytest.mark.parametrize(
    "text", ["", "\n", "   ", "# only", "x", '"""a\nb"""', "\fx = 1\n", "x = \\\n  1\n", "ä = 'é' + b\n"]
)
def test_odd_texts_are_labelled(text):
    for label in python_labels(text).values():
        Aligner(text, [np.array([[i, i + 1] for i in range(len(text))], np.int64).reshape(-1, 2)])(label)


def test_columns_of_the_tree_count_characters_not_bytes():
    assert on_token("ä = 'é' + beta(1)\n", "in_call_arguments", "1") == 1
    assert on_token("ä = 'é' + beta(1)\n", "is_called", "beta") == 1
    assert Syntax(Lines("'éé'; x")).owner.tolist()[-1] > Syntax(Lines("'éé'; x")).owner[0]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in (
        "a.py",
        "pack/__init__.py",
        "pack/inner.py",
        "pack.py",
        "test/x.py",
        "site-packages/y.py",
        "odd-name.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x = '{name}'\n")
    (tmp_path / "_sysconfigdata_linux.py").write_text("paths = 1\n")
    return tmp_path


def test_modules_are_named_as_they_are_imported(library):
    assert list(modules(library)) == ["a", "pack", "pack.inner"]
    assert modules(library)["pack"].name == "__init__.py"
    with pytest.raises(UserError, match="no Python source"):
        modules(library / "site-packages" / "nothing")


def test_the_fingerprint_covers_every_file_and_the_version(library, monkeypatch):
    before = PythonStdlib(library).fingerprint()
    assert PythonStdlib(library).fingerprint() == before
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert PythonStdlib(library).fingerprint() != before
    monkeypatch.undo()
    (library / "pack" / "inner.py").write_text("x = 1\n")
    assert PythonStdlib(library).fingerprint() != before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"x = 1\r\ny = 2\r", "x = 1\ny = 2\n"),
        ("# é\n".encode(), "# é\n"),
        ("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"), "# -*- coding: latin-1 -*-\n# é\n"),
        (b"\xef\xbb\xbfx", "x"),
        (b"# \xff\n", None),
        (b"# coding: no-such-thing\n", None),
    ],
)
def test_source_is_decoded_as_python_does(content, text):
    assert read_source(content) == text


def test_a_file_that_cannot_be_decoded_is_an_empty_document(library):
    (library / "a.py").write_bytes(b"# \xff\n")
    document = PythonStdlib(library).document(0)
    assert (document.name, document.text) == ("a", "")
    assert set(PythonStdlib(library).labels(document)) == {spec.name for spec in SPECS}


def test_the_standard_library_is_there_and_a_tenth_is_held_out():
    dataset = PythonStdlib()
    names = [name for name, _ in dataset.files]
    assert {"argparse", "json", "json.decoder", "collections.abc"} <= set(names)
    assert not any("test" in name.split(".") or "site-packages" in name for name in names)
    assert 0.05 < sum(map(is_held_out, names)) / len(names) < 0.15
    document: Document = dataset.document(names.index("json"))
    assert document.fields == {"held_out": is_held_out("json")}
    assert "JSON" in (document.text or "")
