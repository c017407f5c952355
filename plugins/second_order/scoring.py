"""Maps against masks: overlap at thresholds, intersection over union, accuracy, average precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

# standard deviations of a map above its mean
THRESHOLDS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
MEAN = THRESHOLDS.index(0.0)


def enlarged(values: np.ndarray, grid: Sequence[int], patch: tuple[int, int], size: Sequence[int]) -> np.ndarray:
    """Enlarge maps [..., patch] to pixels [..., height, width], bilinearly; what no patch sees repeats the edge."""
    image = torch.from_numpy(values).reshape(-1, 1, *grid)
    seen = tuple(n * p for n, p in zip(grid, patch, strict=True))
    pixels = F.interpolate(image, size=seen, mode="bilinear", align_corners=False)
    lacking = [n - s for n, s in zip(size, seen, strict=True)]
    padded = F.pad(pixels, (0, lacking[1], 0, lacking[0]), mode="replicate")
    return np.asarray(padded.reshape(*values.shape[:-1], *size).numpy())


def overlaps(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Count pixels that maps put into the object or not, at each threshold.

    Parameters
    ----------
    values : np.ndarray
        [..., height, width].
    mask : np.ndarray
        bool [height, width].

    Returns
    -------
    np.ndarray
        [..., threshold, 2, 2] pixels, by what a map says and by what is true.
    """
    flat = values.reshape(*values.shape[:-2], -1)
    deviation = np.maximum(flat.std(-1, keepdims=True), 1e-12)
    scaled, inside = (flat - flat.mean(-1, keepdims=True)) / deviation, mask.ravel()
    n_true = int(inside.sum())
    found = np.empty((*flat.shape[:-1], len(THRESHOLDS), 2, 2), np.int64)
    for at, threshold in enumerate(THRESHOLDS):
        said = scaled > threshold
        both, n_said = said[..., inside].sum(-1), said.sum(-1)
        found[..., at, 1, 1], found[..., at, 1, 0] = both, n_said - both
        found[..., at, 0, 1], found[..., at, 0, 0] = n_true - both, mask.size - n_said - n_true + both
    return found


def mean_iou(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return intersection over union of object and background, summed over images, averaged over the two, [draw].

    counts [image, ..., 2, 2] from `overlaps`, weights [draw, image]; what is between them in `counts` comes last.
    """
    total = np.einsum("di,i...->d...", weights, counts)
    missed = total[..., 0, 1] + total[..., 1, 0]
    return np.asarray(sum(total[..., i, i] / (total[..., i, i] + missed) for i in (0, 1)) / 2)


def pixel_accuracy(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of pixels that are told right, [draw]."""
    total = np.einsum("di,ist->dst", weights, counts)
    return np.asarray((total[:, 0, 0] + total[:, 1, 1]) / total.sum((1, 2)))


def average_precision(values: np.ndarray, mask: np.ndarray) -> float:
    """Return average precision over pixels, of the object by the map and of the rest by its negative, averaged."""
    order = np.argsort(-values, axis=None, kind="stable")
    inside = mask.ravel()[order]
    return (precision_of(inside) + precision_of(~inside[::-1])) / 2


def precision_of(found: np.ndarray) -> float:
    """Return the mean, over what was to be found, of precision where it was found; found [pixel], best first."""
    return float((found.cumsum() / np.arange(1, len(found) + 1))[found].mean())
