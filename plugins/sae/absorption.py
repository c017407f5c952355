"""Feature splitting and feature absorption (Chanin et al. 2024), on labels of the store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from workbench.probes.metrics import from_counts

F1_GAIN = 0.03  # by which a further latent must raise the probe's F1 to count as a part of a split feature
ALIGNED = 0.025  # cosine of an absorbing latent with the probe, full absorption
ALIGNED_PART = 0.1  # the same for a share of the projection
SHARE = 0.4  # of the row's projection that absorbing latents must account for
ABSORBERS = 3  # latents that may together take a part


def main_latents(latents: list[int], f1: list[float]) -> list[int]:
    """Return the latents that a feature is split into: added as long as each raises F1 by more than `F1_GAIN`."""
    n, best = 0, -np.inf
    for score in f1:
        if score <= best + F1_GAIN:
            break
        n, best = n + 1, score
    return latents[:n]


def numbers_of_main(
    scores: list[NDArray[np.float64]], y: NDArray[np.bool_], groups: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how many latents a feature is split into in each resample of documents.

    Parameters
    ----------
    scores : list of float array [rows]
        Log odds of the probes on the first 1, 2, … latents.
    y : bool array [rows]
        Where the feature is.
    groups : int64 array [rows]
        Which document each row is of.
    weights : float64 array [draws, documents]
        How often each document is in each resample.

    Returns
    -------
    float64 array [draws]
        As many as `main_latents` names where it is told the F1 scores of that resample; which ones are tried, and in
        which order, was decided on the rows that the probes were fitted on.
    """
    n, best = np.zeros(len(weights)), np.full(len(weights), -np.inf)
    going = np.ones(len(weights), bool)
    for score in scores:
        said = score > 0
        hit, alarm, miss = (
            weights @ np.bincount(groups, weights=each, minlength=weights.shape[1])
            for each in (said & y, said & ~y, ~said & y)
        )
        f1 = from_counts(hit, alarm, miss, np.zeros_like(hit))["f1"]
        going &= f1 > best + F1_GAIN
        n, best = n + going, np.where(going, f1, best)
    return n


@dataclass(frozen=True)
class Absorbed:
    """Of the rows with the feature, that the dense probe recognises.

    Attributes
    ----------
    rows : int64 array [n]
        Which of the rows looked at.
    full : bool array [n]
        All main latents are silent, and one other latent carries the feature's direction.
    fraction : float array [n]
        Share of the reconstruction's projection on the feature's direction that other latents carry in the main ones'
        place, 0 to 1.
    """

    rows: NDArray[np.int64]
    full: NDArray[np.bool_]
    fraction: NDArray[np.float64]


def absorbed(
    codes: sp.csr_matrix,
    x: NDArray[np.float32],
    y: NDArray[np.bool_],
    score: NDArray[np.float64],
    direction: NDArray[np.float64],
    main: list[int],
    W_dec: NDArray[np.float32],
    b_dec: NDArray[np.float32],
) -> Absorbed:
    """Find rows on which a feature's main latents leave it to others.

    Parameters
    ----------
    codes : csr_matrix [rows, latents]
        Activations.
    x : float32 array [rows, width]
        What is reconstructed.
    y : bool array [rows]
        Where the feature is.
    score : float array [rows]
        Log odds of the dense probe.
    direction : float array [width]
        Of the dense probe.
    main : list of int
        From `main_latents`.
    W_dec, b_dec : float32 array [latents, width], [width]
        Decoder, in the units of `x`.

    Notes
    -----
    The criteria and their numbers are those of SAEBench. Projections of rows are measured from the decoder's bias, as
    those of latents are.
    """
    unit = direction / max(float(np.linalg.norm(direction)), 1e-30)
    along = W_dec @ unit
    cosine = along / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12)
    rows = np.flatnonzero(y & (score > 0))
    taken = codes[rows]
    projection = (x[rows] - b_dec) @ unit
    others = sp.csr_matrix((taken.data * along[taken.indices], taken.indices, taken.indptr), shape=taken.shape)
    is_main = np.zeros(len(W_dec), bool)
    is_main[main] = True
    of_main = np.asarray(others[:, main].sum(1)).ravel() if main else np.zeros(len(rows))
    full, fraction = np.zeros(len(rows), bool), np.zeros(len(rows))
    for row in range(len(rows)):
        at = slice(others.indptr[row], others.indptr[row + 1])
        latents, parts = others.indices[at], others.data[at]
        full[row] = fully(latents, parts, cosine, is_main, projection[row])
        able = ~is_main[latents] & (cosine[latents] >= ALIGNED_PART) & (parts > 0)
        total = np.sort(parts[able])[-ABSORBERS:].sum()
        fraction[row] = partly(total, of_main[row], projection[row])
    return Absorbed(rows, full, fraction)


def fully(
    latents: NDArray[np.int32],
    parts: NDArray[np.float64],
    cosine: NDArray[np.float64],
    is_main: NDArray[np.bool_],
    projection: float,
) -> bool:
    """True if no main latent is active, and the one with the largest projection is aligned and carries enough."""
    if not len(latents) or is_main[latents].any() or projection <= 0:
        return False
    top = int(parts.argmax())
    return bool(cosine[latents[top]] >= ALIGNED and parts[top] / projection >= SHARE)


def partly(absorbers: float, main: float, projection: float) -> float:
    """Return the share of the projection that absorbing latents carry in the main ones' place."""
    if main >= projection or absorbers < SHARE * projection:
        return 0.0
    if main <= 0:
        return 1.0
    share = min(absorbers, projection - main)
    return float(np.clip(share / (share + main), 0, 1))
