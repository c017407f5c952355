"""Addresses of models and datasets that hold from any folder."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path


def absolute(place: str, names: Collection[str] = ()) -> str:
    """Make the path in an address count from the root, so that a store or a run can be used from another folder.

    Parameters
    ----------
    place : str
        What follows the scheme: a name, or a path, perhaps with a tower (``#vision``) or options (``?split=test``).
    names : collection of str
        Names that are never paths.

    Returns
    -------
    str
        Unchanged where it is no path that exists.

    Examples
    --------
    >>> absolute("gpt2"), absolute("calendar", names=["calendar"])
    ('gpt2', 'calendar')
    """
    path = re.split(r"[#?]", place, maxsplit=1)[0]
    if place in names or not path or not Path(path).expanduser().exists():
        return place
    return str(Path(path).expanduser().resolve()) + place[len(path) :]
