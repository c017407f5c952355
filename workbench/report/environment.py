"""The templates and how they are filled: every text from data is escaped."""

import json
from functools import cache
from typing import Any

import jinja2

from workbench.report import numbers

# They turn the direction of the text around them, so that code reads as what it is not.
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def render(template: str, **values: Any) -> str:
    """Fill a template of `workbench/report/templates`.

    Parameters
    ----------
    template : str
        File name.
    **values
        What it shows; strings are escaped.

    Returns
    -------
    str
        HTML.
    """
    return _environment().get_template(template).render(**values)


def static(name: str) -> str:
    """Read a style sheet or script that lies beside the templates."""
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def pieces(text: str, *, alone: bool = False) -> list[tuple[bool, str]]:
    """Split a token's text into what is shown as it is and marks for what cannot be seen.

    Parameters
    ----------
    text : str
        A token.
    alone : bool
        It stands by itself, not in a text, so that a space at its edge could not be seen.

    Returns
    -------
    list of (bool, str)
        True for a mark: ``↵`` a line's end, ``⇥`` a tab, ``·`` each space of a token that stands alone or is made of
        white space, the code of a control character.

    Examples
    --------
    >>> pieces(" x\\n"), pieces("  ")
    ([(False, ' x'), (True, '↵')], [(True, '··')])
    """
    dotted = alone or not text.strip(" \n\r\t")
    found: list[tuple[bool, str]] = []
    for letter in text:
        mark, shown = _piece(letter, dotted)
        if found and found[-1][0] == mark:
            found[-1] = mark, found[-1][1] + shown
        else:
            found.append((mark, shown))
    return found or [(True, "∅")]


def _piece(letter: str, dotted: bool) -> tuple[bool, str]:
    if letter in "\n\r\t":
        return True, {"\n": "↵", "\r": "␍", "\t": "⇥"}[letter]
    if letter == " " and dotted:
        return True, "·"
    if ord(letter) < 32 or 127 <= ord(letter) < 160 or 0xD800 <= ord(letter) < 0xE000 or ord(letter) in _BIDI:
        return True, f"⟨{ord(letter):04X}⟩"
    return False, letter


def heading(name: str) -> str:
    """Read a name as words; what has dots in it (``auc.in_string.k1``, a hook point) is a name and stays as it is."""
    words = [word if "." in word else word.replace("_", " ") for word in name.split("-")]
    if "." not in words[0]:
        alone = len(words) == 1 and len(words[0]) <= 3  # MSE, L0
        words[0] = words[0].upper() if alone else words[0][:1].upper() + words[0][1:]
    return " ".join(words)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("workbench.report", "templates"),
        autoescape=True,  # for every file: the default goes by its ending
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        number=numbers.number,
        duration=numbers.duration,
        moment=numbers.moment,
        filesize=numbers.size,
        heading=heading,
        pieces=pieces,
        plain=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    return environment
