"""Is a cloud in the plane one feature? Separability as published, and the ε-mixture index maximised exactly.

Source: Engels et al., "Not All Language Model Features Are Linear" (arXiv:2405.14860).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.probes.errors import ProbeError

N_BINS = 10
EPSILON = 0.1
PUBLISHED_ANGLES = np.linspace(0, 2 * np.pi, 100)
# The index repeats after a quarter turn, which exchanges the axes; 25 angles are as dense as 100 of a whole turn.
QUARTER_ANGLES = np.arange(25) * (np.pi / 50)
NUMBERS_AT_ONCE = 1 << 21
FIRST_CELLS = 32
FLAT = 1e-12  # a direction in which the cloud has less than this share of its variance has no spread to measure by


@dataclass(frozen=True)
class Separability:
    """The separability index of a cloud.

    Attributes
    ----------
    value : float
        Nats; 0 if the cloud splits into two independent features. (The published code prints it in bits: divided by
        ln 2.)
    angle : float
        Radians, at which the least was found.
    bias : float
        About how much a histogram of so many rows exceeds the truth even where coordinates are independent,
        ``(bins - 1)² / (2 rows)``. Not subtracted: where few cells are ever reached it is less.
    curve : np.ndarray
        [angles] mutual information at each angle, nats.
    """

    value: float
    angle: float
    bias: float
    curve: Float[np.ndarray, " angles"]


@dataclass(frozen=True)
class Mixture:
    """The ε-mixture index of a cloud.

    Attributes
    ----------
    value : float
        The largest share of rows in a thin band that was found.
    upper : float
        No band holds more than this share.
    angle, offset : float
        The band: rows with ``|x·cos + y·sin - offset|`` below ε root mean squares of that expression.
    """

    value: float
    upper: float
    angle: float
    offset: float


def as_cloud(xy: Float[np.ndarray, "rows 2"], least: int = 2) -> Float[np.ndarray, "rows 2"]:
    """Return a cloud in float64.

    Raises
    ------
    ProbeError
        If it is no array [rows, 2], has fewer than `least` rows, or an entry is not finite.
    """
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) < least:
        raise ProbeError(f"a cloud of shape {xy.shape}: must be [rows, 2] with at least {least} rows")
    if not np.isfinite(xy).all():
        raise ProbeError(f"row {int(np.flatnonzero(~np.isfinite(xy).all(1))[0])} of the cloud is not finite")
    return xy


# --- separability -------------------------------------------------------------------------------------------------
def separability_index(
    xy: Float[np.ndarray, "rows 2"],
    *,
    n_bins: int = N_BINS,
    angles: Float[np.ndarray, " angles"] = PUBLISHED_ANGLES,
) -> Separability:
    """Return the least mutual information of the two coordinates over rotations of the cloud.

    Parameters
    ----------
    xy : np.ndarray
        [rows, 2].
    n_bins : int
        Equal-width bins along each side of the rotated cloud's bounding box.
    angles : np.ndarray
        Radians to rotate by. The published 100 angles of a whole turn are 99 different ones of a quarter turn, as 99 is
        odd; `QUARTER_ANGLES` are four times as fast.

    Raises
    ------
    ProbeError
        For something other than a cloud, or fewer than two bins.
    """
    xy = as_cloud(xy)
    if n_bins < 2 or len(angles) < 1:
        raise ProbeError(f"n_bins={n_bins}, {len(angles)} angles: at least 2 bins and one angle are needed")
    curve = np.concatenate(
        [
            _information(np.ones((1, len(xy))), cells, n_bins)[0]
            for cells in _cells(xy, n_bins, np.asarray(angles, dtype=np.float64))
        ]
    )
    at = int(curve.argmin())
    return Separability(float(curve[at]), float(angles[at]), (n_bins - 1) ** 2 / (2 * len(xy)), curve)


def separability_draws(
    xy: Float[np.ndarray, "rows 2"], weights: Float[np.ndarray, "draws rows"], *, n_bins: int = N_BINS
) -> Float[np.ndarray, " draws"]:
    """Return the index in each resample, at `QUARTER_ANGLES`, in the bins of the whole cloud.

    Parameters
    ----------
    xy : np.ndarray
        [rows, 2].
    weights : np.ndarray
        [draws, rows] how often each row is in a resample; those of a document's rows are equal.
    n_bins : int
        See `separability_index`.
    """
    found = [_information(weights, cells, n_bins) for cells in _cells(as_cloud(xy), n_bins, QUARTER_ANGLES)]
    return np.asarray(np.concatenate(found, axis=1).min(axis=1))


def _cells(xy: Float[np.ndarray, "rows 2"], n_bins: int, angles: Float[np.ndarray, " angles"]) -> Iterator[np.ndarray]:
    """Yield, for some angles at a time, the histogram cell [angles, rows] of each row."""
    step = max(1, NUMBERS_AT_ONCE // len(xy))
    for first in range(0, len(angles), step):
        turn = angles[first : first + step]
        cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
        x, y = xy[:, 0], xy[:, 1]
        yield _bin(x * cos + y * sin, n_bins) * n_bins + _bin(y * cos - x * sin, n_bins)


def _bin(values: Float[np.ndarray, "angles rows"], n_bins: int) -> np.ndarray:
    """Return each value's bin between its row's least and largest; edges as NumPy's histograms have them."""
    edges = np.linspace(values.min(axis=1), values.max(axis=1), n_bins + 1)
    bins = np.zeros(values.shape, dtype=np.int64)
    for edge in edges[1:-1]:
        bins += values >= edge[:, None]
    return bins


def _information(weights: Float[np.ndarray, "draws rows"], cells: np.ndarray, n_bins: int) -> np.ndarray:
    """Return the mutual information [draws, angles], nats, of weighted rows in cells [angles, rows]."""
    n_angles, size = len(cells), n_bins * n_bins
    flat = (cells + size * np.arange(n_angles)[:, None]).ravel()
    result = np.empty((len(weights), n_angles))
    for draw, weight in enumerate(weights):
        counts = np.bincount(flat, weights=np.tile(weight, n_angles), minlength=n_angles * size)
        joint = counts.reshape(n_angles, n_bins, n_bins) / weight.sum()
        apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(joint > 0, joint * np.log(joint / apart), 0.0)
        result[draw] = terms.sum(axis=(1, 2))
    return result


# --- mixture ------------------------------------------------------------------------------------------------------
def mixture_index(xy: Float[np.ndarray, "rows 2"], *, epsilon: float = EPSILON, tolerance: float = 0.002) -> Mixture:
    """Return the largest share of rows in a thin band around some line, relative to the spread across it.

    That is ``max over a, b of P(|a·f + b| < ε sqrt(E[(a·f + b)²]))``. For one direction each row holds for an interval
    of offsets, whose deepest overlap sorting finds exactly. Directions are searched by halving: a bound on what any
    direction of a cell can hold shows which cells need no closer look. The published code climbs a sigmoid relaxation
    from one random start, and so finds this much or less.

    Parameters
    ----------
    xy : np.ndarray
        [rows, 2].
    epsilon : float
        Half-width of the band, in root mean squares; between 0 and 1.
    tolerance : float
        `Mixture.upper` is at most this much above `Mixture.value`, or one row.

    Raises
    ------
    ProbeError
        For something other than a cloud, or an epsilon or tolerance out of range.
    """
    xy = as_cloud(xy)
    if not 0 < epsilon < 1 or tolerance <= 0:
        raise ProbeError(f"epsilon={epsilon}, tolerance={tolerance}: epsilon must lie between 0 and 1, both above 0")
    mean, n = xy.mean(axis=0), len(xy)
    bands = _Bands(xy - mean, epsilon)
    best, at, offset, highest = 0, 0.0, 0.0, 0
    half = np.pi / (2 * FIRST_CELLS)
    centres = half * (2 * np.arange(FIRST_CELLS) + 1)
    while len(centres):
        for angle in centres:
            held, where = bands.most(angle)
            if held > best:
                best, at, offset = held, float(angle), where
        allowed = best + max(1.0, tolerance * n)
        bounds = np.array([bands.bound(angle, half) for angle in centres])
        highest = max(highest, *bounds[bounds <= allowed].tolist(), best)
        centres = centres[bounds > allowed]
        half /= 2
        if half < 1e-9:  # rows that lie on one line from many directions: the bound cannot come nearer
            highest = max(highest, int(bounds.max(initial=0)))
            break
        centres = np.concatenate([centres - half, centres + half])
    offset += float(mean @ [np.cos(at), np.sin(at)])
    return Mixture(best / n, highest / n, at, offset)


def mixture_sweep(xy: Float[np.ndarray, "rows 2"], *, epsilon: float = EPSILON, n_directions: int = 36) -> float:
    """Return the largest share of rows in a band of `n_directions` directions: a fast lower bound of `mixture_index`.

    Exact in the offset. Good for a test whose null is measured in the same way.

    Parameters
    ----------
    xy, epsilon
        See `mixture_index`.
    n_directions : int
        Spread evenly over half a turn.
    """
    xy = as_cloud(xy)
    bands = _Bands(xy - xy.mean(axis=0), epsilon)
    return bands.sweep(np.arange(n_directions) * (np.pi / n_directions)) / len(xy)


class _Bands:
    """How many rows of a centred cloud a band can hold.

    A row with projection p is inside the band at offset c if ``(p - c)² < ε² (v + c²)``, v the variance of p: an open
    interval of c, as ε < 1. Both its ends grow with p, and the interval grows with v.
    """

    def __init__(self, centred: Float[np.ndarray, "rows 2"], epsilon: float) -> None:
        self.xy, self.epsilon = centred, epsilon
        self.moments = centred.T @ centred / len(centred)
        self.least = FLAT * float(np.trace(self.moments))

    def _end(self, p: np.ndarray, variance: float | np.ndarray, sign: int) -> np.ndarray:
        e2 = self.epsilon**2
        return np.asarray((p + sign * self.epsilon * np.sqrt(p * p + (1 - e2) * variance)) / (1 - e2))

    @staticmethod
    def _deepest(starts: np.ndarray, stops: np.ndarray) -> tuple[int, float]:
        """Return how many open intervals overlap at most, and a point where they do, from their sorted ends.

        The point is the middle between the last start and the first stop after it: a start in between adds none.
        """
        open_after = np.searchsorted(starts, starts, side="right") - np.searchsorted(stops, starts, side="right")
        at = int(open_after.argmax())
        later = stops[np.searchsorted(stops, starts[at], side="right") :]
        return int(open_after[at]), float((starts[at] + later[0]) / 2) if len(later) else float(starts[at])

    def most(self, angle: float) -> tuple[int, float]:
        """Return the most rows that a band across one direction holds, and its offset."""
        direction = np.array([np.cos(angle), np.sin(angle)])
        variance = float(direction @ self.moments @ direction)
        if variance <= self.least:
            return 0, 0.0
        p = np.sort(self.xy @ direction)  # and so the ends are in order
        return self._deepest(self._end(p, variance, -1), self._end(p, variance, 1))

    def sweep(self, angles: np.ndarray) -> int:
        """Return the most rows that a band across any of some directions holds."""
        directions = np.stack([np.cos(angles), np.sin(angles)])
        variance = np.einsum("ik,ij,jk->k", directions, self.moments, directions).clip(0)
        p = np.sort(self.xy @ directions, axis=0)
        starts, stops = (np.ascontiguousarray(self._end(p, variance, sign).T) for sign in (-1, 1))
        after = np.arange(1, len(p) + 1)
        most = [
            int((after - np.searchsorted(stop, start, side="right")).max())
            for start, stop, v in zip(starts, stops, variance, strict=True)
            if v > self.least
        ]
        return max(most, default=0)

    def bound(self, angle: float, half: float) -> int:
        """Return a number of rows that no band across a direction within `half` of `angle` exceeds."""
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        p, q = (self.xy @ turn).T
        slack = np.abs(p) * (1 - np.cos(half)) + np.abs(q) * np.sin(half)
        (v, c), (_, w) = turn.T @ self.moments @ turn
        middle, swing, phase = (v + w) / 2, float(np.hypot((v - w) / 2, c)), float(np.arctan2(c, (v - w) / 2))
        variance = max(0.0, float(middle + swing * np.cos(max(0.0, abs(phase) - 2 * half))))
        starts, stops = self._end(p - slack, variance, -1), self._end(p + slack, variance, 1)
        return self._deepest(np.sort(starts), np.sort(stops))[0]
