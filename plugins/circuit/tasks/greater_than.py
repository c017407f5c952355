"""Greater-than (Hanna et al., arXiv:2305.00586): a war that began in 1732 ended in 17.., which years are possible?"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.plugins.circuit.tasks.wording import Wording, word_list
from workbench.subjects.protocol import Subject

CENTURIES = tuple(range(11, 18))
FIRST = "01"


class GreaterThan(Task):
    """``The war lasted from the year 1732 to the year 17``: 33, 34, … 99.

    Corrupted and negative prompts have 01 as start year. Metric: probability of all later years minus that of all
    others. Years are taken that the tokenizer splits into two digits and two digits.
    """

    name = "greater-than"

    def contents(self) -> Any:
        """See `Task.contents`."""
        return word_list("events"), CENTURIES

    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """See `Task.make`."""
        wording = Wording(subject)
        nouns = wording.enough(word_list("events"), 1, "nouns", self.name)
        years, digits = split_years(wording)
        numbers = sorted(int(each) for each in digits)
        clean, corrupted, answer, wrong = [], [], [], []
        positions: dict[str, list[int]] = {"XX1": [], "YY": [], "end": []}
        for _ in range(n):
            noun, (century, year) = str(rng.choice(nouns)), years[rng.integers(len(years))]
            before = f"The {noun} lasted from the year {century}"
            after = f" to the year {century}"
            first, second = wording.tokens(f"{before}{year:02d}{after}"), wording.tokens(f"{before}{FIRST}{after}")
            clean.append(first)
            corrupted.append(second)
            answer.append([digits[f"{y:02d}"] for y in numbers if y > year])
            wrong.append([digits[f"{y:02d}"] for y in numbers if y <= year])
            at = len(wording.tokens(before)) - 1
            for key, where in (("XX1", at), ("YY", at + 1), ("end", len(first) - 1)):
                positions[key].append(where)
        pairs = Pairs.of(clean, corrupted, answer, wrong, positions=positions, metric="probability-difference")
        about = f"Corrupted prompts, which are the negatives of the discrete SAE too, have {FIRST} as start year."
        return Prompts(pairs, Tokens.of(corrupted), about)


def split_years(wording: Wording) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """Return the years (century, year in it) that are two tokens of two digits, and the token of each two digits.

    Raises
    ------
    UserError
        If no century has a start year of 01 and later ones that are split so.
    """
    digits: dict[str, int] = {}
    split: set[tuple[int, int]] = set()
    for century in CENTURIES:
        before = f"from the year {century}"
        for year in range(100):
            token = wording.follower(before, f"{year:02d}")
            if token is None:
                continue
            if digits.setdefault(f"{year:02d}", token) == token:
                split.add((century, year))
    usable = [(century, year) for century, year in sorted(split) if 2 <= year <= 98 and (century, int(FIRST)) in split]
    if not usable or len(digits) < 100:
        raise UserError(
            f"task greater-than needs a tokenizer that splits years such as 1732 into 17 and 32; that of "
            f"{wording.subject.address} has {len(digits)} of the 100 endings as tokens: take another subject or task"
        )
    return usable, digits
