"""The forward passes of a capture: batches are made ahead of them, and rows written behind them, on threads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self

import numpy as np
import torch

from workbench.cache import ActivationSpec, StoreWriter
from workbench.cache.prefetch import Prefetcher
from workbench.capture_plan import Plan
from workbench.capture_rows import Places, RowsOnTheWay, rows_of
from workbench.datasets.protocol import Dataset
from workbench.errors import UserError
from workbench.progress import progress
from workbench.subjects.protocol import Batch, Subject
from workbench.transfer import HostCopies

log = logging.getLogger("workbench")

WAITING_BYTES = 256 << 20  # rows that may wait to be written; the writer waits for its disk now and then
Rows = Mapping[str, RowsOnTheWay]


class AppendingThread:
    """Writes rows on a thread, in the order in which they are handed over; use as a context manager.

    On leaving, everything that was handed over is written; after an error or Ctrl-C, no more than is in hand.

    Parameters
    ----------
    append : function
        Writes the rows of one batch, given its sequences.
    waiting_bytes : int
        How much may wait; one batch always may.
    """

    def __init__(self, append: Callable[[range, Rows], None], waiting_bytes: int) -> None:
        self._append = append
        self._waiting_bytes = waiting_bytes
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._thread = ThreadPoolExecutor(1, "capture-append")
        self._stopped = False

    def put(self, sequences: range, rows: Rows) -> None:
        """Hand over the rows of the next batch; waits while too much is waiting, and raises what the thread met."""
        n_bytes = sum(each.n_bytes for each in rows.values())
        while self._waiting and (self._waiting[0][0].done() or self._n_waiting() + n_bytes > self._waiting_bytes):
            self._waiting[0][0].result()
            self._waiting.popleft()  # only now: an interruption while waiting must not forget it
        self._waiting.append((self._thread.submit(self._work, sequences, rows), n_bytes))

    def _n_waiting(self) -> int:
        return sum(n_bytes for _, n_bytes in self._waiting)

    def _work(self, sequences: range, rows: Rows) -> None:
        if self._stopped:  # rows after those that failed have no place
            return
        try:
            self._append(sequences, rows)
        except BaseException:
            self._stopped = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting[0][0].result()
                self._waiting.popleft()
        finally:
            self._stopped = True
            self._thread.shutdown()


def forward(
    subject: Subject,
    dataset: Dataset,
    plan: Plan,
    specs: Mapping[str, ActivationSpec],
    writer: StoreWriter,
    batch_size: int | None,
) -> None:
    """Run the batches that are still wanting and append their rows.

    While a batch runs, the next is made and the rows of the one before are written, each on a thread of its own.
    """
    first_rows = plan.examples.first_rows
    copies = HostCopies()

    def batches(of: Iterator[range]) -> Generator[tuple[range, Batch], None, None]:
        for sequences in of:
            yield sequences, make_batch(subject, dataset, plan, sequences)

    def append(sequences: range, rows: Rows) -> None:
        first_row = int(first_rows[sequences.start])
        done = writer.next_row - first_row  # in the batch in which an earlier run was stopped
        writer.append({name: each.array(first_row)[done:] for name, each in rows.items()})
        ticker.advance(int(first_rows[sequences.stop]) - first_row - done)

    with (
        progress(writer.n_rows, "rows", "capture", log, done=writer.next_row) as ticker,
        closing(Prefetcher(batches(plan.batches(batch_size, writer.next_row)))) as ready,
        AppendingThread(append, WAITING_BYTES) as appending,
    ):
        for sequences, batch in ready:
            appending.put(sequences, run_batch(subject, plan, specs, sequences, batch, copies))


def make_batch(subject: Subject, dataset: Dataset | None, plan: Plan, sequences: range) -> Batch:
    """Return the sequences or images of one batch as the subject takes them; texts need no dataset."""
    if subject.modality == "text":
        return subject.batch([plan.window(s) for s in sequences])
    assert dataset is not None
    examples = plan.examples
    documents = [plan.documents[examples.sequence_document[s]] for s in sequences]
    batch = subject.batch([dataset.document(d).image for d in documents])
    wanted = int(examples.bounds[1])
    if batch.mask.shape[1] != wanted:
        names = examples.documents[examples.sequence_document[sequences.start]]
        raise UserError(
            f"the images from {names!r} on have {batch.mask.shape[1]} positions, where the first has {wanted}: "
            "bring all to the same size"
        )
    return batch


def run_batch(
    subject: Subject,
    plan: Plan,
    specs: Mapping[str, ActivationSpec],
    sequences: range,
    batch: Batch,
    copies: HostCopies,
) -> dict[str, RowsOnTheWay]:
    """Run one batch and return the rows of its sequences, by hook point; on a device, without waiting for them."""
    captured = subject.capture(batch, list(specs))
    examples = plan.examples
    positions = [examples.positions_of(s) for s in sequences]
    of_batch = np.repeat(np.arange(len(positions)), [len(each) for each in positions])
    lengths = np.diff(examples.bounds)[sequences.start : sequences.stop][of_batch]
    places = Places(*map(torch.from_numpy, (of_batch, np.concatenate(positions), lengths)))
    on_device = {device: places.to(device) for device in {value.device for value in captured.values()}}

    def rows(name: str) -> RowsOnTheWay:
        value, spec = captured[name], specs[name]
        of_point = rows_of(subject.hook_points[name], value, on_device[value.device], spec)
        return RowsOnTheWay(of_point, name, spec, copies)

    return {name: rows(name) for name in specs}
