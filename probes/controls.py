"""Probes that should find nothing, or only what the token alone gives away."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def control_labels(
    tokens: Int[np.ndarray, " rows"], y: Bool[np.ndarray, " rows"], rng: np.random.Generator
) -> Bool[np.ndarray, " rows"]:
    """Draw one label per token type from the labels' marginal: Hewitt & Liang 2019 §2.

    A probe that does well here remembers token types; selectivity is its score on the task less its score here. Draw
    once for all parts of a split, so that what is remembered in training pays in the test.

    Parameters
    ----------
    tokens : np.ndarray
        [rows] token id.
    y : np.ndarray
        [rows] label.
    rng : np.random.Generator
        Drawn from once per token type; types count by their rows, so the share of positive rows is kept roughly.
    """
    types, codes, sizes = np.unique(tokens, return_inverse=True, return_counts=True)
    wanted = np.mean(y) * len(codes)
    drawn = np.zeros(len(types), dtype=bool)
    order = rng.permutation(len(types))
    reached = np.cumsum(sizes[order])
    # types in random order until their rows are as many as the label's: exact marginal, up to the last type
    last = int(np.argmin(np.abs(reached - wanted)))
    drawn[order[: last + 1]] = True
    return np.asarray(drawn[codes])


class TokenIdentity:
    """The log odds of the label given the token id alone, from training rows.

    Counts are smoothed by one row spread over both classes as in training; an unseen token scores 0 (no evidence).
    Classes weigh the same, as in the probes.

    Parameters
    ----------
    tokens, y : np.ndarray
        [rows] of the training rows.
    """

    def __init__(self, tokens: Int[np.ndarray, " rows"], y: Bool[np.ndarray, " rows"]) -> None:
        self._tokens, codes = np.unique(tokens, return_inverse=True)
        y = np.asarray(y, dtype=bool)
        counts = np.bincount(codes * 2 + y, minlength=2 * len(self._tokens)).reshape(-1, 2)
        rates = (counts + y.mean() * np.array([0, 1]) + (1 - y.mean()) * np.array([1, 0])) / np.array(
            [len(y) - y.sum(), y.sum()]
        )
        self._score = np.log(rates[:, 1] / rates[:, 0])

    def __call__(self, tokens: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Return a score for each row."""
        place = np.searchsorted(self._tokens, tokens).clip(0, len(self._tokens) - 1)
        return np.where(self._tokens[place] == tokens, self._score[place], 0.0)
