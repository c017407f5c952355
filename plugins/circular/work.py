"""Pieces of a run that are kept as they are made, so that a run that was interrupted goes on after them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import xxhash

if TYPE_CHECKING:
    from workbench.context import Context

T = TypeVar("T")


def once(context: Context, name: str, make: Callable[[], T]) -> T:
    """Return what `make` returns, JSON values, or what it returned before an interruption.

    Parameters
    ----------
    context : Context
        Its `work` folder holds a file for each piece.
    name : str
        Of the piece, and of everything that tells it from others of the run.
    make : callable
        Called if there is no such file.
    """
    path = context.work / f"{xxhash.xxh3_64_hexdigest(name.encode())}.json"
    if path.is_file():
        held: T = json.loads(path.read_text(encoding="utf-8"))
        return held
    made = make()
    context.work.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(made), encoding="utf-8")
    part.replace(path)
    return made
