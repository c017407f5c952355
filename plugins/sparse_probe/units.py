"""The units that are probed: a hook point's neurons, dense, or a dictionary's latents, sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import scipy.sparse as sp

from workbench.encoding import latents_of_rows
from workbench.errors import UserError
from workbench.labelled_rows import matching_hook_points, read_flat, require_finite
from workbench.probes import Standardiser
from workbench.probes.moments import ClassMoments

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.context import Context
    from workbench.dictionary import Dictionary

ROWS_AT_ONCE = 4096
Matrix: TypeAlias = np.ndarray | sp.csr_matrix


def choose_hook_points(store: Store, wanted: str | Sequence[str] | None, dictionary: Dictionary | None) -> list[str]:
    """Return the hook points to probe, in the order of the forward pass.

    Parameters
    ----------
    store : Store
        What there is.
    wanted : str or sequence of str, optional
        Names or patterns; by default all, or the one that the dictionary reads.
    dictionary : Dictionary, optional
        If given, no hook point but its own can be probed.

    Raises
    ------
    UserError
        If a name or pattern matches nothing, or a dictionary reads another hook point.
    """
    if wanted is None and dictionary is not None:
        wanted = dictionary.hook_in
    chosen = matching_hook_points(store, wanted)
    if dictionary is not None and chosen != [dictionary.hook_in]:
        raise UserError(
            f"dictionary {dictionary.address} reads {dictionary.hook_in}: probe its latents with "
            f"hook_point={dictionary.hook_in}, or leave hook_point out"
        )
    return chosen


def read_units(context: Context, hook_point: str, rows: np.ndarray, dictionary: Dictionary | None) -> Matrix:
    """Return [rows, units] as float32: activations, trailing axes laid side by side, or latents as a sparse matrix.

    Raises
    ------
    UserError
        If an activation is not finite: a probe would be about that alone.
    """
    if dictionary is None:
        return read_flat(context.store, hook_point, rows)
    # latents of a dictionary are mostly silent: dense, they would be `latents / k` times as large
    X = latents_of_rows(context.store, dictionary, rows, context.torch_device)
    require_finite(X.data, hook_point, np.repeat(rows, np.diff(X.indptr)))
    return X


@dataclass(frozen=True)
class Scaled:
    """Units of unit variance on the training rows: centred where dense, as columns where sparse.

    Attributes
    ----------
    values : np.ndarray or csc_matrix
        [rows, units].
    scaler : Standardiser
        Of the training rows.
    """

    values: np.ndarray | sp.csc_matrix
    scaler: Standardiser

    @classmethod
    def fit(cls, X: Matrix, train: np.ndarray) -> Scaled:
        """Scale rows by the mean and deviation of some of them.

        Parameters
        ----------
        X : np.ndarray or csr_matrix
            [rows, units].
        train : np.ndarray
            [rows] mask.
        """
        rows = np.flatnonzero(train)
        ones = np.ones((ROWS_AT_ONCE, 1))
        chunks = (rows[first : first + ROWS_AT_ONCE] for first in range(0, len(rows), ROWS_AT_ONCE))
        moments = ClassMoments.collect(((X[at], ones[: len(at)], ones[: len(at)]) for at in chunks), 1)
        scaler = Standardiser.from_moments(moments.mean[1, 0], moments.variance[1, 0], exact=False)
        if isinstance(X, np.ndarray):
            return cls(np.asfortranarray(scaler(X)), scaler)  # columns are what is read from now on
        inverse = np.where(scaler.constant, 0, 1 / scaler.scale).astype(np.float32)
        return cls((X @ sp.diags_array(inverse)).tocsc(), scaler)

    @property
    def usable(self) -> np.ndarray:
        """Units that vary."""
        return np.flatnonzero(~self.scaler.constant)
