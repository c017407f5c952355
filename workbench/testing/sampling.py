"""Values that an option must take, and values that it must refuse, made up from its type and range."""

from __future__ import annotations

import itertools
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from workbench.configuration import Field, in_range
from workbench.plugin import Option

TEXTS = ("no", "1e-4", "null", "7", "", "ü: [a, b] # c", "'", "*resid_post", " two\nlines")
NOT_A_VALUE = "§ no such value"


def right_values(field: Field) -> list[Any]:
    """Return values that a field must take: ends of its range, every choice, nothing, empty and longer lists."""
    return values_of(field.type, field.option)


def values_of(kind: Any, option: Option) -> list[Any]:
    """Return values of a type within an option's range."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values_of(args[0], option)
    if origin in (Union, types.UnionType):
        return [value for arg in args for value in values_of(arg, option)]
    if origin is Literal:
        return list(args)
    if kind is type(None):
        return [None]
    if kind is bool:
        return [False, True]
    if kind is str:
        return list(TEXTS)
    if kind is Path:
        return [Path("some/where")]
    if kind in (int, float):
        return [kind(number) for number in numbers(kind) if in_range(option, kind(number))] + ends(kind, option)
    if origin in (list, tuple, Sequence):
        return lists_of(origin, args, option)
    return []


def numbers(kind: type) -> list[float]:
    """Return numbers to try."""
    return [0, 1, 2, 7] if kind is int else [0, 1, 0.1, 1 / 3, 1e-4, 123456.75]


def ends(kind: Any, option: Option) -> list[Any]:
    """Return the ends of a range that belong to it."""
    found = [kind(end) for end in (option.ge, option.le) if end is not None]
    return [end for end in found if in_range(option, end)]


def lists_of(origin: Any, args: tuple[Any, ...], option: Option) -> list[Any]:
    """Return lists or tuples of a type: those of any length with none, one and several entries."""
    make = tuple if origin is tuple else list
    if origin is tuple and args and args[-1] is not ...:  # each place has a type of its own
        places = [values_of(arg, option)[:2] for arg in args]
        return [tuple(chosen) for chosen in itertools.islice(itertools.product(*places), 4)]
    entries = values_of(args[0], option) if args else []
    return [make(()), make(entries[:1]), make(entries)]


def wrong_values(field: Field) -> list[Any]:
    """Return values that a field must refuse: of another type, and out of its range."""
    plain = leaves(field.type)
    found: list[Any] = [[[[NOT_A_VALUE]]]] if {str, Path} & plain else [NOT_A_VALUE]
    if plain & {int, float}:
        option = field.option
        beyond = [None if end is None else end - 1 for end in (option.ge, option.gt)]
        beyond += [None if end is None else end + 1 for end in (option.le, option.lt)]
        found += [end for end in (option.gt, option.lt) if end is not None]
        found += [end for end in beyond if end is not None]
    if float in plain:
        found += [float("nan"), float("inf")]
    return found


def leaves(kind: Any) -> set[Any]:
    """Return the plain types that a type is made of."""
    if get_origin(kind) is Literal:
        return set()
    args = [arg for arg in get_args(kind) if arg is not ... and not isinstance(arg, Option)]
    return {kind} if not args else set().union(*(leaves(arg) for arg in args))
