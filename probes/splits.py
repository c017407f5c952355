"""Which rows train a probe, which choose its settings, which score it: whole groups, never single rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from workbench.probes.errors import ProbeError

PARTS = ("train", "select", "test")


@dataclass(frozen=True)
class Split:
    """Three disjoint parts that together hold everything.

    Attributes
    ----------
    part : np.ndarray
        One entry per row (or per group): 0 train, 1 select, 2 test.
    """

    part: Int[np.ndarray, " rows"]

    @property
    def train(self) -> Bool[np.ndarray, " rows"]:
        """Fits everything: means, selectors, probes."""
        return np.asarray(self.part == 0)

    @property
    def select(self) -> Bool[np.ndarray, " rows"]:
        """Chooses settings: C, k, hook point, threshold."""
        return np.asarray(self.part == 1)

    @property
    def test(self) -> Bool[np.ndarray, " rows"]:
        """Is scored once."""
        return np.asarray(self.part == 2)


def group_split(
    groups: Shaped[np.ndarray, " rows"] | Sequence[Any],
    seed: int,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    labels: Shaped[np.ndarray, " rows"] | None = None,
) -> Split:
    """Divide whole groups among train, select and test.

    The order of groups is that of a hash of seed and group name, so it depends neither on the order of rows nor on
    the machine. If `labels` are given and constant inside every group, each label's groups are divided by themselves.

    Parameters
    ----------
    groups : array of int or str, [rows]
        What may not be divided: the document of each row.
    seed : int
        Another seed, another division.
    fractions : three floats
        Shares of the *groups* that go to train, select and test; positive, sum 1.
    labels : array, [rows], optional
        Stratify by these where they are constant inside groups; ignored otherwise.

    Returns
    -------
    Split
        With one entry per row.

    Raises
    ------
    ProbeError
        On fewer than three groups, or fractions that are no division.
    """
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise ProbeError(f"fractions={tuple(fractions)}: must be three positive numbers that sum to 1")
    names, rows = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 3:
        raise ProbeError(f"{len(names)} groups: at least 3 are needed, one each for train, select and test")
    order = np.argsort([_hash(seed, name) for name in names.tolist()], kind="stable")
    part = np.empty(len(names), dtype=np.int64)
    for stratum in _strata(rows, len(names), labels):
        members = order[stratum[order]]
        part[members] = np.repeat(np.arange(3), _sizes(len(members), shares))
    return Split(part[rows])


def _hash(seed: int, name: object) -> int:
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")


def _strata(
    rows: Int[np.ndarray, " rows"], n_groups: int, labels: Shaped[np.ndarray, " rows"] | None
) -> list[Bool[np.ndarray, " groups"]]:
    everything = [np.ones(n_groups, dtype=bool)]
    if labels is None:
        return everything
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    low = np.full(n_groups, len(classes))
    high = np.full(n_groups, -1)
    np.minimum.at(low, rows, codes)
    np.maximum.at(high, rows, codes)
    if (low != high).any():
        return everything
    strata = [low == code for code in range(len(classes))]
    # a class too small to reach all three parts would leave the division of the others lopsided
    return strata if all(stratum.sum() >= 3 for stratum in strata) else everything


def _sizes(n: int, shares: np.ndarray) -> Int[np.ndarray, " 3"]:
    """Round shares of n to whole numbers by largest remainder; every part gets one where n allows it."""
    sizes = np.floor(shares * n + 1e-9).astype(np.int64)
    sizes[np.argsort(sizes - shares * n, kind="stable")[: n - sizes.sum()]] += 1
    while n >= 3 and (sizes == 0).any():
        sizes[np.argmax(sizes)] -= 1
        sizes[np.argmin(sizes)] += 1
    return sizes


def merge_identical(contents: Sequence[bytes]) -> Int[np.ndarray, " groups"]:
    """Give groups with the same content the same number, so that no copy of a training text is tested on.

    Parameters
    ----------
    contents : sequence of bytes
        What each group holds (its token ids, its text), in order.

    Returns
    -------
    np.ndarray
        [groups] for each group, the index of the first one with that content.
    """
    first: dict[bytes, int] = {}
    digests = (blake2b(content, digest_size=16).digest() for content in contents)
    return np.array([first.setdefault(digest, index) for index, digest in enumerate(digests)], dtype=np.int64)


def cap_rows(
    groups: Shaped[np.ndarray, " rows"], labels: Shaped[np.ndarray, " rows"], max_rows: int, seed: int
) -> Int[np.ndarray, " kept"]:
    """Choose at most `max_rows` rows so that no group and no class drowns the others.

    Every cell (group, class) keeps at most c rows, c as large as `max_rows` allows; which ones, the seed decides.

    Parameters
    ----------
    groups, labels : arrays, [rows]
        Of each row.
    max_rows : int
        At least the number of cells, so that each keeps one.
    seed : int
        Of the choice inside cells.

    Returns
    -------
    np.ndarray
        Positions of the rows kept, ascending; all of them where there are no more than `max_rows`.
    """
    if max_rows < 1:
        raise ProbeError(f"max_rows={max_rows}: must be at least 1")
    n = len(groups)
    if n <= max_rows:
        return np.arange(n)
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    classes, labelled = np.unique(np.asarray(labels), return_inverse=True)
    cells = codes * len(classes) + labelled
    order = np.argsort(np.random.default_rng(seed).permutation(n), kind="stable")
    order = order[np.argsort(cells[order], kind="stable")]
    sizes = np.bincount(cells)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.arange(n) - starts[cells[order]]
    steps = np.arange(1, sizes.max() + 1)
    kept = np.searchsorted(np.sort(-sizes), -steps, side="right")  # cells with at least `step` rows
    cap = max(1, int(np.searchsorted(np.cumsum(kept), max_rows, side="right")))
    return np.sort(order[rank < cap])
