"""Which arrays of a foreign source are which hook point, and which are tokens and documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from workbench.errors import UserError, nearest
from workbench.store_formats.arrays import ForeignArray

TOKENS = ("tokens", "token_ids", "input_ids")
DOCUMENTS = ("documents", "document")

Groups = dict[str, list[ForeignArray]]


@dataclass(frozen=True)
class Choice:
    """What the arrays of a source are.

    Attributes
    ----------
    hook_points : dict of str to list of ForeignArray
        Arrays of each hook point, whose rows follow each other.
    tokens, documents : list of ForeignArray
        Empty where there are none.
    unused : list of ForeignArray
        The rest.
    """

    hook_points: Groups
    tokens: list[ForeignArray]
    documents: list[ForeignArray]
    unused: list[ForeignArray]


def choose(arrays: Sequence[ForeignArray], hooks: Sequence[str], tokens: str | None, documents: str | None) -> Choice:
    """Say what each array is.

    Parameters
    ----------
    arrays : sequence of ForeignArray
        In the order in which arrays of one name follow each other.
    hooks : sequence of str
        ``NAME=PATTERN``: arrays that match are the parts of one hook point. ``PATTERN``: arrays of each name that
        matches are a hook point of that name. ``NAME``, where there are no arrays but of one name: what that one is
        called. Empty: arrays of each name are a hook point.
    tokens, documents : str, optional
        Pattern of these arrays; by default those called ``tokens``, ``token_ids`` or ``input_ids``, and ``documents``.

    Raises
    ------
    UserError
        If a pattern matches nothing, an array would be two things, or it cannot be told what is meant.
    """
    left = list(arrays)
    named_tokens = take(left, tokens, TOKENS, "tokens")
    named_documents = take(left, documents, DOCUMENTS, "documents")
    by_name: Groups = {}
    for array in left:
        by_name.setdefault(array.key, []).append(array)
    found: Groups = {}
    for words in hooks:
        name, equals, pattern = words.partition("=")
        if equals:
            parts = [array for array in left if matches(array, pattern)]
            new = {name: parts} if parts else {}
        else:
            new = {key: group for key, group in by_name.items() if any(matches(array, words) for array in group)}
            if not new and len(by_name) == 1 and not set(words) & set("*?["):
                new = {words: next(iter(by_name.values()))}
        if not new:
            raise UserError(f"--hook {words!r}: no array matches; nearest: {nearest(pattern or words, by_name)}")
        for key, group in new.items():
            if key in found:
                raise UserError(f"hook point {key!r} is named twice")
            found[key] = group
    if not hooks:
        require_clear(by_name)
        found = by_name
    if not found:
        raise UserError(f"{arrays[0].file.parent} holds no activations")
    for key in found:
        if not key or "/" in key:
            raise UserError(f"{key!r} cannot be a hook point's name: give it another, --hook 'NAME={key}'")
    used = {id(array) for group in found.values() for array in group}
    return Choice(found, named_tokens, named_documents, [array for array in left if id(array) not in used])


def take(left: list[ForeignArray], pattern: str | None, names: Sequence[str], what: str) -> list[ForeignArray]:
    """Take arrays that match a pattern, or have one of some names, out of a list."""
    found = [a for a in left if (a.key in names if pattern is None else matches(a, pattern))]
    if pattern is not None and not found:
        raise UserError(f"--{what} {pattern!r}: no array matches; nearest: {nearest(pattern, {a.key for a in left})}")
    left[:] = [array for array in left if all(array is not one for one in found)]
    return found


def matches(array: ForeignArray, pattern: str) -> bool:
    """True if an array's name, its file's name, or ``FILE:NAME`` is, or matches, a pattern."""
    names = (array.key, array.file.name, f"{array.file.name}:{array.key}")
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def require_clear(groups: Groups) -> None:
    """Refuse files that are called ``acts_0``, ``acts_1``, …: hook points, or parts of one?"""
    numbered: dict[str, list[str]] = {}
    for key, group in groups.items():
        if key == group[0].file.stem and (match := re.fullmatch(r"(.*?)\d+", key)):
            numbered.setdefault(match[1], []).append(group[0].file.name)
    for prefix, files in numbered.items():
        if len(files) > 1:
            raise UserError(
                f"{files[0]}, {files[1]}, …: are these parts of one hook point, or a hook point each? "
                f"--hook 'NAME={prefix}*' joins them, --hook '{prefix}*' takes each"
            )


def named(known: Iterable[str], patterns: str | Sequence[str] | None, where: str) -> list[str]:
    """Return the names that are given, or match a pattern, in their own order; all if there is no pattern.

    Raises
    ------
    UserError
        If a pattern matches nothing; the message has the nearest three.
    """
    names = list(known)
    wanted = [patterns] if isinstance(patterns, str) else patterns
    chosen: set[str] = set()
    for pattern in wanted or ["*"]:
        found = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not found:
            raise UserError(f"{where} has no hook point {pattern!r}; nearest: {nearest(pattern, names)}")
        chosen |= found
    return [name for name in names if name in chosen]
