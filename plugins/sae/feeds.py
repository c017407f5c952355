"""Where training rows come from: an activation store, or the subject model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.live_rows import LiveRows
from workbench.plugins.sae.training import Pass


@dataclass(frozen=True)
class Feed:
    """Training rows, epoch by epoch.

    Attributes
    ----------
    source : Store or LiveRows
        Has them, or computes them on the way.
    rows : bool array [rows]
        Those to train on.
    seed : int
        Of their order.
    """

    source: Store | LiveRows
    rows: NDArray[np.bool_]
    seed: int

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return int(self.rows.sum())

    def start(self, hook_points: Sequence[str], batch_rows: int, epoch: int, state: Mapping[str, Any] | None) -> Pass:
        """Start an epoch over some hook points, or go on with it; the order does not depend on which they are."""
        options: dict[str, Any] = {
            "batch_rows": batch_rows,
            "seed": self.seed,
            "epoch": epoch,
            "rows": self.rows,
            "state": state,
        }
        if isinstance(self.source, LiveRows):
            return self.source.shuffled(hook_points, **options)
        return self.source.shuffled(list(hook_points), order_of=widest(self.source), **options)


def widest(store: Store) -> str:
    """Return the hook point whose order all passes keep, so that what is read beside it does not matter."""
    return max(store.hook_points, key=lambda name: (math.prod(store.hook_points[name].shape), name))
