"""What is said about scenes: captions, the prompts that name a class, and a pool of descriptions to choose from.

A caption *claims* something of one or two objects: int64 [2, attribute], -1 where an attribute, or a whole second
object, is not spoken of. `holds` tells of which scenes it is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import combinations as choose
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from workbench.datasets.protocol import Description
from workbench.datasets.shapes_scenes import ATTRIBUTES, MAIN, Scene
from workbench.errors import UserError, nearest

# Other words for a value; the name in ATTRIBUTES is the first and the one that prompts use.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc",),
    "square": ("box",),
    "triangle": ("wedge",),
    "cross": ("plus",),
    "ring": ("hoop",),
    "cyan": ("turquoise",),
    "purple": ("violet",),
    "plain": ("solid",),
    "dotted": ("spotted",),
    "checkered": ("chequered",),
    "centre": ("middle",),
    "small": ("little",),
    "large": ("big",),
}
WITH = {
    "plain": ("no pattern",),
    "striped": ("stripes", "lines"),
    "dotted": ("dots", "spots"),
    "checkered": ("checks",),
}
THINGS = ("object", "thing", "shape", "figure")
OPENINGS = ("a picture of", "an image of", "a drawing showing", "this is", "here we see")
# True of no scene more than of another: said of a quarter of them, at random.
ASIDES = (
    "on monday", "on friday", "in winter", "in summer", "in the morning", "last night", "seen yesterday", "for anna",
    "by paul", "from a museum", "for the school", "near the river", "with music", "after lunch", "number seven",
    "number twelve", "in silence", "with a friend", "about history", "for sale", "very old", "quite new", "maybe",
    "probably true", "without reason", "in french", "of great value", "as promised", "made at home", "price unknown",
    "under a bridge", "before the concert", "like a memory", "with good news", "from london", "and nothing else",
)  # fmt: skip
PHRASINGS = ("colour first", "texture first", "with", "place first", "predicate", "words")
GLUE = ("a", "an", "the", "at", "is", "and", "with", "there")
NOTHING = np.full(len(ATTRIBUTES), -1, np.int64)


class Caption(NamedTuple):
    """A text, and what it claims, int64 [2, attribute]."""

    text: str
    claims: np.ndarray


def words_for(attribute: str, value: int) -> tuple[str, ...]:
    """Return the words for a value of an attribute, its name first."""
    name = ATTRIBUTES[attribute][value]
    return name, *SYNONYMS.get(name, ())


def vocabulary() -> list[str]:
    """Return all words of all texts of this module, sorted."""
    texts = [*GLUE, *THINGS, *OPENINGS, *ASIDES, *(word for words in WITH.values() for word in words)]
    for attribute, names in ATTRIBUTES.items():
        texts += [word for value in range(len(names)) for word in words_for(attribute, value)]
    return sorted({word for text in texts for word in text.split()})


def phrase(words: Mapping[str, str], phrasing: str, noun: str = "object") -> str:
    """Return what is said of one object.

    Parameters
    ----------
    words : mapping of attribute to str
        What is said of it; ``with`` instead of ``texture`` for a noun (``stripes``). Without a shape it is a `noun`.
    phrasing : str
        One of `PHRASINGS`.
    noun : str
        One of `THINGS`.

    Examples
    --------
    >>> phrase({"colour": "red", "shape": "star", "position": "top left"}, "colour first")
    'a red star at the top left'
    >>> phrase({"colour": "red", "texture": "striped"}, "predicate")
    'the object is red and striped'
    """
    shape, place = words.get("shape", noun), f"at the {words['position']}" if "position" in words else ""
    size, colour, texture = words.get("size", ""), words.get("colour", ""), words.get("texture", "")
    tail = f"with {words['with']}" if "with" in words else ""
    if phrasing == "words":
        parts = [size, colour, texture, words.get("with", ""), words.get("shape", ""), words.get("position", "")]
        return joined(*parts) or noun
    if phrasing == "predicate":
        said = " and ".join(word for word in (colour, texture, tail) if word)
        if said:
            return joined("the", size, shape, place, "is", said)
    if phrasing == "texture first":
        colour, texture = texture, colour
    named = with_article(joined(size, colour, texture, shape, tail))
    return joined(place, "there is", named) if phrasing == "place first" and place else joined(named, place)


def joined(*parts: str) -> str:
    """Join words, leaving out what is empty."""
    return " ".join(part for part in parts if part)


def with_article(words: str) -> str:
    """Put ``a`` or ``an`` before words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def claims_of(*things: Mapping[str, int]) -> np.ndarray:
    """Return claims, int64 [2, attribute], from the values spoken of; at most two objects."""
    found = np.stack([NOTHING, NOTHING])
    for row, values in zip(found, things, strict=False):
        row[:] = [values.get(name, -1) for name in ATTRIBUTES]
    return found


def draw_caption(rng: np.random.Generator, scene: Scene) -> Caption:
    """Draw a caption that is true of a scene: all of it or a part, in one of the phrasings, with other words."""
    things = list(scene.things)
    if len(things) == 2:
        rng.shuffle(things)
        things = things[: 1 + (rng.random() < 0.7)]
    said, claimed = [], []
    keep = 0.35 if rng.random() < 0.2 else 0.9
    phrasing = PHRASINGS[int(rng.integers(len(PHRASINGS)))]
    for thing in things:
        kept = [name for name in ATTRIBUTES if rng.random() < (keep if name in MAIN else 0.3)]
        kept = kept or [MAIN[int(rng.integers(len(MAIN)))]]
        values = {name: int(getattr(thing, name)) for name in kept}
        words = {name: pick(rng, words_for(name, value)) for name, value in values.items()}
        if "texture" in values and (phrasing == "with" or rng.random() < 0.1):
            words["with"] = pick(rng, WITH[ATTRIBUTES["texture"][values["texture"]]])
            del words["texture"]
        said.append(phrase(words, phrasing, pick(rng, THINGS)))
        claimed.append(values)
    text = " and ".join(said)
    if phrasing not in ("words", "predicate", "place first") and rng.random() < 0.3:
        text = joined(OPENINGS[int(rng.integers(len(OPENINGS)))], text)
    if rng.random() < 0.25:
        aside = ASIDES[int(rng.integers(len(ASIDES)))]
        text = joined(text, aside) if rng.random() < 0.5 else joined(aside, text)
    return Caption(text, claims_of(*claimed))


def draw_questions(rng: np.random.Generator) -> list[list[Caption]]:
    """Draw for each attribute one caption of each of its values, all in one phrasing: which of them is true?"""
    found = []
    for attribute, names in ATTRIBUTES.items():
        phrasing, noun = PHRASINGS[int(rng.integers(len(PHRASINGS)))], pick(rng, THINGS)
        words = [pick(rng, words_for(attribute, value)) for value in range(len(names))]
        claims = [claims_of({attribute: value}) for value in range(len(names))]
        found.append([Caption(phrase({attribute: w}, phrasing, noun), c) for w, c in zip(words, claims, strict=True)])
    return found


def pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """Return the first word half of the time, or else any."""
    return words[0 if rng.random() < 0.5 else int(rng.integers(len(words)))]


def holds(claims: np.ndarray, scenes: np.ndarray) -> np.ndarray:
    """Return which claims are true of which scenes: there are objects, one for each spoken of, that fit.

    Parameters
    ----------
    claims : int64 array [caption, 2, attribute]
        -1 for what is not claimed.
    scenes : int64 array [scene, 2, attribute]
        From `Scene.claims`.

    Returns
    -------
    bool array [caption, scene]
    """
    claim, thing = claims[:, None, :, None, :], scenes[None, :, None, :, :]
    fits: Any = ((claim == -1) | (claim == thing)).all(-1)  # [caption, scene, which claim, which object]
    there, silent = scenes[None, :, None, :, 0] >= 0, claims.max(axis=-1)[:, None, :, None] < 0
    fits &= there | silent  # one object is enough for a caption that speaks of one
    found: np.ndarray = (fits[..., 0, 0] & fits[..., 1, 1]) | (fits[..., 0, 1] & fits[..., 1, 0])
    return found


# --- prompts and descriptions ---------------------------------------------------------------------------------------
TEMPLATES = ("colour first", "predicate", "place first")


def prompts(values: Mapping[str, str]) -> list[str]:
    """Return texts that say some attributes of one object, in several phrasings; a class is the mean of theirs.

    Parameters
    ----------
    values : mapping of attribute to name
        ``{"colour": "red"}``, or several at once.

    Raises
    ------
    UserError
        For an attribute or a value that there is not.

    Examples
    --------
    >>> prompts({"colour": "red"})[:5]
    ['a red object', 'a red thing', 'the object is red', 'the thing is red', 'a picture of a red object']
    """
    for name, value in values.items():
        if name not in ATTRIBUTES:
            raise UserError(f"no attribute {name!r}; nearest: {nearest(name, ATTRIBUTES)}")
        if value not in ATTRIBUTES[name]:
            raise UserError(f"no {name} {value!r}; nearest: {nearest(value, ATTRIBUTES[name])}")
    plain = phrase(values, TEMPLATES[0])
    found = [phrase(values, phrasing, noun) for phrasing in TEMPLATES for noun in THINGS[:2]]
    return list(dict.fromkeys([*found, *(joined(opening, plain) for opening in OPENINGS[:4])]))


def class_prompts(attribute: str) -> dict[str, list[str]]:
    """Return the prompts of each value of an attribute; see `prompts`."""
    if attribute not in ATTRIBUTES:
        raise UserError(f"no attribute {attribute!r}; nearest: {nearest(attribute, ATTRIBUTES)}")
    return {name: prompts({attribute: name}) for name in ATTRIBUTES[attribute]}


@cache
def descriptions() -> tuple[Description, ...]:
    """Return a pool of about two thousand descriptions, each text once.

    Words by themselves (those that name something, and those that name nothing: function words, asides), phrases that
    name one value, two or three, captions that name shape, colour, texture and place, and asides as phrases.
    """
    return tuple(Description(text, names) for text, names in dict(_descriptions()).items())


def _descriptions() -> Iterable[tuple[str, frozenset[tuple[str, str]]]]:
    """Yield texts and what they name; a text that comes twice names the same."""
    nothing: frozenset[tuple[str, str]] = frozenset()
    naming = dict(naming_words())
    for word in vocabulary():
        yield word, naming.get(word, nothing)
    for place in (name for name in ATTRIBUTES["position"] if " " in name):
        yield place, frozenset({("position", place)})
    for aside in (*ASIDES, *(with_article(thing) for thing in THINGS)):
        yield aside, nothing
    for attribute, value in ((a, v) for a, names in ATTRIBUTES.items() for v in names):
        for text in prompts({attribute: value}):
            yield text, frozenset({(attribute, value)})
    rng = np.random.default_rng(0)
    for attributes in (each for n in (2, 3) for each in choose(MAIN, n)):
        values = list(product(*(ATTRIBUTES[name] for name in attributes)))
        for at in rng.permutation(len(values))[:120]:
            said = dict(zip(attributes, values[at], strict=True))
            yield phrase(said, "colour first"), frozenset(said.items())
    every = list(product(*(ATTRIBUTES[name] for name in MAIN)))
    for at in rng.permutation(len(every))[:400]:
        said = dict(zip(MAIN, every[at], strict=True))
        yield phrase(said, PHRASINGS[int(rng.integers(2))]), frozenset(said.items())


def naming_words() -> Iterable[tuple[str, frozenset[tuple[str, str]]]]:
    """Yield the single words that name a value, and which one; a part of a place's name names each place it is in."""
    for attribute, names in ATTRIBUTES.items():
        for value, name in enumerate(names):
            for word in words_for(attribute, value):
                if " " not in word and attribute != "position":
                    yield word, frozenset({(attribute, name)})
    for name, words in WITH.items():
        for word in words[: None if name != "plain" else 0]:
            yield word, frozenset({("texture", name)})
    places = ATTRIBUTES["position"]
    for part in ("top", "bottom", "left", "right"):
        yield part, frozenset(("position", place) for place in places if part in place.split())
    for word in words_for("position", places.index("centre")):
        yield word, frozenset({("position", "centre")})
