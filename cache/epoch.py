"""One pass over the rows of a store: which chunks are read together, and in which order their rows come."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.rows import N_THREADS, RowReader

Batch = tuple[NDArray[np.int64], dict[str, NDArray[Any]]]


class Epoch:
    """The order of one pass.

    Chunks that hold a wanted row are taken in windows; the rows of a window are mixed before they are given out. So a
    row can only come beside rows of chunks in the same window, and which chunks these are is drawn anew each epoch.

    Parameters
    ----------
    reader : RowReader
        The rows.
    mask : bool [rows]
        Which rows are wanted.
    chunks_per_window : int
        Chunks held in memory at a time, >= 1.
    seed : tuple of int, optional
        Decides the order; None: rows in their own order.
    """

    def __init__(
        self, reader: RowReader, mask: NDArray[np.bool_], chunks_per_window: int, seed: tuple[int, ...] | None
    ) -> None:
        self._reader = reader
        self._mask = mask
        self._seed = seed
        counts = np.add.reduceat(mask, reader.chunk_first, dtype=np.int64) if len(mask) else np.empty(0, np.int64)
        self._chunks = np.flatnonzero(counts)
        if seed is not None:
            self._chunks = np.random.default_rng((*seed, 0)).permutation(self._chunks)
        self.chunks_per_window = chunks_per_window
        self._starts = np.arange(0, len(self._chunks), chunks_per_window)
        in_window = np.add.reduceat(counts[self._chunks], self._starts) if len(self._chunks) else counts[:0]
        self._ends = np.cumsum(in_window)
        self.n_rows = int(counts.sum())

    def window(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return a window's chunks in the order of the disk, row numbers in order of delivery, and places of these.

        A place counts rows from the start of a buffer into which the chunks were read one after another.
        """
        start = self._starts[number]
        chunks = np.sort(self._chunks[start : start + self.chunks_per_window])
        numbers, places, n_before = [], [], 0
        for chunk in chunks:
            first, n_rows = int(self._reader.chunk_first[chunk]), int(self._reader.chunk_rows[chunk])
            wanted = np.flatnonzero(self._mask[first : first + n_rows])
            numbers.append(first + wanted)
            places.append(n_before + wanted)
            n_before += n_rows
        rows, at = np.concatenate(numbers), np.concatenate(places)
        if self._seed is not None:
            order = np.random.default_rng((*self._seed, 1 + number)).permutation(len(rows))
            rows, at = rows[order], at[order]
        return chunks, rows, at

    def batches(
        self, names: Sequence[str], batch_rows: int, *, skip: int = 0, verify: bool = True
    ) -> Generator[Batch, None, None]:
        """Yield (row numbers, {name: array [rows, ...] of the stored type}); while one window is given out, the next
        is read.

        Parameters
        ----------
        names : sequence of str
            Hook points.
        batch_rows : int
            Rows of each batch but a shorter last one, >= 1.
        skip : int
            Rows of the pass to leave out at its start; windows before are not read.
        verify : bool
            Hold chunks against their checksums.
        """
        first = int(np.searchsorted(self._ends, skip, side="right"))
        n_left = self.n_rows - skip
        if n_left <= 0:
            return
        skip -= int(self._ends[first - 1]) if first else 0
        pool = ThreadPoolExecutor(N_THREADS, "store-read")
        try:
            buffers = [self._buffer(names), self._buffer(names) if first + 1 < len(self._starts) else {}]
            reading = self._start(pool, first, buffers[0], verify)
            batch: Batch | None = None
            filled = 0
            for number in range(first, len(self._starts)):
                chunks_read, rows, places = reading
                for future in chunks_read:
                    future.result()
                buffer = buffers[(number - first) % 2]
                if number + 1 < len(self._starts):
                    reading = self._start(pool, number + 1, buffers[(number + 1 - first) % 2], verify)
                at, skip = skip, 0
                while at < len(rows):
                    if batch is None:
                        batch, filled = self._empty(names, min(batch_rows, n_left)), 0
                    n = min(len(batch[0]) - filled, len(rows) - at)
                    batch[0][filled : filled + n] = rows[at : at + n]
                    for name, values in batch[1].items():
                        # mode="clip" writes straight into `out`; places are in range
                        np.take(buffer[name], places[at : at + n], 0, out=values[filled : filled + n], mode="clip")
                    at, filled, n_left = at + n, filled + n, n_left - n
                    if filled == len(batch[0]):
                        yield batch
                        batch = None
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(
        self, pool: ThreadPoolExecutor, number: int, buffer: dict[str, NDArray[Any]], verify: bool
    ) -> tuple[list[Future[None]], NDArray[np.int64], NDArray[np.int64]]:
        chunks, rows, places = self.window(number)
        ends = np.cumsum(self._reader.chunk_rows[chunks])
        futures = [
            pool.submit(self._reader.read_chunk, name, int(chunk), values[end - n : end], verify=verify)
            for chunk, end, n in zip(chunks, ends.tolist(), self._reader.chunk_rows[chunks].tolist(), strict=True)
            for name, values in buffer.items()
        ]
        return futures, rows, places

    def _buffer(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        n_chunks = min(self.chunks_per_window, len(self._chunks))
        return self._empty(names, n_chunks * int(self._reader.chunk_rows.max()))[1]

    def _empty(self, names: Sequence[str], n_rows: int) -> Batch:
        columns = {name: self._reader.columns[name] for name in names}
        arrays = {name: np.empty((n_rows, *column.shape), column.dtype) for name, column in columns.items()}
        return np.empty(n_rows, np.int64), arrays
