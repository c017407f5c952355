"""The problems of `zoo:modular`: sums of two numbers modulo a prime, three tenths of them never shown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PRIME = 59
SHOWN_SHARE = 0.7
NUMBERS = tuple(str(n) for n in range(PRIME))


class Sum(NamedTuple):
    """Two numbers from 0 to `PRIME` - 1."""

    a: int
    b: int

    @property
    def answer(self) -> int:
        """The sum's remainder."""
        return (self.a + self.b) % PRIME

    @property
    def prompt(self) -> str:
        """The words up to the answer: ``12 + 45 =``."""
        return f"{NUMBERS[self.a]} + {NUMBERS[self.b]} ="


def sums() -> list[Sum]:
    """Return all `PRIME` ** 2 problems, by a and then by b."""
    return [Sum(a, b) for a in range(PRIME) for b in range(PRIME)]


def shown_sums(seed: int = 0) -> frozenset[Sum]:
    """Return the problems that the subject is shown; both orders of two numbers, or neither.

    Parameters
    ----------
    seed : int
        The zoo's own subject was trained with 0.
    """
    pairs = [(a, b) for a in range(PRIME) for b in range(a, PRIME)]
    order = np.random.default_rng(seed).permutation(len(pairs))
    chosen = [pairs[k] for k in order[: round(SHOWN_SHARE * len(pairs))]]
    return frozenset(Sum(*each) for a, b in chosen for each in ((a, b), (b, a)))
