"""Ways of reading all rows, or the first few, and the files that they read: the same rows in each form."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
from numpy.typing import NDArray
from store_data import CONTEXT, HOOK_POINT, DataSet

from workbench.cache import Store, StoreWriter, open_store
from workbench.cache.scatter import scatter_by_numpy

BATCH_ROWS, CHUNK_ROWS = 4096, 512
FEW_ROWS = 5 * BATCH_ROWS
"""Read of those that go row by row."""
SAELENS_ROWS, SAELENS_PROMPTS, SAELENS_BUFFER = 160_000, 32, 20
"""Read by SAELens's reader; the sequences that it takes at once, and keeps to mix, by default."""

Rows = NDArray[np.float16]
Way = Callable[[], Iterator[Rows]]


@dataclass(frozen=True)
class Files:
    """The same rows in every form.

    Attributes
    ----------
    data : DataSet
        The rows.
    """

    data: DataSet

    @property
    def plain(self) -> Path:
        """Nothing but the rows."""
        return self.data.folder / "rows.bin"

    @property
    def chunked(self) -> Path:
        """HDF5, in chunks of `CHUNK_ROWS` rows."""
        return self.data.folder / "chunked.h5"

    @property
    def contiguous(self) -> Path:
        """HDF5, in one piece."""
        return self.data.folder / "contiguous.h5"

    @property
    def acts(self) -> Path:
        """Our store."""
        return self.data.folder / "acts"

    @property
    def saelens(self) -> Path:
        """The first rows, as SAELens keeps them."""
        return self.data.folder / "saelens"

    @property
    def mixed_rows(self) -> int:
        """How many of them its buffer gives before it begins anew."""
        return max(0, self.saelens_rows - SAELENS_BUFFER * CONTEXT) // BATCH_ROWS * BATCH_ROWS

    @property
    def saelens_rows(self) -> int:
        """How many: whole batches of its reader."""
        step = min(SAELENS_PROMPTS, self.data.n_rows // CONTEXT) * CONTEXT
        return min(self.data.n_rows, SAELENS_ROWS) // step * step


@cache
def write(data: DataSet) -> Files:
    """Write the rows in every form, once."""
    files = Files(data)
    data.values.tofile(files.plain)
    for path, chunks in ((files.chunked, (CHUNK_ROWS, data.width)), (files.contiguous, None)):
        with h5py.File(path, "w") as file:
            file.create_dataset("rows", data=data.values, chunks=chunks)
    write_store(data, files.acts)
    os.sync()
    return files


def write_store(data: DataSet, folder: Path) -> Store:
    """Write the rows as a store."""
    with StoreWriter(folder, {HOOK_POINT: data.spec}, data.plan(), {}) as writer:
        for first in range(0, data.n_rows, BATCH_ROWS):
            writer.append({HOOK_POINT: data.values[first : first + BATCH_ROWS]})
    return open_store(folder)


def write_saelens(files: Files) -> None:
    """Export the first rows to SAELens's form."""
    import workbench as wb

    few = DataSet(files.data.folder / "few", files.saelens_rows, files.data.width)
    few.__dict__["values"] = files.data.values[: few.n_rows]  # the same bytes, not made anew
    write_store(few, few.folder)
    wb.export_store(few.folder, to="saelens", out=files.saelens)


def into_one_buffer(files: Files) -> Iterator[Rows]:
    """Read the plain file in order into memory that stays in the processor's cache: nothing can be faster."""
    buffer = np.empty((BATCH_ROWS, files.data.width), np.float16)
    with files.plain.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            yield buffer[: n // files.data.row_bytes]


def into_all(files: Files, rows: Rows) -> Iterator[Rows]:
    """Read the plain file in order, each row to a place of its own in memory."""
    with files.plain.open("rb", buffering=0) as file:
        for first in range(0, len(rows), BATCH_ROWS):
            batch = rows[first : first + BATCH_ROWS]
            assert file.readinto(batch) == batch.nbytes
            yield batch


def past_cache(files: Files, n_threads: int) -> Iterator[Rows]:
    """Read the plain file in order, straight from the disk, with one piece or several on their way."""
    data = files.data
    piece_bytes = BATCH_ROWS * data.row_bytes
    buffers = [mmap.mmap(-1, piece_bytes) for _ in range(n_threads)]  # where pages start, as direct reads want it
    handle = os.open(files.plain, os.O_RDONLY | os.O_DIRECT)
    try:
        with ThreadPoolExecutor(n_threads) as pool:

            def read(number: int) -> Future[int]:
                return pool.submit(os.preadv, handle, [buffers[number % n_threads]], number * piece_bytes)

            coming = [read(number) for number in range(n_threads)]
            for number in range(-(-data.n_bytes // piece_bytes)):
                n_bytes = coming.pop(0).result()
                yield np.frombuffer(buffers[number % n_threads], np.float16, n_bytes // 2).reshape(-1, data.width)
                coming.append(read(number + n_threads))
    finally:
        os.close(handle)


def ours(store: Store, *, verify: bool = True, epoch: int = 1) -> Iterator[Rows]:
    """Go through an epoch of the store."""
    for batch in store.shuffled(HOOK_POINT, batch_rows=BATCH_ROWS, seed=0, epoch=epoch, special=True, verify=verify):
        yield batch.numpy()


def placed_by_numpy(store: Store) -> Iterator[Rows]:
    """Go through an epoch as it is done where there is no C compiler."""
    with patch("workbench.cache.filling.scatter", scatter_by_numpy):
        yield from ours(store)


def ours_in_order(store: Store) -> Iterator[Rows]:
    """Go through the store from its first row to its last."""
    for _, batch in store.sequential(HOOK_POINT, batch_rows=BATCH_ROWS):
        yield batch.numpy()


def mapped(files: Files, *, in_batch_sorted: bool, n_rows: int | None = None) -> Iterator[Rows]:
    """Take rows of a memory map in a shuffled order."""
    rows = np.memmap(files.plain, np.float16, "r", shape=(files.data.n_rows, files.data.width))
    order = np.random.default_rng(0).permutation(files.data.n_rows)[:n_rows]
    for first in range(0, len(order), BATCH_ROWS):
        batch = order[first : first + BATCH_ROWS]
        yield rows[np.sort(batch) if in_batch_sorted else batch]


def whole_chunks(files: Files, path: Path) -> Iterator[Rows]:
    """Read stretches of 512 rows by h5py in a shuffled order; their rows are not mixed."""
    buffer = np.empty((CHUNK_ROWS, files.data.width), np.float16)
    with h5py.File(path) as file:
        rows = file["rows"]
        for chunk in np.random.default_rng(0).permutation(-(-len(rows) // CHUNK_ROWS)):
            first, end = chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, len(rows))
            rows.read_direct(buffer, np.s_[first:end], np.s_[: end - first])
            yield buffer[: end - first]


def fancy(files: Files) -> Iterator[Rows]:
    """Ask h5py for lists of shuffled rows, ascending as it wants them."""
    order = np.random.default_rng(0).permutation(files.data.n_rows)[:FEW_ROWS]
    with h5py.File(files.chunked) as file:
        for first in range(0, len(order), BATCH_ROWS):
            yield file["rows"][np.sort(order[first : first + BATCH_ROWS])]


def saelens(files: Files, *, mixed: bool) -> Iterator[Rows]:
    """Read by SAELens's `ActivationsStore` from its cached folder.

    Parameters
    ----------
    files : Files
        What is read.
    mixed : bool
        Give batches as a trainer gets them, from its buffer; else what it reads, in order, as it comes.
    """
    import torch
    from sae_lens.training.activations_store import ActivationsStore

    store = ActivationsStore(
        model=None,  # asked for nothing where activations are cached
        dataset=None,
        streaming=False,
        hook_name=HOOK_POINT,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=files.data.width,
        n_batches_in_buffer=SAELENS_BUFFER,
        total_training_tokens=files.saelens_rows,
        store_batch_size_prompts=min(SAELENS_PROMPTS, files.saelens_rows // CONTEXT),
        train_batch_size_tokens=BATCH_ROWS,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float16",
        cached_activations_path=str(files.saelens),
    )
    if mixed:
        for _ in range(files.mixed_rows // BATCH_ROWS):
            yield store.next_batch().numpy()
        return
    for _ in range(files.saelens_rows // CONTEXT // store.store_batch_size_prompts):
        yield store.get_raw_llm_batch(raise_on_epoch_end=True)[0].numpy()
