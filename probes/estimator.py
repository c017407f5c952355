"""What all probes share: scikit-learn's interface, checks of what they are given, weights per original unit."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from workbench.probes.errors import ProbeError
from workbench.probes.weights import Standardiser


class LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A linear readout of standardised units.

    Subclasses fit in `_fit_standardised`. Units are standardised by the training rows' mean and deviation; constant
    ones are left out. `coef_` and `intercept_` are those for units as given.

    Attributes
    ----------
    classes_ : np.ndarray
        [classes] labels, sorted; the last of two is the positive class.
    coef_ : np.ndarray
        [1, units] for two classes, else [classes, units]; zero where a unit is not used.
    intercept_ : np.ndarray
        [1] or [classes].
    standardiser_ : Standardiser
        Of the training rows.
    """

    _binary_only = False

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = not self._binary_only
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows.

        Parameters
        ----------
        X : array, [rows, units]
            Activations.
        y : array, [rows]
            Labels of at least two classes (exactly two for probes that are binary).

        Returns
        -------
        self

        Raises
        ------
        ProbeError
            On one class, or more than two where the probe is binary.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ProbeError(f"y has one class, {self.classes_[0]!r}: a probe needs two")
        if self._binary_only and n_classes > 2:
            raise ProbeError(
                f"Only binary classification is supported by {type(self).__name__}: y has {n_classes} classes; "
                f"wrap it in sklearn.multiclass.OneVsRestClassifier"
            )
        self.standardiser_ = Standardiser.fit(X)
        coef, intercept = self._fit_standardised(self.standardiser_(X), codes)
        self.coef_ = np.atleast_2d(coef) / self.standardiser_.scale
        self.coef_[:, self.standardiser_.constant] = 0
        self.intercept_ = np.atleast_1d(intercept) - self.coef_ @ self.standardiser_.mean
        return self

    def _fit_standardised(self, Z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients [(classes,) units] and intercepts for standardised rows and class numbers."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores: [rows] for two classes (above 0 is the second one), else [rows, classes]."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the likelier class of each row."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[chosen])


class ProbabilityMixin:
    """Probabilities, for readouts whose score is a log odds."""

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return [rows, classes] probabilities, under classes that weigh the same."""
        scores = self.decision_function(X)  # type: ignore[attr-defined]
        if scores.ndim == 1:
            scores = np.column_stack([np.zeros_like(scores), scores])
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
