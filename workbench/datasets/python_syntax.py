"""Where the scopes and nodes of Python source lie, painted on its characters.

Nothing inside an f-string is looked at: before Python 3.12 its parts have no positions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workbench.datasets.python_tokens import Lines, read_pieces, read_tree

STATEMENTS = (
    "other", "FunctionDef", "AsyncFunctionDef", "ClassDef", "Return", "Delete", "Assign", "AugAssign", "AnnAssign",
    "For", "AsyncFor", "While", "If", "With", "AsyncWith", "Match", "Raise", "Try", "TryStar", "Assert", "Import",
    "ImportFrom", "Global", "Nonlocal", "Expr", "Pass", "Break", "Continue", "TypeAlias",
)  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
OPENING, CLOSING = "([{", ")]}"


class Syntax:
    """Tokens and syntax tree of a text.

    Parameters
    ----------
    lines : Lines
        The text.

    Attributes
    ----------
    pieces : list of Piece
        See `read_pieces`.
    parent, depth : int arrays [nodes], [nodes + 1]
        The tree of nodes that have a position, in reading order, parents first; parent -1 is the module.
        `depth[1 + node]` counts the node itself, `depth[0]` is the module's 0.
    owner : int array [character]
        Innermost node that a character belongs to, -1 for the module.

    Raises
    ------
    SyntaxError
        If the text is not Python.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines, self.text = lines, lines.text
        self.n_characters = len(lines.text)
        tree = read_tree(lines.text)
        self.pieces = read_pieces(lines)
        self.pairs = self._pairs()
        self._scopes: dict[str, NDArray[np.bool_]] = {}
        self.owner = np.full(self.n_characters, -1)
        self.definition_depth = np.zeros(self.n_characters)
        self.statement = np.full(self.n_characters, np.nan)
        self.parent: list[int] = []
        depth = [0]
        for node, parent in self._walk(tree):
            start, end = self.extent(node)
            self.owner[start:end] = len(self.parent)
            self.parent.append(parent)
            depth.append(depth[parent + 1] + 1)
            self._mark(node, start, end)
        self.depth = np.array(depth)
        for kind, start, end in self.pieces:
            if kind in ("STRING", "COMMENT"):
                self.painted("in_string" if kind == "STRING" else "in_comment")[start:end] = True
                if kind == "STRING" and "f" in self.text[start:end].partition(self.text[end - 1])[0].lower():
                    self.painted("in_fstring")[start:end] = True
        for opening, closing in self.pairs:
            if self.text[opening] == "(":
                self.painted("in_parentheses")[opening + 1 : closing] = True

    def nowhere(self) -> NDArray[np.bool_]:
        """Return flags for all characters, none set."""
        return np.zeros(self.n_characters, bool)

    def painted(self, scope: str) -> NDArray[np.bool_]:
        """Return the flags of a scope, to be read or painted on."""
        return self._scopes.setdefault(scope, self.nowhere())

    def word(self, index: int) -> str:
        """Return the text of a token by its place; nothing beyond the ends."""
        if not 0 <= index < len(self.pieces):
            return ""
        return self.text[self.pieces[index].start : self.pieces[index].end]

    def extent(self, node: ast.AST) -> tuple[int, int]:
        """Return the first character of a node and the one after its last."""
        start = self.lines.at_bytes(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        end = self.lines.at_bytes(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        return start, end

    def _walk(self, tree: ast.Module) -> Iterator[tuple[ast.AST, int]]:
        """Yield each node that has a position, parents first, with the place of its parent among them."""
        waiting: list[tuple[ast.AST, int]] = [(tree, -1)]
        n_yielded = 0
        while waiting:
            node, parent = waiting.pop()
            if hasattr(node, "lineno"):
                yield node, parent
                parent, n_yielded = n_yielded, n_yielded + 1
            self._docstring(node)
            if type(node).__name__ not in ("JoinedStr", "TemplateStr"):
                waiting += [(child, parent) for child in reversed(list(ast.iter_child_nodes(node)))]

    def _docstring(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node, clean=False) is not None:
            start, end = self.extent(node.body[0])
            self.painted("in_docstring")[start:end] = True

    def _mark(self, node: ast.AST, start: int, end: int) -> None:
        """Paint the scopes that a node opens."""
        if isinstance(node, ast.stmt):
            name = type(node).__name__
            self.statement[start:end] = STATEMENTS.index(name) if name in STATEMENTS else 0
        if isinstance(node, DEFINITIONS):
            self.definition_depth[start:end] += 1
            self.painted("in_function" if isinstance(node, FUNCTIONS) else "in_class")[start:end] = True
            for decorator in node.decorator_list:
                first, last = self.extent(decorator)
                self.painted("in_decorator")[self.text.rfind("@", 0, first) : last] = True
        annotation = node.returns if isinstance(node, FUNCTIONS) else getattr(node, "annotation", None)
        if isinstance(annotation, ast.AST):
            first, last = self.extent(annotation)
            self.painted("in_type_annotation")[first:last] = True
        if isinstance(node, ast.Call) and end - 1 in self._opening:
            self.painted("in_call_arguments")[self._opening[end - 1] + 1 : end - 1] = True
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.painted("in_import")[start:end] = True
        if isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            self.painted("in_loop")[start:end] = True

    def _pairs(self) -> list[tuple[int, int]]:
        """Return where each bracket opens and closes, in the order of opening."""
        waiting: list[int] = []
        found: list[tuple[int, int]] = []
        for kind, start, _ in self.pieces:
            if kind == "OP" and self.text[start] in OPENING:
                waiting.append(start)
            elif kind == "OP" and self.text[start] in CLOSING:
                found.append((waiting.pop(), start))
        self._opening = {closing: opening for opening, closing in found}
        return sorted(found)

    def brackets(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how many brackets are open at each character, and how far back the innermost is (NaN: none)."""
        depth, opened = np.zeros(self.n_characters), np.full(self.n_characters, np.nan)
        for opening, closing in self.pairs:
            depth[opening + 1 : closing] += 1
            opened[opening + 1 : closing] = opening
        return depth, np.arange(self.n_characters) - opened

    def indentation(self) -> NDArray[np.float64]:
        """Return the number of indented blocks around each character's line."""
        steps = np.zeros(self.n_characters + 1)
        for kind, start, end in self.pieces:
            if kind in ("INDENT", "DEDENT"):
                first = self.lines.starts[self.lines.line_of(end if kind == "INDENT" else start) - 1]
                steps[min(first, self.n_characters)] += 1 if kind == "INDENT" else -1
        return np.cumsum(steps)[:-1]

    def tree_distance(self) -> NDArray[np.float64]:
        """Return the edges of the tree from each Python token's node to that of the token before (NaN: no token)."""
        distance = np.full(self.n_characters, np.nan)
        solid = [
            p for p in self.pieces if p.end > p.start and p.kind not in ("COMMENT", "NEWLINE", "NL", "INDENT", "DEDENT")
        ]
        for before, piece in pairwise(solid):
            a, b = int(self.owner[before.start]), int(self.owner[piece.start])
            edges = 0
            while a != b:  # parents come first, so the later node is never above the earlier
                if a > b:
                    a = self.parent[a]
                else:
                    b = self.parent[b]
                edges += 1
            distance[piece.start : piece.end] = edges
        return distance
