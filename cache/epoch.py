"""The order of one pass over the rows of a store, and where its batches start."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.cache.errors import StoreError


class Epoch:
    """Which chunks are read together, and in which order their rows come.

    Chunks that hold a wanted row are dealt out to the ranks and taken in windows; the rows of a window are mixed before
    they are given out. So a row can only come beside rows of chunks in the same window, and which chunks these are is
    drawn anew each epoch.

    Parameters
    ----------
    counts : int32 [chunks]
        Wanted rows of each chunk.
    chunks_per_window : int
        Chunks mixed with each other, >= 1.
    seed : tuple of int, optional
        Decides the order; None: rows in their own order.
    rank, n_ranks : int
        Every rank has other chunks, and all ranks together have all.

    Attributes
    ----------
    rank_rows : list of int
        Rows of each rank.
    n_rows : int
        Rows of this rank.
    chunks_per_window : int
        As given.
    ends : int64 [windows]
        Rows of this rank up to the end of each window.
    """

    def __init__(
        self,
        counts: NDArray[np.int32],
        chunks_per_window: int,
        seed: tuple[int, ...] | None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self._counts = counts
        self._seed = seed
        self._rank, self._n_ranks = rank, n_ranks
        chunks = np.flatnonzero(counts).astype(np.int32)
        if seed is not None:
            np.random.default_rng((*seed, 0)).shuffle(chunks)  # the order that `permutation` would give a copy
        self.rank_rows = [int(counts[chunks[number::n_ranks]].sum(dtype=np.int64)) for number in range(n_ranks)]
        self._chunks = chunks[rank::n_ranks]
        self.chunks_per_window = chunks_per_window
        self.n_rows = self.rank_rows[rank]
        starts = np.arange(0, len(self._chunks), chunks_per_window)
        in_window = np.add.reduceat(counts[self._chunks], starts, dtype=np.int64) if len(starts) else starts
        self.ends = np.cumsum(in_window)

    def chunks(self, window: int) -> NDArray[np.int32]:
        """Return the chunks of a window in the order of the disk."""
        start = window * self.chunks_per_window
        return np.sort(self._chunks[start : start + self.chunks_per_window])

    def places(self, window: int) -> NDArray[np.int64] | None:
        """Return the place in the order of delivery of each wanted row of a window's chunks, from 0; None: as it is."""
        if self._seed is None:
            return None
        n_rows = int(self.ends[window]) - (int(self.ends[window - 1]) if window else 0)
        number = 1 + window * self._n_ranks + self._rank
        return np.random.default_rng((*self._seed, number)).permutation(n_rows)


class Cuts:
    """Where the batches of a pass start, counted in its rows.

    Of one rank: every `batch_rows` rows, and a shorter last one. Of several, every rank has as many batches as the one
    with most rows, so that none waits for a batch that another does not have. A rank with fewer rows has smaller ones,
    and the last two share what is left, lest one is empty.

    Parameters
    ----------
    batch_rows : int
        Rows of a batch at most, >= 1.
    rank_rows : sequence of int
        Rows of each rank.
    rank : int
        Which this is.
    done : int
        Rows that the rank with most rows has had, in a pass that is taken up.

    Attributes
    ----------
    batch_rows : int
        As given.
    n_batches : int
        Batches that are left.

    Raises
    ------
    StoreError
        If some rank would have a batch without rows.
    """

    def __init__(self, batch_rows: int, rank_rows: Sequence[int], rank: int, done: int) -> None:
        if batch_rows < 1:
            raise StoreError(f"batch_rows={batch_rows}: must be at least 1")
        self.batch_rows = batch_rows
        self._mine, self._most = rank_rows[rank], max(rank_rows)
        self._alone = len(rank_rows) == 1
        self._done = done
        self.n_batches = -(-(self._most - done) // batch_rows)
        fewest, steps = min(rank_rows), np.diff([self.done(max(0, self.n_batches - back)) for back in (3, 2, 1, 0)])
        if any(step and step * fewest < self._most for step in steps.tolist()):
            raise StoreError(
                f"batch_rows={batch_rows} over {len(rank_rows)} ranks: one has {fewest} rows and another {self._most}, "
                "as whole chunks are dealt out, so that some of its batches would be empty: take larger batches or "
                "fewer ranks"
            )

    def done(self, batch: int) -> int:
        """Return how many rows the rank with most rows has had before a batch."""
        done = self._done + batch * self.batch_rows
        if not self._alone and 0 < batch == self.n_batches - 1:
            before = done - self.batch_rows
            return before + (self._most - before + 1) // 2
        return min(done, self._most)

    def __call__(self, batch: int) -> int:
        """Return the row that a batch starts with; for `n_batches`, the end of the last."""
        return self.done(batch) * self._mine // max(1, self._most)

    def before(self, row: int) -> int:
        """Return how many batches end at or before a row."""
        return bisect_right(range(self.n_batches + 1), row, key=self) - 1
