"""Batches of activations as tensors: a seeded shuffle for training, and rows in their own order."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache.epoch import Batch, Epoch
from workbench.cache.errors import StoreError
from workbench.cache.files import raw
from workbench.cache.int8 import restore, stored_columns
from workbench.cache.prefetch import Prefetcher
from workbench.cache.rows import RowReader
from workbench.cache.schema import ActivationSpec
from workbench.cache.tensors import to_tensor

if TYPE_CHECKING:
    from torch import Tensor

BUFFER_BYTES = 256 << 20
SEQUENTIAL_BUFFER_BYTES = 32 << 20


class Loader:
    """What both kinds of pass have in common; see `Store.shuffled` and `Store.sequential`.

    Attributes
    ----------
    n_rows : int
        Rows of the whole pass.
    n_batches : int
        Batches of the whole pass, from its beginning.
    rows : int64 [batch rows]
        Row numbers of the batch that was given out last.
    rows_done : int
        Rows given out, those before a resumed pass included.
    """

    def __init__(
        self,
        activations: Mapping[str, ActivationSpec],
        batch_rows: int,
        epoch: Epoch,
        rows_done: int,
        verify: bool,
        factors: Mapping[str, NDArray[np.float32]],
    ) -> None:
        if batch_rows < 1:
            raise StoreError(f"batch_rows={batch_rows}: must be at least 1")
        self.n_rows = epoch.n_rows
        self.n_batches = -(-epoch.n_rows // batch_rows)
        self.rows: NDArray[np.int64] = np.empty(0, np.int64)
        self.rows_done = rows_done
        self._activations = activations
        columns = stored_columns(activations, factors)
        batches = epoch.batches(columns, batch_rows, skip=rows_done, verify=verify)
        self._batches = batches if len(columns) == len(activations) else _restored(batches, list(activations), factors)
        self._ahead: Prefetcher[Batch] | None = None

    def _next(self) -> dict[str, Tensor]:
        if self._ahead is None:
            self._ahead = Prefetcher(self._batches)
        self.rows, arrays = next(self._ahead)
        self.rows_done += len(self.rows)
        return {name: to_tensor(array, self._activations[name].dtype) for name, array in arrays.items()}

    def close(self) -> None:
        """Stop reading ahead; safe to repeat. Dropping the loader does the same."""
        if self._ahead is not None:
            self._ahead.close()
        self._batches.close()


class Shuffled(Loader, Iterator["dict[str, Tensor] | Tensor"]):
    """One epoch in a seeded order, each row once; made by `Store.shuffled`."""

    def __init__(
        self,
        reader: RowReader,
        activations: Mapping[str, ActivationSpec],
        mask: NDArray[np.bool_],
        *,
        alone: bool,
        batch_rows: int,
        seed: int,
        epoch: int,
        verify: bool,
        buffer_bytes: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._alone = alone
        self._state: dict[str, Any] = {
            "seed": seed,
            "epoch": epoch,
            "chunks_per_window": chunks_per_window(reader, stored_columns(activations, reader.factors), buffer_bytes),
            "selection": xxhash.xxh3_64_hexdigest(raw(np.packbits(mask))) + f":{len(mask)}",
        }
        rows_done = 0
        if state is not None:
            for name in ("seed", "selection"):
                if state.get(name) != self._state[name]:
                    raise StoreError(
                        f"the loader's state is of another pass: {name} {state.get(name)!r}, now {self._state[name]!r}"
                    )
            self._state = {name: state[name] for name in self._state}
            rows_done = int(state["rows_done"])
        order = Epoch(reader, mask, self._state["chunks_per_window"], (self._state["seed"], self._state["epoch"]))
        super().__init__(activations, batch_rows, order, rows_done, verify, reader.factors)

    def __next__(self) -> dict[str, Tensor] | Tensor:
        batch = self._next()
        return next(iter(batch.values())) if self._alone else batch

    def state(self) -> dict[str, Any]:
        """Return what `Store.shuffled` needs to go on after the last batch given out; a few JSON values."""
        return {**self._state, "rows_done": self.rows_done}


class Sequential(Loader, Iterator["tuple[slice | NDArray[np.int64], dict[str, Tensor] | Tensor]"]):
    """All wanted rows in their own order; made by `Store.sequential`."""

    def __init__(
        self,
        reader: RowReader,
        activations: Mapping[str, ActivationSpec],
        mask: NDArray[np.bool_],
        *,
        alone: bool,
        batch_rows: int,
        verify: bool,
    ) -> None:
        self._alone = alone
        self._every = bool(mask.all())
        columns = stored_columns(activations, reader.factors)
        order = Epoch(reader, mask, chunks_per_window(reader, columns, SEQUENTIAL_BUFFER_BYTES), None)
        super().__init__(activations, batch_rows, order, 0, verify, reader.factors)

    def __next__(self) -> tuple[slice | NDArray[np.int64], dict[str, Tensor] | Tensor]:
        batch = self._next()
        rows = slice(int(self.rows[0]), int(self.rows[-1]) + 1) if self._every else self.rows
        return rows, next(iter(batch.values())) if self._alone else batch


def _restored(
    batches: Generator[Batch, None, None], names: list[str], factors: Mapping[str, NDArray[np.float32]]
) -> Generator[Batch, None, None]:
    """Bring int8 back to float32, on the thread that reads ahead."""
    with closing(batches):
        for rows, stored in batches:
            yield rows, restore(stored, names, factors)


def chunks_per_window(reader: RowReader, columns: Sequence[str], buffer_bytes: int) -> int:
    """Return how many chunks fit into half a buffer: one half is given out while the other is filled."""
    row_bytes = sum(reader.columns[name].row_bytes for name in columns)
    chunk_rows = int(reader.chunk_rows.max(initial=1))
    return max(1, buffer_bytes // 2 // (row_bytes * chunk_rows))
