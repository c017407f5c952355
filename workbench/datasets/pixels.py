"""From labels on pixels to labels on patches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from workbench.datasets.protocol import PixelLabel
from workbench.errors import UserError

Column = tuple[NDArray[np.float64], NDArray[np.bool_]]


def on_positions(label: PixelLabel, patches: NDArray[np.int64] | NDArray[np.int32]) -> Column:
    """Return the value of each position of an image, and where it is defined.

    Parameters
    ----------
    label : PixelLabel
        On the image's pixels.
    patches : int array [pos]
        Which patch each position is, all of them; below 0 for class token and registers, where nothing is defined.

    Raises
    ------
    UserError
        If image or grid of patches is not square.
    """
    is_patch = patches >= 0
    found = np.full(len(patches), np.nan)
    found[is_patch] = on_patches(label.values, int(is_patch.sum()))[patches[is_patch]]
    return found, ~np.isnan(found)


def on_patches(values: NDArray[np.float64], n_patches: int) -> NDArray[np.float64]:
    """Return the value of each patch: what most of its pixels have; of equally many none, or else the lowest.

    Parameters
    ----------
    values : float array [height, width]
        NaN where a pixel has none.
    n_patches : int
        In a square grid over the whole image.

    Returns
    -------
    float array [patch]
        In reading order.

    Raises
    ------
    UserError
        If image or grid is not square: what a processor then cuts off or squeezes is not known here.
    """
    height, width = values.shape
    side = math.isqrt(n_patches)
    if height != width or side * side != n_patches or not side:
        raise UserError(
            f"pixels [{height}, {width}] on {n_patches} patches: only square images and grids say which pixels a "
            "patch sees"
        )
    place = np.arange(height) * side // height
    patch = place[:, None] * side + place[None, :]
    names, which = np.unique(values, return_inverse=True)
    if np.isnan(names[-1]):  # NaN comes last, and once: it is to come first
        names, which = np.roll(names, 1), (which + 1) % len(names)
    counts = np.bincount(patch.ravel() * len(names) + which.ravel(), minlength=n_patches * len(names))
    found: NDArray[np.float64] = names[counts.reshape(n_patches, -1).argmax(1)]
    return found
