"""Interpolated modified Kneser-Ney language models over token ids: the yardstick beside a trained subject.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UserError

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


def discounts(counts: Ids) -> Floats:
    """Return what to take off a count of 0, 1, 2, and 3 or more, estimated from how many counts are 1, 2, 3 and 4.

    Parameters
    ----------
    counts : int array [n-grams]
        Each at least 1.

    Returns
    -------
    float array [4]
        Above 0 and below the count (0 for a count of 0). Where too little text leaves an estimate undefined or out of
        that range, three quarters of a count are taken off.
    """
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    found = np.zeros(4)
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    for k, (here, above) in enumerate([(n1, n2), (n2, n3), (n3, n4)], start=1):
        estimate = k - (k + 1) * y * above / here if here else -1.0
        found[k] = estimate if 0 < estimate < k else 0.75
    return found


@dataclass(frozen=True)
class Level:
    """The n-grams of one order, sorted, each a number in base `n_vocab`.

    Attributes
    ----------
    keys : int64 array [n-grams]
        Ascending.
    shares : float array [n-grams]
        Discounted count over the history's total.
    histories : int64 array [histories]
        Ascending.
    left_over : float array [histories]
        What the discounts took: the weight of the next lower order.
    """

    keys: Ids
    shares: Floats
    histories: Ids
    left_over: Floats


def make_level(keys: Ids, counts: Ids, n_vocab: int) -> Level:
    """Return a level from its n-grams and their (continuation) counts."""
    taken = discounts(counts)[np.minimum(counts, 3)]
    histories, where = np.unique(keys // n_vocab, return_inverse=True)
    totals = np.bincount(where, weights=counts)
    left_over = np.bincount(where, weights=taken) / totals
    return Level(keys, (counts - taken) / totals[where], histories, left_over)


class KneserNey:
    """An n-gram model of token sequences.

    The highest order counts occurrences, each lower one the different tokens that come before; every order is
    interpolated with the one below, the lowest with the uniform distribution.

    Parameters
    ----------
    documents : sequence of int arrays [pos]
        Token ids, without the beginning-of-sequence token.
    n_vocab : int
        Ids are 0 to ``n_vocab - 1``; ``n_vocab ** order`` must be below 2 ** 63.
    order : int
        Length of the n-grams, at least 1.
    begin : int
        Stands `order` - 1 times before each document.

    Raises
    ------
    UserError
        If the n-grams are too many to be numbered, or there is no token.
    """

    def __init__(self, documents: Sequence[Ids], n_vocab: int, order: int, begin: int = 0) -> None:
        if order < 1 or n_vocab**order >= 2**63:
            raise UserError(
                f"order {order} over {n_vocab} tokens: must be at least 1, with n_vocab ** order below 2 ** 63"
            )
        self.n_vocab, self.order, self.begin = n_vocab, order, begin
        occurrences = np.concatenate([np.empty(0, np.int64), *(self.keys(document) for document in documents)])
        if not len(occurrences):
            raise UserError("an n-gram model needs at least one token of text")
        keys, counts = np.unique(occurrences, return_counts=True)
        levels = [make_level(keys, counts, n_vocab)]
        for lower in range(order - 1, 0, -1):
            keys, counts = np.unique(keys % n_vocab**lower, return_counts=True)
            levels.append(make_level(keys, counts, n_vocab))
        self.levels = levels[::-1]  # lowest order first

    def keys(self, document: Ids) -> Ids:
        """Return the number of the n-gram that ends at each token of a document."""
        padded = np.concatenate([np.full(self.order - 1, self.begin), np.asarray(document, np.int64)])
        keys = np.zeros(len(document), np.int64)
        for i in range(self.order):
            keys = keys * self.n_vocab + padded[i : i + len(document)]
        return keys

    def probabilities(self, keys: Ids) -> Floats:
        """Return the probability of the last token of each n-gram, given those before it."""
        p = np.full(len(keys), 1 / self.n_vocab)
        for order, level in enumerate(self.levels, start=1):
            here = keys % self.n_vocab**order
            share, _ = look_up(level.keys, level.shares, here)
            left_over, seen = look_up(level.histories, level.left_over, here // self.n_vocab)
            p = np.where(seen, share + left_over * p, p)
        return p

    def bits(self, document: Ids) -> float:
        """Return -log2 of a document's probability."""
        return float(-np.log2(self.probabilities(self.keys(document))).sum())


def look_up(keys: Ids, values: Floats, wanted: Ids) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the value of each wanted key, 0 where it is not among the (ascending) keys, and whether it is."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[at] == wanted
    return np.where(found, values[at], 0.0), found
