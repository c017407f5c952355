"""Where training rows come from: an activation store, or the subject model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.live_rows import LiveRows
from workbench.plugins.sae.training import Pass


class Feed(Protocol):
    """Training rows, epoch by epoch."""

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""

    def start(self, hook_points: Sequence[str], batch_rows: int, epoch: int, state: Mapping[str, Any] | None) -> Pass:
        """Start an epoch over some hook points, or go on with it."""


@dataclass(frozen=True)
class StoreFeed:
    """Rows of a store.

    Attributes
    ----------
    store : Store
        Activations.
    rows : bool array [rows]
        Those to train on.
    seed : int
        Of their order.
    """

    store: Store
    rows: NDArray[np.bool_]
    seed: int

    @property
    def n_rows(self) -> int:
        """See `Feed.n_rows`."""
        return int(self.rows.sum())

    def start(self, hook_points: Sequence[str], batch_rows: int, epoch: int, state: Mapping[str, Any] | None) -> Pass:
        """See `Feed.start`."""
        return self.store.shuffled(
            list(hook_points),
            batch_rows=batch_rows,
            seed=self.seed,
            epoch=epoch,
            rows=self.rows,
            order_of=widest(self.store),
            state=state,
        )


@dataclass(frozen=True)
class LiveFeed:
    """Rows that the subject computes on the way.

    Attributes
    ----------
    source : LiveRows
        Computes them.
    rows : bool array [rows]
        Those to train on.
    seed : int
        Of their order.
    """

    source: LiveRows
    rows: NDArray[np.bool_]
    seed: int

    @property
    def n_rows(self) -> int:
        """See `Feed.n_rows`."""
        return int(self.rows.sum())

    def start(self, hook_points: Sequence[str], batch_rows: int, epoch: int, state: Mapping[str, Any] | None) -> Pass:
        """See `Feed.start`."""
        return self.source.shuffled(
            hook_points, batch_rows=batch_rows, seed=self.seed, epoch=epoch, rows=self.rows, state=state
        )


def widest(store: Store) -> str:
    """Return the hook point whose order all passes keep, so that what is read beside it does not matter."""
    return max(store.hook_points, key=lambda name: (math.prod(store.hook_points[name].shape), name))
