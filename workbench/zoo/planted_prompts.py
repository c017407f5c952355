"""Prompts that planted subjects answer, with corrupted and erased partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from workbench.errors import UserError
from workbench.zoo.planted import N_CONTEXT, N_FILLERS, N_NAMES, Recipe

Negatives = Literal["corrupted", "erased"]

BOS, END = 0, 1
NAMES = slice(2, 2 + N_NAMES)
FILLERS = slice(NAMES.stop, NAMES.stop + N_FILLERS)
WORDS = (
    "<|begin|>", "<|end|>",
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kim", "Leo", "Mia", "Noah", "Olga",
    "Paul", "apple", "basket", "candle", "door", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle",
    "<|other|>",
)  # fmt: skip
STREAM = 17  # apart from what else is drawn with the same seed
N_SLOTS = N_CONTEXT - 2  # between the beginning and the last token


@dataclass(frozen=True)
class PlantedPairs:
    """Prompts of a planted task, each with a partner of the same length and layout.

    Attributes
    ----------
    clean : int64 array [example, pos]
        The task can be done; all prompts fill the whole context.
    negative : int64 array [example, pos]
        ``corrupted``: other names in the same places, and other fillers. ``erased``: every name is a filler.
    answer, wrong : tuple of tuple of int
        Right and wrong next tokens of the clean prompt.
    positions : dict of str to int64 array [example]
        Places of the tokens that matter.
    """

    clean: np.ndarray
    negative: np.ndarray
    answer: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    positions: dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """Where a prompt's names stand.

    Attributes
    ----------
    places : tuple of int
        Positions of the names.
    who : tuple of int
        Which name stands at each: equal numbers are equal names.
    answer : int
        Which of the names is the answer.
    last : int or None
        Which of the names is the last token; None: the end token.
    positions : dict of str to int
        Places by name.
    """

    places: tuple[int, ...]
    who: tuple[int, ...]
    answer: int
    last: int | None
    positions: dict[str, int]


def pairs(name: str, n: int, seed: int, negatives: Negatives = "corrupted") -> PlantedPairs:
    """Draw prompts of a planted subject's task.

    Parameters
    ----------
    name : str
        ``planted-ioi-3``, with or without ``zoo:``; only its task matters.
    n : int
        Examples.
    seed : int
        Same seed, same prompts; clean ones do not depend on `negatives`.
    negatives : "corrupted" or "erased"
        See `PlantedPairs`.

    Raises
    ------
    UserError
        For a name that is no planted subject, fewer than one example, or other negatives.
    """
    task = Recipe.of(name.removeprefix("zoo:")).task
    if n < 1:
        raise UserError(f"{n} examples: at least 1")
    if negatives not in get_args(Negatives):
        raise UserError(f"negatives {negatives!r}: must be {' or '.join(get_args(Negatives))}")
    rng = np.random.default_rng([seed, STREAM])
    layouts = [LAYOUTS[task](rng) for _ in range(n)]
    clean, negative = (np.empty((n, N_CONTEXT), np.int64) for _ in range(2))
    answer, wrong = [], []
    for row, layout in enumerate(layouts):
        names = NAMES.start + rng.permutation(N_NAMES)
        n_names = max(layout.who) + 1
        clean[row] = prompt(layout, layout.who, names, rng)
        # Corrupted names differ from one another too: where the clean prompt doubles a name, nothing is doubled.
        fresh = layout.who if task != "ioi" else tuple(range(len(layout.who)))
        other = prompt(layout, fresh, names[n_names:], rng)
        fillers = rng.integers(FILLERS.start, FILLERS.stop, N_CONTEXT)
        is_name = (clean[row] >= NAMES.start) & (clean[row] < NAMES.stop)
        negative[row] = other if negatives == "corrupted" else np.where(is_name, fillers, clean[row])
        answer.append((int(names[layout.answer]),))
        others = names[1:2] if task == "ioi" else names[names != names[layout.answer]]
        wrong.append(tuple(sorted(int(each) for each in others)))
    positions = {key: np.array([layout.positions[key] for layout in layouts]) for key in layouts[0].positions}
    return PlantedPairs(clean, negative, tuple(answer), tuple(wrong), positions)


def prompt(layout: Layout, who: tuple[int, ...], names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill a layout with names and fillers -> int64 [pos]."""
    tokens = rng.integers(FILLERS.start, FILLERS.stop, N_CONTEXT)
    tokens[0] = BOS
    tokens[list(layout.places)] = names[list(who)]
    tokens[-1] = END if layout.last is None else names[layout.last]
    return tokens


def spaced(rng: np.random.Generator, n_pairs: int) -> np.ndarray:
    """Places of the first tokens of pairs, a filler at least after each."""
    spare = N_SLOTS - 3 * n_pairs
    gaps = np.bincount(rng.integers(n_pairs + 1, size=spare), minlength=n_pairs + 1)
    return np.asarray(1 + np.cumsum(gaps[:n_pairs]) + 3 * np.arange(n_pairs))


def induction_layout(rng: np.random.Generator) -> Layout:
    """Three pairs of names; the first of one of them again."""
    starts, chosen = spaced(rng, 3), int(rng.integers(3))
    places = tuple(int(start) + i for start in starts for i in (0, 1))
    at = {"first": int(starts[chosen]), "second": int(starts[chosen]) + 1, "query": N_CONTEXT - 1}
    return Layout(places, tuple(range(6)), 2 * chosen + 1, 2 * chosen, at)


def hops_layout(rng: np.random.Generator) -> Layout:
    """AB, BC, CD and another pair, shuffled; A again."""
    links = [(0, 1), (1, 2), (2, 3), (4, 5)]
    starts = rng.permutation(spaced(rng, 4))
    places = tuple(int(start) + i for start in starts for i in (0, 1))
    at = {"B": int(starts[0]) + 1, "C": int(starts[1]) + 1, "D": int(starts[2]) + 1, "query": N_CONTEXT - 1}
    return Layout(places, tuple(each for link in links for each in link), 3, 0, at)


def ioi_layout(rng: np.random.Generator) -> Layout:
    """IO and S in either order, S again, the end."""
    first, second, again = (int(place) for place in np.sort(1 + rng.choice(N_SLOTS, size=3, replace=False)))
    io, s = (first, second) if rng.integers(2) else (second, first)
    return Layout((io, s, again), (0, 1, 1), 0, None, {"IO": io, "S1": s, "S2": again, "end": N_CONTEXT - 1})


LAYOUTS: dict[str, Callable[[np.random.Generator], Layout]] = {
    "induction": induction_layout,
    "hops": hops_layout,
    "ioi": ioi_layout,
}
