"""The means of a cyclic label's classes as a sum of rings, one for each Fourier frequency, and each ring's plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from workbench.probes.errors import ProbeError
from workbench.probes.statistics import permutation_p_value


@dataclass(frozen=True)
class Rings:
    """Class means of a label that goes round in a circle: a point for each class on each of several rings.

    Attributes
    ----------
    mean : np.ndarray
        [width], of the classes, each counted once.
    parts : np.ndarray
        [frequencies, 2, width] what multiplies ``cos(2π f a / period)`` and ``sin(2π f a / period)``, for f = 1, 2, …;
        for an even period the last frequency's sine is zero: two points and a line, no ring.
    period : int
        Number of classes.
    """

    mean: Float[np.ndarray, " width"]
    parts: Float[np.ndarray, "frequencies 2 width"]
    period: int

    @property
    def frequencies(self) -> range:
        """1 to half the period."""
        return range(1, self.period // 2 + 1)

    @property
    def shares(self) -> Float[np.ndarray, " frequencies"]:
        """Share of the variance between the classes at each frequency."""
        power = np.square(self.parts).sum(axis=(1, 2)) * np.array([self._weight(f) for f in self.frequencies])
        return np.asarray(power / max(power.sum(), 1e-300))

    def _weight(self, frequency: int) -> float:
        """Return the mean square of a ring's cosine over the classes: a half, or one for the alternating sign."""
        return 1.0 if 2 * frequency == self.period else 0.5

    def _chosen(self, frequencies: Sequence[int] | None) -> list[int]:
        chosen = list(self.frequencies if frequencies is None else frequencies)
        wrong = [f for f in chosen if f not in self.frequencies]
        if wrong:
            raise ProbeError(f"frequency {wrong[0]}: a label of period {self.period} has 1 to {self.period // 2}")
        return chosen

    def basis(self, frequencies: Sequence[int] | None = None) -> Float[np.ndarray, "dimensions width"]:
        """Return orthonormal directions that span the planes of some frequencies; by default of all.

        Raises
        ------
        ProbeError
            For a frequency that the label does not have.
        """
        rows = self.parts[[f - 1 for f in self._chosen(frequencies)]].reshape(-1, len(self.mean))
        _, size, directions = np.linalg.svd(rows, full_matrices=False)
        return np.asarray(directions[size > 1e-6 * max(size.max(initial=0), 1e-300)])

    def points(
        self, classes: Int[np.ndarray, " rows"], frequencies: Sequence[int] | None = None
    ) -> Float[np.ndarray, "rows width"]:
        """Return the mean and, for each class, its points on the rings of some frequencies added to it."""
        chosen = self._chosen(frequencies)
        phase = 2 * np.pi * np.outer(classes, chosen) / self.period
        turned = np.stack([np.cos(phase), np.sin(phase)], axis=2)
        return np.asarray(self.mean + np.einsum("rfc,fcw->rw", turned, self.parts[[f - 1 for f in chosen]]))


def fit_rings(means: Float[np.ndarray, "period width"]) -> Rings:
    """Take class means [period, width], in the label's order, apart into rings; together they give the means back.

    Raises
    ------
    ProbeError
        For fewer than three classes, or a mean that is not finite (a class without rows, say).
    """
    means = np.asarray(means, dtype=np.float64)
    period = len(means)
    if means.ndim != 2 or period < 3:
        raise ProbeError(f"class means of shape {means.shape}: must be [period, width] with at least 3 classes")
    if not np.isfinite(means).all():
        missing = int(np.flatnonzero(~np.isfinite(means).all(axis=1))[0])
        raise ProbeError(f"the mean of class {missing} is not finite: has it rows?")
    spectrum = np.fft.rfft(means, axis=0)[1:] / period
    parts = 2 * np.stack([spectrum.real, -spectrum.imag], axis=1)
    if period % 2 == 0:
        parts[-1] /= 2
        parts[-1, 1] = 0
    return Rings(means.mean(axis=0), parts, period)


def class_means(
    X: Float[np.ndarray, "rows width"], classes: Int[np.ndarray, " rows"], n_classes: int
) -> Float[np.ndarray, "classes width"]:
    """Return the mean of each class's rows, NaN where it has none."""
    sums = np.zeros((n_classes, X.shape[1]))
    np.add.at(sums, classes, X)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / np.bincount(classes, minlength=n_classes)[:, None])


def order_null(
    means: Float[np.ndarray, "period width"], n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws frequencies"]:
    """Return the shares of the same means in random orders, each draw's largest first: what no order gives."""
    means = np.asarray(means, dtype=np.float64)
    means = means - means.mean(axis=0)
    n = len(means)
    order = np.stack([rng.permutation(n) for _ in range(n_draws)])
    shuffled = (means @ means.T)[order[:, :, None], order[:, None, :]]
    # The power at a frequency needs the products of the means alone.
    wave = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(1, n // 2 + 1)) / n)
    power = np.einsum("dab,bf,af->df", shuffled, wave, wave.conj(), optimize=True).real
    if n % 2 == 0:
        power[:, -1] /= 2
    return np.asarray(-np.sort(-power / power.sum(axis=1, keepdims=True), axis=1))


def outstanding(
    shares: Float[np.ndarray, " frequencies"], null: Float[np.ndarray, "draws frequencies"], level: float = 0.05
) -> tuple[list[int], float, float]:
    """Return which frequencies stand out among random orders of the classes, largest share first.

    One after another: the next largest share, of what the larger ones leave, is held against the same number of each
    random order; the first one that more than `level` of them reach ends it.

    Parameters
    ----------
    shares : np.ndarray
        From `Rings.shares`.
    null : np.ndarray
        From `order_null`.
    level : float
        See above.

    Returns
    -------
    frequencies : list of int
        May be empty.
    p : float
        Of the largest share.
    bar : float
        What the largest share reaches in `level` of the random orders.
    """
    order = np.argsort(-shares, kind="stable")
    found: list[int] = []
    first = float("nan")
    # The last one is all that is left, in any order.
    for place in range(len(shares) - 1):
        own = shares[order[place]] / shares[order[place:]].sum()
        drawn = null[:, place] / null[:, place:].sum(axis=1)
        # Turning or mirroring an order changes nothing but the last bit.
        p = permutation_p_value(float(own), drawn * (1 + 1e-9))
        first = p if place == 0 else first
        if p > level:
            break
        found.append(int(order[place]) + 1)
    return found, first, float(np.quantile(null[:, 0], 1 - level))
