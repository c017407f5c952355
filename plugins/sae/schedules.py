"""Numbers that change over a training, as shares of their full value."""

from __future__ import annotations

import math


def rising(done: float, share: float) -> float:
    """Rise in a line from 0 to 1 over the first `share` of the training; `done` is the share that is done."""
    return min(1.0, done / share) if share else 1.0


def falling(done: float, share: float, schedule: str = "linear") -> float:
    """Fall from 1 to 0 over the last `share` of the training: in a line, or as the first half of a cosine.

    Examples
    --------
    >>> falling(0.5, 0.2), falling(0.75, 0.5), falling(0.75, 0.5, "cosine")
    (1.0, 0.5, 0.49999999999999994)
    """
    left = max(0.0, min(1.0, (1 - done) / share)) if share else 1.0
    return left if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
