"""Linear probes on all units: logistic, support vectors, linear discriminant, mean difference."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.linalg
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted

from workbench.probes.errors import ProbeError
from workbench.probes.estimator import LinearClassifier, ProbabilityMixin
from workbench.probes.newton import fit_logistic
from workbench.probes.weights import balanced_weights

NEWTON_UNITS = 512  # above, a Newton step costs more than it saves


class LogisticProbe(ProbabilityMixin, LinearClassifier):
    """Balanced logistic regression with an L2 penalty; softmax for more than two classes.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty on standardised units: `Σ w_i·ln(1 + exp(-y_i·f_i)) + ‖coef‖²/(2C)`.
    max_iter : int, default=1000
        L-BFGS iterations; two classes and up to 512 units are solved by Newton's method instead, exactly.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 1000) -> None:
        self.C = C
        self.max_iter = max_iter

    def _fit_standardised(self, Z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.C > 0:
            raise ProbeError(f"C={self.C}: must be above 0")
        if len(self.classes_) == 2 and Z.shape[1] <= NEWTON_UNITS:
            y = codes.astype(bool)
            fit = fit_logistic(Z, y, balanced_weights(y), self.C, max_iter=self.max_iter)
            self.n_iter_ = fit.n_iter
            return fit.coef, np.asarray(fit.intercept)
        model = LogisticRegression(C=self.C, class_weight="balanced", max_iter=self.max_iter, tol=1e-6).fit(Z, codes)
        self.n_iter_ = int(model.n_iter_.max())
        return model.coef_, model.intercept_


class SVMProbe(LinearClassifier):
    """Balanced linear support vectors with squared hinge loss; one against the rest for more than two classes.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty on standardised units.
    max_iter : int, default=10000
        Of liblinear's primal solver.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 10_000) -> None:
        self.C = C
        self.max_iter = max_iter

    def _fit_standardised(self, Z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.C > 0:
            raise ProbeError(f"C={self.C}: must be above 0")
        model = LinearSVC(C=self.C, class_weight="balanced", dual=False, max_iter=self.max_iter).fit(Z, codes)
        self.n_iter_ = int(np.max(model.n_iter_))
        return model.coef_, model.intercept_


class LDAProbe(ProbabilityMixin, LinearClassifier):
    """Linear discriminant with the pooled covariance inside classes, shrunk after Ledoit & Wolf 2004.

    `coef = S⁻¹(μ1 − μ0)`, `intercept = −½(μ1 + μ0)ᵀcoef + ln(π1/π0)`: unlike the other probes it knows how common
    the classes are.

    Attributes
    ----------
    shrinkage_ : float
        Between 0 (the covariance as measured) and 1 (a multiple of the identity).
    prior_ : np.ndarray
        [classes] shares of the training rows.
    """

    def _fit_standardised(self, Z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_classes = len(self.classes_)
        prior = self.prior_ = np.bincount(codes) / len(codes)
        means = np.stack([Z[codes == each].mean(axis=0, dtype=np.float64) for each in range(n_classes)])
        within = Z - means[codes]
        covariance = within.T @ within / len(within)
        self.shrinkage_ = float(ledoit_wolf_shrinkage(within, assume_centered=True)) if Z.shape[1] > 1 else 0.0
        target = np.trace(covariance) / len(covariance)
        shrunk = (1 - self.shrinkage_) * covariance + self.shrinkage_ * target * np.eye(len(covariance))
        coef = means @ scipy.linalg.pinvh(shrunk)
        intercept = -0.5 * np.einsum("cu,cu->c", coef, means) + np.log(prior)
        if n_classes == 2:
            return coef[1] - coef[0], np.asarray(intercept[1] - intercept[0])
        return coef, intercept


class MeanDifferenceProbe(LinearClassifier):
    """The direction from the mean of one class to that of the other: `coef = μ1 − μ0` of standardised units.

    The threshold lies half-way between the projected class means until `tune_threshold` sets it on other rows.
    """

    _binary_only = True

    def _fit_standardised(self, Z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        negative, positive = (Z[codes == each].mean(axis=0, dtype=np.float64) for each in (0, 1))
        coef = positive - negative
        return coef, np.asarray(-coef @ (positive + negative) / 2)

    def tune_threshold(self, X: Any, y: Any) -> Self:
        """Move the threshold to where balanced accuracy on other rows (the select part) is best.

        Parameters
        ----------
        X : array, [rows, units]
            Rows that were not fitted on.
        y : array, [rows]
            Their labels, both classes.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        scores = self.decision_function(X)
        positive = np.asarray(y) == self.classes_[1]
        share = balanced_weights(positive)
        order = np.argsort(scores, kind="stable")
        # errors with the threshold above each score in turn, positives below it and negatives above it being wrong
        change = np.where(positive, share, -share)[order]
        errors = share[~positive].sum() + np.concatenate([[0.0], np.cumsum(change)])
        ordered = scores[order]
        middles = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
        distinct = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
        best = np.flatnonzero(distinct)[np.argmin(errors[distinct])]
        self.intercept_ = self.intercept_ - middles[best]
        return self
