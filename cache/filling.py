"""Threads that read chunks, hold them against their checksums, and put each row in its place in a block."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from workbench.cache.blocks import Block
from workbench.cache.epoch import Epoch
from workbench.cache.handles import OpenFiles
from workbench.cache.memory import Memory
from workbench.cache.rows import N_THREADS, RowReader
from workbench.cache.scatter import records, scatter
from workbench.cache.selection import Selection


@dataclass(frozen=True)
class Layout:
    """Where the rows of some windows go in a block.

    Attributes
    ----------
    chunks : list of int
        In the order in which they are read.
    starts : list of int
        Wanted rows before each chunk.
    places : int64 [rows], optional
        Of each wanted row, in the order of reading; None: one after another.
    first : int
        Place of the first row, then.
    """

    chunks: list[int]
    starts: list[int]
    places: NDArray[np.int64] | None
    first: int


@dataclass(frozen=True)
class Fill:
    """A block that threads are filling; they share `turns`, the number of the chunk that is next."""

    layout: Layout
    block: Block
    turns: Iterator[int] = field(default_factory=count)
    threads: list[Future[None]] = field(default_factory=list)

    def wait(self) -> Block:
        """Return the block once every row is there; an error of a thread is raised here."""
        for thread in self.threads:
            thread.result()
        return self.block


class Filler:
    """Fills blocks with rows on threads; close it to end them.

    A byte is copied twice on its way: by the kernel into a piece of memory small enough to stay in the processor's
    cache, where it is checked, and from there to its place.

    Parameters
    ----------
    reader : RowReader
        The rows.
    selection : Selection
        Which of them.
    epoch : Epoch
        In which order.
    names : sequence of str
        Columns.
    verify : bool
        Hold chunks against their checksums.
    past_cache : bool
        Read from the disk past the page cache what is not in it.
    """

    def __init__(
        self,
        reader: RowReader,
        selection: Selection,
        epoch: Epoch,
        names: Sequence[str],
        *,
        verify: bool,
        past_cache: bool,
    ) -> None:
        self._reader = reader
        self._selection = selection
        self._epoch = epoch
        self._row_bytes = {name: reader.columns[name].row_bytes for name in names}
        self._verify = verify
        self._files = OpenFiles(past_cache=past_cache)
        self._pool = ThreadPoolExecutor(N_THREADS, "store-read")
        self._stop = threading.Event()
        self._local = threading.local()

    def lay_out(self, windows: range, first: int) -> Future[Layout]:
        """Work out, on a thread, where the rows of some windows go in a block from place `first` on."""
        return self._pool.submit(self._lay_out, windows, first)

    def start(self, layout: Layout, block: Block) -> Fill:
        """Begin to fill a block."""
        fill = Fill(layout, block)
        fill.threads.extend(self._pool.submit(self._fill, fill) for _ in range(N_THREADS))
        return fill

    def close(self) -> None:
        """End the threads, after the chunks that they have at hand."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def _lay_out(self, windows: range, first: int) -> Layout:
        chunks: list[int] = []
        places: list[NDArray[np.int64]] = []
        n_before = first
        for window in windows:
            chunks += self._epoch.chunks(window).tolist()
            found = self._epoch.places(window)
            if found is not None:
                found += n_before
                n_before += len(found)
                places.append(found)
        ends = np.cumsum(self._selection.counts[chunks])
        return Layout(chunks, [0, *ends.tolist()], np.concatenate(places) if places else None, first)

    def _fill(self, fill: Fill) -> None:
        try:
            for turn in fill.turns:
                if turn >= len(fill.layout.chunks) or self._stop.is_set():
                    return
                self._place(fill, turn)
        except BaseException:
            self._stop.set()
            raise

    def _place(self, fill: Fill, turn: int) -> None:
        """Read a chunk of every column into its places."""
        layout, block, chunk = fill.layout, fill.block, fill.layout.chunks[turn]
        start, end = layout.starts[turn], layout.starts[turn + 1]
        first, last = self._reader.chunk_bounds(chunk)
        wanted = self._selection.places(chunk, verify=self._verify, files=self._files)
        if layout.places is None and wanted is None:
            self._read_straight(block, layout.first + start, chunk, (first, last))
            return
        places = (
            np.arange(layout.first + start, layout.first + end) if layout.places is None else layout.places[start:end]
        )
        if wanted is not None:
            all_places = np.full(last - first, block.n_rows)  # what nobody wants goes behind the last row
            all_places[wanted] = places
            places = all_places
        block.rows[places] = np.arange(first, last)
        for name, row_bytes in self._row_bytes.items():
            scratch = self._scratch((last - first) * row_bytes)
            self._reader.read_chunk(name, chunk, scratch, verify=self._verify, files=self._files)
            scatter(block.records(name), places, records(scratch, row_bytes, last - first))

    def _read_straight(self, block: Block, place: int, chunk: int, rows: tuple[int, int]) -> None:
        """Read a chunk whose rows stay together."""
        n_rows = rows[1] - rows[0]
        block.rows[place : place + n_rows] = np.arange(*rows)
        for name in self._row_bytes:
            buffer = block.bytes(name, place, n_rows)
            self._reader.read_chunk(name, chunk, buffer, verify=self._verify, files=self._files)

    def _scratch(self, n_bytes: int) -> memoryview:
        """Return memory of this thread."""
        scratch: memoryview | None = getattr(self._local, "scratch", None)
        if scratch is None or len(scratch) < n_bytes:
            scratch = self._local.scratch = Memory(n_bytes).bytes(0, n_bytes)
        return scratch[:n_bytes]
