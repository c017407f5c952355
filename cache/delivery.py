"""Giving out the batches of a pass, while the next ones are read."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.blocks import Block
from workbench.cache.epoch import Cuts, Epoch
from workbench.cache.filling import Fill, Filler, Layout
from workbench.cache.rows import RowReader

Batch = tuple[NDArray[np.int64], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Group:
    """Windows that are read into one block: as many as it takes to have a batch, which is mostly one.

    Attributes
    ----------
    windows : range
        Their numbers.
    base : int
        Row of the pass that is the block's first: what the block before left over, too few rows for a batch, comes
        first.
    first, end : int
        Rows of the pass that the windows hold.
    batches : range
        Those that are given out from this block.
    """

    windows: range
    base: int
    first: int
    end: int
    batches: range


def groups(epoch: Epoch, cuts: Cuts) -> Iterator[Group]:
    """Yield the groups of a pass in their order; windows before its first batch are left out."""
    ends = epoch.ends
    window = int(np.searchsorted(ends, cuts(0), side="right"))
    base = first = int(ends[window - 1]) if window else 0
    batch = 0
    while batch < cuts.n_batches:
        start = window
        while (until := cuts.before(int(ends[window]))) == batch:
            window += 1
        window += 1
        end = int(ends[window - 1])
        yield Group(range(start, window), base, first, end, range(batch, until))
        batch, base, first = until, cuts(until), end


class Delivery:
    """The blocks of a pass, and who fills them.

    Parameters
    ----------
    reader : RowReader
        The store's rows; it keeps the blocks for the next pass, so that the system need not clear memory for each.
    filler : Filler
        Fills the blocks.
    epoch : Epoch
        The order.
    cuts : Cuts
        Where batches start.
    names : sequence of str
        Columns.
    """

    def __init__(self, reader: RowReader, filler: Filler, epoch: Epoch, cuts: Cuts, names: Sequence[str]) -> None:
        self._reader = reader
        self._filler = filler
        self._cuts = cuts
        self._columns = [reader.columns[name] for name in names]
        self._groups = groups(epoch, cuts)
        self._block_rows = min(epoch.chunks_per_window * reader.chunk_rows + cuts.batch_rows - 1, epoch.n_rows)
        self._blocks: list[Block] = []
        self._planned: tuple[Group, Future[Layout]] | None = None
        self._current: Block | None = None
        self._coming: tuple[Group, Fill] | None = None

    def batches(self) -> Generator[Batch, None, None]:
        """Yield (row numbers, {name: array [rows, ...] of the stored type}).

        An array's memory is used again as soon as nobody holds it or anything made of it, and no sooner.
        """
        owner = os.getpid()
        spare, self._reader.spare = self._reader.spare, []
        self._blocks = [block for block in spare if block.fits(self._columns, self._block_rows)]
        try:
            self._plan()
            self._read_ahead(wait=True)
            left = 0
            while self._coming is not None:
                group, fill = self._coming
                block = fill.wait()
                if group.first > group.base:
                    assert self._current is not None
                    block.take(self._current, left, group.first - group.base)
                self._current, self._coming = block, None
                for batch in group.batches:
                    self._read_ahead()
                    first, end = self._cuts(batch) - group.base, self._cuts(batch + 1) - group.base
                    yield block.rows[first:end].copy(), block.give(first, end)
                left = end
                self._read_ahead(wait=True)
        finally:
            if os.getpid() == owner:  # a child made by a fork has none of the threads
                self._filler.close()
                self._reader.spare = self._blocks

    def _plan(self) -> None:
        """Work out the next group on a thread."""
        group = next(self._groups, None)
        self._planned = None
        if group is not None:
            self._planned = group, self._filler.lay_out(group.windows, group.first - group.base)

    def _read_ahead(self, wait: bool = False) -> None:
        """Begin to fill a block with the group after the current one, unless that is begun or no block is free.

        Parameters
        ----------
        wait : bool
            Make another block if none is free: somebody keeps batches of all.
        """
        if self._coming is not None or self._planned is None:
            return
        group, layout = self._planned
        n_rows = max(self._block_rows, group.end - group.base)
        free = [b for b in self._blocks if b is not self._current and b.n_rows >= n_rows and not b.held]
        if not free:
            kept = [b for b in self._blocks if b is self._current]
            if len(self._blocks) >= 2 and not wait:
                return
            free = [Block(self._columns, n_rows)]
            self._blocks = [*(self._blocks if len(self._blocks) < 2 else kept), *free]
        found = layout.result()
        self._plan()
        self._coming = group, self._filler.start(found, free[0])
