"""The k-sparse probe: a logistic readout that may look at k units only."""

from __future__ import annotations

import numpy as np

from workbench.probes.errors import ProbeError
from workbench.probes.estimator import LinearClassifier, ProbabilityMixin
from workbench.probes.newton import fit_logistic
from workbench.probes.optimal import best_subset
from workbench.probes.selectors import N_OPTIMAL, SELECTORS, Selector, columns, rank, select_units, unit_scores
from workbench.probes.weights import balanced_weights


class KSparseProbe(ProbabilityMixin, LinearClassifier):
    """Balanced logistic probe on the k units that a selector chooses (Gurnee+ 2305.01610).

    Parameters
    ----------
    k : int, default=1
        Units kept, 1 <= k <= n_units.
    selector : str, default="standardised"
        How they are chosen: one of `workbench.probes.SELECTORS`.
    C : float, default=1.0
        Inverse strength of the L2 penalty on standardised units.

    Attributes
    ----------
    support_ : np.ndarray
        [k] units, best first, ties by index.
    gap_ : float
        With ``optimal``: share by which the squared loss may exceed the smallest one for any k of the 50 units with
        the largest standardised difference; 0 is a certificate. NaN with other selectors.
    n_iter_ : int
        Newton steps.
    converged_ : bool
        False if they ran out.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(200, 50)), np.arange(200) % 2
    >>> X[:, 7] += 3 * y
    >>> KSparseProbe(k=1).fit(X, y).support_.tolist()
    [7]
    """

    _binary_only = True

    def __init__(self, k: int = 1, selector: Selector = "standardised", C: float = 1.0) -> None:
        self.k = k
        self.selector = selector
        self.C = C

    def _fit_standardised(self, Z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.selector not in SELECTORS:
            raise ProbeError(f"no selector {self.selector!r}; there are {', '.join(SELECTORS)}")
        y = codes.astype(bool)
        weights = balanced_weights(y)
        self.gap_ = float("nan")
        if self.selector == "optimal":
            if not 1 <= self.k <= min(N_OPTIMAL, Z.shape[1]):
                raise ProbeError(f"k={self.k}: must be between 1 and {min(N_OPTIMAL, Z.shape[1])} for 'optimal'")
            candidates = rank(unit_scores(Z, y))[:N_OPTIMAL]
            found = best_subset(columns(Z, candidates), y, weights, self.k)
            self.support_, self.gap_ = candidates[found.support], found.gap if not found.certified else 0.0
        else:
            scale = self.standardiser_.scale
            self.support_ = select_units(Z, y, [self.k], self.selector, scale=scale, C=self.C)[self.k]
        fit = fit_logistic(columns(Z, self.support_), y, weights, self.C)
        self.n_iter_, self.converged_ = fit.n_iter, fit.converged
        coef = np.zeros(Z.shape[1])
        coef[self.support_] = fit.coef
        return coef, np.asarray(fit.intercept)
