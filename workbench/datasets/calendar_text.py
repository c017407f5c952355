"""The language of `zoo:calendar`: arithmetic on days and months, exact and vague, and sentences about other things.

Every sentence is a list of words separated by single spaces, punctuation included, so that a word is a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
VAGUE = ("around", "about", "roughly", "perhaps")

TaskName = Literal["weekday", "month"]

# {a} is the operand, {n} the offset with its unit ("three days"), {in} "on" or "in"; the answer follows the last word.
PHRASINGS: dict[str, tuple[str, str]] = {
    "after": ("{n} after {a} it is", "{n} before {a} it is"),
    "now": ("now it is {a} , and in {n} it will be", "now it is {a} , and {n} ago it was"),
    "plus": ("{a} plus {n} is", "{a} minus {n} is"),
    "count": ("counting from {a} and going {n} forward we reach", "counting from {a} and going {n} backward we reach"),
    "trip": ("she left {in} {a} and came home {n} later {in}", "she came home {in} {a} and had left {n} earlier {in}"),
    "moved": ("the meeting of {a} was moved forward by {n} to", "the meeting of {a} was moved back by {n} to"),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One kind of arithmetic.

    Attributes
    ----------
    name : "weekday" or "month"
        What it is about.
    words : tuple of str
        The circle, in order.
    unit : str
        Of an offset, in the singular.
    preposition : str
        What stands before one of the words: "on" Monday, "in" May.
    """

    name: TaskName
    words: tuple[str, ...]
    unit: str
    preposition: str

    @property
    def period(self) -> int:
        """Length of the circle."""
        return len(self.words)


TASKS: dict[TaskName, Task] = {
    "weekday": Task("weekday", WEEKDAYS, "day", "on"),
    "month": Task("month", MONTHS, "month", "in"),
}


class Problem(NamedTuple):
    """An operand, an offset in units, and a direction (+1 after, -1 before)."""

    task: TaskName
    operand: int
    offset: int
    direction: int

    @property
    def answer(self) -> int:
        """Index of the answer on the circle."""
        return (self.operand + self.direction * self.offset) % TASKS[self.task].period


def problems(task: TaskName) -> list[Problem]:
    """Return every problem of a task: operands, offsets 0 to 12, both directions."""
    offsets, directions = range(len(NUMBERS)), (1, -1)
    return [Problem(task, a, n, s) for a in range(TASKS[task].period) for n in offsets for s in directions]


def held_out_problems(seed: int = 0) -> frozenset[Problem]:
    """Return the tenth of the problems of each task that `zoo:calendar` is never shown.

    Parameters
    ----------
    seed : int
        The zoo's own subject was trained with 0.
    """
    chosen: list[Problem] = []
    for i, task in enumerate(TASKS):
        every = problems(task)
        order = np.random.default_rng([seed, i]).permutation(len(every))
        chosen += [every[k] for k in order[: round(0.1 * len(every))]]
    return frozenset(chosen)


def prompt(problem: Problem, phrasing: str, vague: str = "") -> str:
    """Return the sentence up to its answer.

    Parameters
    ----------
    problem : Problem
        What is asked.
    phrasing : str
        A key of `PHRASINGS`.
    vague : str
        A word of `VAGUE`, set before the offset; none for exact arithmetic.
    """
    task = TASKS[problem.task]
    unit = task.unit + "s" * (problem.offset != 1)
    offset = " ".join([*([vague] if vague else []), NUMBERS[problem.offset], unit])
    template = PHRASINGS[phrasing][0 if problem.direction > 0 else 1]
    return template.format_map({"n": offset, "a": task.words[problem.operand], "in": task.preposition})


def von_mises(centre: float, period: int, concentration: float) -> np.ndarray:
    """Return probabilities [period] on a circle's points, proportional to exp(concentration * cos(angle to centre))."""
    angle = 2 * math.pi * (np.arange(period) - centre) / period
    weight = np.exp(concentration * np.cos(angle))
    return np.asarray(weight / weight.sum())


# Each ring's words are spread evenly around the circle, starting at its first day or month.
SEASONS: dict[str, tuple[TaskName, tuple[str, ...]]] = {
    "in {a} the weather is": (
        "month",
        ("freezing", "icy", "windy", "rainy", "mild", "sunny", "hot", "scorching", "warm", "foggy", "chilly", "snowy"),
    ),
    "in {a} the garden has": (
        "month", ("frost", "snowdrops", "tulips", "blossom", "roses", "berries", "tomatoes", "apples", "leaves", "mud"),
    ),
    "in {a} they love to": ("month", ("ski", "plant", "hike", "swim", "harvest", "knit")),
    "on {a} the office is": ("weekday", ("sleepy", "busy", "humming", "noisy", "cheerful", "empty", "silent")),
    "on {a} she likes to": ("weekday", ("plan", "work", "exercise", "shop", "dance", "rest", "pray")),
}  # fmt: skip

NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Hugo")
CITIES = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Greece": "Athens",
    "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima",
}  # fmt: skip
THINGS = ("apples", "books", "chairs", "pencils", "stones", "coins", "plates", "ropes")
ANIMALS = {"cat": "meows", "dog": "barks", "cow": "moos", "duck": "quacks", "owl": "hoots", "lion": "roars"}
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "gold": "yellow", "water": "blue"}


def unrelated(rng: np.random.Generator) -> str:
    """Return a sentence about neither days nor months."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    match int(rng.integers(5)):
        case 0:
            country = pick(tuple(CITIES))
            return f"the capital of {country} is {CITIES[country]} ."
        case 1:
            giver, taker = pick(NAMES), pick(NAMES)
            return f"{giver} gave {pick(NUMBERS[2:])} {pick(THINGS)} to {taker} in {pick(tuple(CITIES.values()))} ."
        case 2:
            animal = pick(tuple(ANIMALS))
            return f"when {pick(NAMES)} comes home the {animal} {ANIMALS[animal]} ."
        case 3:
            thing = pick(tuple(COLOURS))
            return f"{pick(NAMES)} says that {thing} is {COLOURS[thing]} ."
        case _:
            return f"{pick(NAMES)} and {pick(NAMES)} carried the {pick(THINGS)} from {pick(tuple(CITIES))} ."


def listing(rng: np.random.Generator) -> str:
    """Return a run of days, months or numbers in their order."""
    words = (WEEKDAYS, MONTHS, NUMBERS)[int(rng.integers(3))]
    start, length = int(rng.integers(len(words))), int(rng.integers(3, 8))
    if words is NUMBERS:  # not a circle
        return " , ".join(words[start : start + length]) + " ."
    return " , ".join(words[(start + i) % len(words)] for i in range(length)) + " ."


def seasonal(rng: np.random.Generator, concentration: float) -> str:
    """Return what is usual on a day or in a month, drawn from a von Mises distribution around it."""
    frames = tuple(SEASONS)
    frame = frames[int(rng.integers(len(frames)))]
    name, words = SEASONS[frame]
    task = TASKS[name]
    at = int(rng.integers(task.period))
    usual = von_mises(at * len(words) / task.period, len(words), concentration)
    return f"{frame.format(a=task.words[at])} {words[int(rng.choice(len(words), p=usual))]} ."


@dataclass(frozen=True)
class Mixture:
    """What the training text is made of.

    Attributes
    ----------
    arithmetic, season, listing : float
        Shares of the sentences, each in [0, 1]; the rest is about other things.
    vague : float
        Share of the arithmetic whose answer is drawn around the truth.
    concentration : float
        Of the von Mises distributions, above 0; larger is narrower.
    """

    arithmetic: float = 0.6
    season: float = 0.15
    listing: float = 0.1
    vague: float = 0.5
    concentration: float = 2.0


def sentences(
    n: int, seed: int, mixture: Mixture | None = None, held_out: frozenset[Problem] | None = None
) -> list[str]:
    """Return training sentences; no problem of `held_out` is among them, neither exact nor vague.

    Parameters
    ----------
    n : int
        Number of sentences.
    seed : int
        Decides all of them.
    mixture : Mixture, optional
        Shares of the kinds.
    held_out : frozenset of Problem, optional
        Left out; by default `held_out_problems`.
    """
    mixture = mixture or Mixture()
    hidden = held_out_problems() if held_out is None else held_out
    shown = [[p for p in problems(task) if p not in hidden] for task in TASKS]
    phrasings = tuple(PHRASINGS)
    rng = np.random.default_rng([seed, n])
    result = []
    for _ in range(n):
        kind = rng.random()
        if kind < mixture.arithmetic:
            which = shown[int(rng.integers(2))]
            problem = which[int(rng.integers(len(which)))]
            phrasing, task = phrasings[int(rng.integers(len(phrasings)))], TASKS[problem.task]
            if rng.random() < mixture.vague:
                start = prompt(problem, phrasing, VAGUE[int(rng.integers(len(VAGUE)))])
                spread = von_mises(problem.answer, task.period, mixture.concentration)
                answer = int(rng.choice(task.period, p=spread))
            else:
                start, answer = prompt(problem, phrasing), problem.answer
            result.append(f"{start} {task.words[answer]} .")
        elif kind < mixture.arithmetic + mixture.season:
            result.append(seasonal(rng, mixture.concentration))
        elif kind < mixture.arithmetic + mixture.season + mixture.listing:
            result.append(listing(rng))
        else:
            result.append(unrelated(rng))
    return result


def vocabulary() -> list[str]:
    """Return every word of the language, sorted."""
    texts = [template for pair in PHRASINGS.values() for template in pair] + list(SEASONS)
    words = {word for text in texts for word in text.split() if "{" not in word}
    words |= {"day", "days", "month", "months", "on", "in", ".", ","}
    words |= {*WEEKDAYS, *MONTHS, *NUMBERS, *VAGUE, *NAMES, *THINGS}
    for facts in (CITIES, ANIMALS, COLOURS):
        words |= {*facts, *facts.values()}
    for _, ring in SEASONS.values():
        words |= set(ring)
    words |= {"the", "capital", "of", "is", "gave", "to", "in", "when", "comes", "home", "says", "that", "and"}
    words |= {"carried", "from"}
    return sorted(words)
