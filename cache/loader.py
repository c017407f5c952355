"""Batches of activations as tensors: a seeded shuffle for training, and rows in their own order."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from workbench.cache.delivery import Batch, Delivery
from workbench.cache.epoch import Cuts, Epoch
from workbench.cache.errors import StoreError
from workbench.cache.filling import Filler
from workbench.cache.int8 import restore, stored_columns
from workbench.cache.prefetch import Prefetcher
from workbench.cache.rows import RowReader
from workbench.cache.schema import ActivationSpec
from workbench.cache.selection import Selection
from workbench.cache.tensors import to_tensor

if TYPE_CHECKING:
    from torch import Tensor

BUFFER_BYTES = 256 << 20
SEQUENTIAL_BUFFER_BYTES = 32 << 20
ROW_BYTES = 16
"""Of a buffer, for a row's number and its place."""


class Loader:
    """What both kinds of pass have in common; see `Store.shuffled` and `Store.sequential`.

    Threads may share a pass: each batch goes to one of them. Processes may not: each makes its own, of its own rank.

    Attributes
    ----------
    n_rows : int
        Rows of the whole pass, on this rank.
    n_batches : int
        Batches of the whole pass, from its beginning, and the same on every rank.
    rows : int64 [batch rows]
        Row numbers of the batch that was given out last.
    rows_done : int
        Rows given out, those before a resumed pass included.
    """

    def __init__(
        self,
        reader: RowReader,
        selection: Selection,
        activations: Mapping[str, ActivationSpec],
        epoch: Epoch,
        batch_rows: int,
        *,
        rank: int = 0,
        done: int = 0,
        verify: bool,
        past_cache: bool,
    ) -> None:
        self._cuts = Cuts(batch_rows, epoch.rank_rows, rank, done)
        self.n_rows = epoch.n_rows
        self.n_batches = -(-max(epoch.rank_rows) // batch_rows)
        self.rows: NDArray[np.int64] = np.empty(0, np.int64)
        self.rows_done = self._cuts(0)
        self._activations = activations
        self._batch = 0
        self._process = os.getpid()
        self._lock = threading.Lock()
        names = stored_columns(activations, reader.factors)
        filler = Filler(reader, selection, epoch, names, verify=verify, past_cache=past_cache)
        self._batches = Delivery(reader, filler, epoch, self._cuts, names).batches()
        self._ahead: Prefetcher[Batch] | None = None
        self._restores = len(names) > len(activations)
        if self._restores:
            self._batches = _restored(self._batches, list(activations), reader.factors)

    def _next(self) -> dict[str, Tensor]:
        if os.getpid() != self._process:
            raise StoreError(
                "this pass over a store was made in another process: make one in each process, with a rank of its own "
                "(in a worker of torch's DataLoader rank=info.id, n_ranks=info.num_workers); the store itself may go "
                "anywhere"
            )
        with self._lock:
            if self._restores and self._ahead is None:
                self._ahead = Prefetcher(self._batches)
            self.rows, arrays = next(self._ahead or self._batches)
            self._batch += 1
            self.rows_done = self._cuts(self._batch)
        return {name: to_tensor(array, self._activations[name].dtype) for name, array in arrays.items()}

    def close(self) -> None:
        """Stop reading ahead; safe to repeat. Dropping the loader does the same."""
        if self._ahead is not None:
            self._ahead.close()
        self._batches.close()

    def __reduce__(self) -> NoReturn:
        raise StoreError("a pass over a store cannot be sent to another process: send the store, and make it there")


class Shuffled(Loader, Iterator["dict[str, Tensor] | Tensor"]):
    """One epoch in a seeded order, each row once; made by `Store.shuffled`."""

    def __init__(
        self,
        reader: RowReader,
        selection: Selection,
        activations: Mapping[str, ActivationSpec],
        *,
        alone: bool,
        batch_rows: int,
        seed: int,
        epoch: int,
        rank: int,
        n_ranks: int,
        verify: bool,
        buffer_bytes: int,
        mixed: Sequence[str],
        state: Mapping[str, Any] | None,
    ) -> None:
        self._alone = alone
        columns = stored_columns(activations, reader.factors)
        self._state: dict[str, Any] = {
            "seed": seed,
            "epoch": epoch,
            "chunks_per_window": chunks_per_window(reader, stored_columns(mixed, reader.factors), buffer_bytes),
            "selection": selection.key,
            "n_ranks": n_ranks,
        }
        done = 0
        if state is not None:
            _check_state(state, self._state)
            self._state = {name: state[name] for name in self._state}
            done = state["rows_done"]
        order = Epoch(
            selection.counts,
            self._state["chunks_per_window"],
            (self._state["seed"], self._state["epoch"]),
            rank,
            n_ranks,
        )
        if done > max(order.rank_rows):
            raise StoreError(f"the loader's state has rows_done {done}; a pass has {max(order.rank_rows)} rows")
        past_cache = self._state["epoch"] == 0 or not _fits_memory(reader, columns)
        super().__init__(
            reader,
            selection,
            activations,
            order,
            batch_rows,
            rank=rank,
            done=done,
            verify=verify,
            past_cache=past_cache,
        )

    def __next__(self) -> dict[str, Tensor] | Tensor:
        batch = self._next()
        return next(iter(batch.values())) if self._alone else batch

    def state(self) -> dict[str, Any]:
        """Return what `Store.shuffled` needs to go on after the last batch given out; a few JSON values.

        Of several ranks that have had equally many batches each, every one has the same state.
        """
        return {**self._state, "rows_done": self._cuts.done(self._batch)}


class Sequential(Loader, Iterator["tuple[slice | NDArray[np.int64], dict[str, Tensor] | Tensor]"]):
    """All wanted rows in their own order; made by `Store.sequential`."""

    def __init__(
        self,
        reader: RowReader,
        selection: Selection,
        activations: Mapping[str, ActivationSpec],
        *,
        alone: bool,
        batch_rows: int,
        verify: bool,
    ) -> None:
        self._alone = alone
        self._every = selection.every
        columns = stored_columns(activations, reader.factors)
        order = Epoch(selection.counts, chunks_per_window(reader, columns, SEQUENTIAL_BUFFER_BYTES), None)
        super().__init__(reader, selection, activations, order, batch_rows, verify=verify, past_cache=False)

    def __next__(self) -> tuple[slice | NDArray[np.int64], dict[str, Tensor] | Tensor]:
        batch = self._next()
        rows = slice(int(self.rows[0]), int(self.rows[-1]) + 1) if self._every else self.rows
        return rows, next(iter(batch.values())) if self._alone else batch


def _check_state(state: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a state that is of another pass than ours, or that no pass has given."""
    for name in ("seed", "selection", "n_ranks"):
        if state.get(name) != ours[name]:
            raise StoreError(f"the loader's state is of another pass: {name} {state.get(name)!r}, now {ours[name]!r}")
    for name, least in {"epoch": 0, "chunks_per_window": 1, "rows_done": 0}.items():
        value = state.get(name)
        if not isinstance(value, int) or value < least:
            raise StoreError(f"the loader's state has {name} {value!r}: must be a whole number, at least {least}")


def _restored(
    batches: Generator[Batch, None, None], names: list[str], factors: Mapping[str, NDArray[np.float32]]
) -> Generator[Batch, None, None]:
    """Bring int8 back to float32, on the thread that reads ahead."""
    with closing(batches):
        for rows, stored in batches:
            yield rows, restore(stored, names, factors)


def chunks_per_window(reader: RowReader, columns: Sequence[str], buffer_bytes: int) -> int:
    """Return how many chunks fit into half a buffer: one half is given out while the other is filled."""
    row_bytes = ROW_BYTES + sum(reader.columns[name].row_bytes for name in columns)
    return max(1, buffer_bytes // 2 // (row_bytes * min(reader.chunk_rows, max(1, reader.n_rows))))


def _fits_memory(reader: RowReader, columns: Sequence[str]) -> bool:
    """Return whether the page cache can be expected to keep what one epoch reads until the next."""
    n_bytes = reader.n_rows * sum(reader.columns[name].row_bytes for name in columns)
    try:
        return n_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return True  # no Linux, where alone the cache can be passed
