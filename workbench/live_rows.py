"""Rows straight from a subject model: computed when a pass comes to them, mixed in a bounded buffer, never stored."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import ActivationSpec
from workbench.cache.epoch import Cuts, Epoch
from workbench.cache.schema import ordinary_rows
from workbench.capture_passes import make_batch, run_batch
from workbench.capture_plan import Plan
from workbench.datasets.protocol import Dataset
from workbench.errors import UserError
from workbench.ranks import ALONE, Ranks
from workbench.subjects.protocol import Subject
from workbench.transfer import HostCopies

BUFFER_ROWS = 131_072


class LiveRows:
    """The rows of a plan, as a store of them would have them, bit for bit.

    A pass over them in a seeded order goes batch by batch of the forward passes, as one over a store goes chunk by
    chunk: batches are put in an order of their own for each epoch and taken in windows that fit into the buffer, and
    rows are mixed within a window. A pass that is resumed runs the batches of its window again.

    Parameters
    ----------
    subject : Subject
        Computes them.
    dataset : Dataset
        That the plan is of.
    plan : Plan
        Which rows there are.
    specs : mapping of str to ActivationSpec
        What a row of each hook point is.
    batch_size : int, optional
        Sequences or images in a forward pass; if not given, as many as have 8192 positions.
    buffer_rows : int
        Rows that are in memory at once, and mixed with each other; those of one forward pass at least.
    ranks : Ranks
        Processes that share the forward passes; each has all rows.

    Attributes
    ----------
    folder : str
        What messages call them, as a store is called by its folder.
    """

    def __init__(
        self,
        subject: Subject,
        dataset: Dataset,
        plan: Plan,
        specs: Mapping[str, ActivationSpec],
        *,
        batch_size: int | None = None,
        buffer_rows: int = BUFFER_ROWS,
        ranks: Ranks = ALONE,
    ) -> None:
        self._subject, self._dataset, self.plan, self._specs = subject, dataset, plan, specs
        self._batches = list(plan.batches(batch_size, 0))
        self._first_rows = plan.examples.first_rows
        self._copies = HostCopies()
        self.buffer_rows, self.ranks = buffer_rows, ranks
        self.folder = f"{subject.address} on {dataset.address}"

    @property
    def hook_points(self) -> dict[str, ActivationSpec]:
        """What a row of each hook point is, by name."""
        return dict(self._specs)

    @property
    def n_rows(self) -> int:
        """Rows of the plan."""
        return self.plan.examples.n_rows

    @property
    def row_bytes(self) -> int:
        """Bytes that a row of all hook points takes in the buffer."""
        return sum(int(np.prod(spec.shape)) * dtype_of(spec).itemsize for spec in self._specs.values())

    @cached_property
    def origins(self) -> NDArray[Any]:
        """Record array [rows], as `Store.origins`."""
        return self.plan.examples.origins(0, self.n_rows)

    @property
    def ordinary(self) -> NDArray[np.bool_]:
        """Rows [rows] that are no special tokens, as `Store.ordinary`."""
        return ordinary_rows(self.origins)

    @property
    def documents(self) -> list[str]:
        """Names of documents, by document index."""
        return list(self.plan.examples.documents)

    @property
    def document_fields(self) -> list[dict[str, Any]]:
        """Plain values of each document, by document index."""
        return [dict(fields) for fields in self.plan.examples.document_fields]

    def shuffled(
        self,
        hook_points: Sequence[str],
        *,
        batch_rows: int,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
        rows: NDArray[np.bool_] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> LivePass:
        """Go once over the rows in a seeded order; parameters and batches as for `Store.shuffled`.

        Rows of special tokens are among them unless `rows` leaves them out. Where all rows fit into the buffer, and all
        of a store of the same plan into half of the store's, the order is the same.
        """
        wanted = np.ones(self.n_rows, dtype=bool) if rows is None else np.asarray(rows)
        return LivePass(self, hook_points, wanted, batch_rows, (seed, epoch), (rank, n_ranks), state)

    def counts(self, wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return the number of wanted rows in each forward pass, int32 [forward passes]."""
        upto = np.concatenate([[0], np.cumsum(wanted)])
        bounds = [(self._first_rows[each.start], self._first_rows[each.stop]) for each in self._batches]
        return np.array([upto[end] - upto[first] for first, end in bounds], np.int32)

    def compute(self, number: int, hook_points: Sequence[str], wanted: NDArray[np.bool_]) -> dict[str, Tensor]:
        """Run one forward pass and return its wanted rows [rows, ...] of each hook point, on the CPU."""
        sequences = self._batches[number]
        first, end = int(self._first_rows[sequences.start]), int(self._first_rows[sequences.stop])
        batch = make_batch(self._subject, self._dataset, self.plan, sequences)
        specs = {name: self._specs[name] for name in hook_points}
        rows = run_batch(self._subject, self.plan, specs, sequences, batch, self._copies)
        kept = torch.from_numpy(wanted[first:end])
        return {name: each.tensor(first)[kept] for name, each in rows.items()}

    def buffer(self, hook_points: Sequence[str], n_rows: int) -> dict[str, Tensor]:
        """Return memory for rows of some hook points."""
        specs = {name: self._specs[name] for name in hook_points}
        return {name: torch.empty(n_rows, *spec.shape, dtype=dtype_of(spec)) for name, spec in specs.items()}


def dtype_of(spec: ActivationSpec) -> torch.dtype:
    """Return the dtype in which rows of a hook point are given out."""
    dtype: torch.dtype = torch.float32 if spec.dtype == "int8" else getattr(torch, spec.dtype)
    return dtype


class LivePass:
    """One pass over live rows; made by `LiveRows.shuffled`.

    Attributes
    ----------
    n_rows : int
        Rows of the whole pass, on this rank.
    """

    def __init__(
        self,
        source: LiveRows,
        hook_points: Sequence[str],
        wanted: NDArray[np.bool_],
        batch_rows: int,
        seed: tuple[int, int],
        rank: tuple[int, int],
        state: Mapping[str, Any] | None,
    ) -> None:
        counts = source.counts(wanted)
        per_window = max(1, source.buffer_rows // max(1, int(counts.max(initial=1))))
        self._state: dict[str, Any] = {
            "seed": seed[0],
            "epoch": seed[1],
            "batches_per_window": per_window,
            "n_ranks": rank[1],
            "rows": f"{int(wanted.sum())} of {len(wanted)}",
        }
        done = 0
        if state is not None:
            for name in ("seed", "n_ranks", "rows"):
                if state.get(name) != self._state[name]:
                    raise UserError(
                        f"the state is of another pass over {source.folder}: {name} {state.get(name)!r}, now "
                        f"{self._state[name]!r}"
                    )
            self._state = {name: state[name] for name in self._state}
            done = int(state["rows_done"])
        order = (self._state["seed"], self._state["epoch"])
        epoch = Epoch(counts, self._state["batches_per_window"], order, *rank)
        self._cuts = Cuts(batch_rows, epoch.rank_rows, rank[0], done)
        self.n_rows = epoch.n_rows
        self._batch = 0
        self._given = deliver(source, list(hook_points), wanted, epoch, self._cuts)

    def __iter__(self) -> LivePass:
        return self

    def __next__(self) -> dict[str, Tensor]:
        batch = next(self._given)
        self._batch += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Return what `LiveRows.shuffled` needs to go on after the last batch given out; a few JSON values."""
        return {**self._state, "rows_done": self._cuts.done(self._batch)}


def deliver(
    source: LiveRows, hook_points: Sequence[str], wanted: NDArray[np.bool_], epoch: Epoch, cuts: Cuts
) -> Generator[dict[str, Tensor], None, None]:
    """Fill the buffer window by window, and yield its batches; rows too few for a batch go on to the next window."""
    ends = epoch.ends
    window = int(np.searchsorted(ends, cuts(0), side="right"))
    base = int(ends[window - 1]) if window else 0  # row of the pass that is the buffer's first
    held = source.buffer(hook_points, 0)
    n_held = 0
    for batch in range(cuts.n_batches):
        first, end = cuts(batch), cuts(batch + 1)
        while base + n_held < end:
            start = max(0, first - base)  # before it are rows that were given out, here or before an interruption
            left = {name: rows[start:].clone() for name, rows in held.items()}
            held = {}  # its memory is free before the next is taken
            base, n_left = base + min(start, n_held), max(0, n_held - start)
            n_held = int(ends[window]) - base
            held = source.buffer(hook_points, n_held)
            for name, rows in left.items():
                held[name][:n_left] = rows
            fill(source, wanted, epoch, window, {name: rows[n_left:] for name, rows in held.items()})
            window += 1
        yield {name: rows[first - base : end - base] for name, rows in held.items()}


def fill(source: LiveRows, wanted: NDArray[np.bool_], epoch: Epoch, window: int, into: Mapping[str, Tensor]) -> None:
    """Run the forward passes of a window and put their rows where the order has them."""
    places = epoch.places(window)
    assert places is not None
    at, numbers, ranks = 0, epoch.chunks(window).tolist(), source.ranks
    for first in range(0, len(numbers), ranks.size):
        mine = numbers[first + ranks.rank : first + ranks.rank + 1]
        rows = source.compute(mine[0], list(into), wanted) if mine else source.buffer(list(into), 0)
        shared = {name: torch.cat(ranks.gather(values)) for name, values in rows.items()}
        n_rows = len(next(iter(shared.values())))
        to = torch.from_numpy(places[at : at + n_rows])
        for name, values in shared.items():
            into[name][to] = values
        at += n_rows
