"""Whether two trainings found the same: latents of one matched with those of the other by their decoder directions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

EXACT_UP_TO = 4096  # latents; the best matching takes their third power
FOUND = 0.7  # cosine from which on two latents count as the same


def matched_cosines(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Return the cosines of decoder rows matched one to one, so that their sum is as large as it can be.

    Parameters
    ----------
    a, b : Tensor [latents, width]
        Decoders, of any lengths; the smaller number of latents is matched.

    Returns
    -------
    float64 array [latents matched]
        In the order of the rows of the one with fewer latents (of `a`, if they are equal).

    Notes
    -----
    Up to 4096 latents the matching is the best one (Jonker & Volgenant); beyond, the closest pair is matched first,
    then the closest of those left, which can fall short of it.
    """
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    few, many = (torch.nn.functional.normalize(W.float(), dim=1).cpu() for W in (few, many))
    cosine = (few @ many.T).double().numpy()
    if len(many) <= EXACT_UP_TO:
        rows, columns = linear_sum_assignment(cosine, maximize=True)
        return np.asarray(cosine[rows, columns])
    return greedy(cosine)


def greedy(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Match rows with columns, the closest pair first."""
    found = np.full(len(cosine), -np.inf)
    free = np.ones(cosine.shape[1], bool)
    waiting = np.arange(len(cosine))
    while len(waiting):
        at = np.flatnonzero(free)
        best = cosine[np.ix_(waiting, at)].argmax(1)
        values = cosine[waiting, at[best]]
        order = np.lexsort((waiting, -values))
        _, first = np.unique(best[order], return_index=True)  # of those that want one column, the closest
        winners = order[first]
        found[waiting[winners]] = values[winners]
        free[at[best[winners]]] = False
        waiting = np.delete(waiting, winners)
    return found
