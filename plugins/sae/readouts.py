"""What can be read from a dictionary's latents: sparse probes of labels, and a dense probe beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from workbench.plugins.sae.questions import Question
from workbench.probes import LogisticProbe, Standardiser, balanced_weights, evaluate
from workbench.probes.linear import NEWTON_UNITS
from workbench.probes.newton import LogisticFit, fit_logistic

MOST_LATENTS = 10  # a probe may look at
TOL = 1e-3  # of Newton's decrement per row: of directions and ranks no more is asked


@dataclass(frozen=True)
class Dense:
    """A probe on all of the activation.

    Attributes
    ----------
    score : float array [test rows]
        Log odds.
    direction : float array [width]
        In the activation's own units.
    """

    score: NDArray[np.float64]
    direction: NDArray[np.float64]


@dataclass(frozen=True)
class Sparse:
    """Probes on latents of one question, each with a latent more than the last.

    Attributes
    ----------
    latents : list of int
        In the order in which they were added; only such as are more active where the answer is yes.
    scores : list of float array [test rows]
        Log odds of the probe on the first 1, 2, … of them.
    f1 : list of float
        Of each.
    """

    latents: list[int]
    scores: list[NDArray[np.float64]]
    f1: list[float]

    def score(self, k: int) -> NDArray[np.float64] | None:
        """Return the log odds of the probe on at most k latents; None if there is no latent to read from."""
        return self.scores[min(k, len(self.scores)) - 1] if self.scores else None


def dense_probe(question: Question, x_fit: NDArray[np.float32], x_test: NDArray[np.float32]) -> Dense:
    """Fit a balanced logistic probe on rows [rows, width] of what the dictionary reads."""
    x, y = x_fit[question.fit], question.y_fit
    if x.shape[1] > NEWTON_UNITS:
        probe = LogisticProbe().fit(x, y)
        coef, intercept = np.asarray(probe.coef_, np.float64).ravel(), float(probe.intercept_[0])
    else:
        scaler = Standardiser.fit(x)
        found = fit_logistic(scaler(x), y, balanced_weights(y), tol=TOL)
        coef = np.where(scaler.constant, 0.0, found.coef / scaler.scale)
        intercept = found.intercept - float(coef @ scaler.mean)
    return Dense(x_test[question.test] @ coef + intercept, coef)


def sparse_probes(
    question: Question, codes_fit: sp.csr_matrix, codes_test: sp.csr_matrix, most: int = MOST_LATENTS
) -> Sparse:
    """Fit a question's probes on activations of latents [rows, latents]; see `chosen_latents`."""
    fit, test = codes_fit[question.fit].tocsc(), codes_test[question.test].tocsc()
    chosen, fits = chosen_latents(fit, question.y_fit, most)
    scores = [probe(columns(test, chosen[:number])).astype(np.float64) for number, probe in enumerate(fits, start=1)]
    return Sparse(chosen, scores, [evaluate(question.y_test, score)["f1"] for score in scores])


def chosen_latents(codes: sp.csc_matrix, y: NDArray[np.bool_], most: int) -> tuple[list[int], list[LogisticFit]]:
    """Choose latents one by one: each time the one along which the probe's loss falls most steeply, then refit.

    Only latents that speak for a yes are taken, as a label's latents are looked for, not those of what excludes it
    (Chanin et al. 2024).

    Parameters
    ----------
    codes : csc_matrix [rows, latents]
        Activations.
    y : bool array [rows]
        Answers.
    most : int
        How many latents, at most.
    """
    weights = balanced_weights(y)
    squares = np.asarray(codes.multiply(codes).mean(0)).ravel() - np.asarray(codes.mean(0)).ravel() ** 2
    spread = np.sqrt(np.maximum(squares, 0))
    usable = spread > 0
    log_odds = np.zeros(len(y))
    chosen: list[int] = []
    fits: list[LogisticFit] = []
    while len(chosen) < most:
        left = weights * (y - 1 / (1 + np.exp(-log_odds)))
        slope = np.where(usable, codes.T @ left, 0.0) / np.where(usable, spread, 1.0)
        slope[chosen] = 0.0
        best = int(slope.argmax())
        if slope[best] <= 0:
            break
        chosen.append(best)
        Z = columns(codes, chosen)
        scale = Z.std(0)
        fits.append(unscaled(fit_logistic(Z / scale, y, weights, tol=TOL), scale))
        log_odds = fits[-1](Z).astype(np.float64)
    return chosen, fits


def unscaled(fit: LogisticFit, scale: NDArray[np.float64]) -> LogisticFit:
    """Return a fit on columns that were divided by a scale as one on the columns themselves."""
    return LogisticFit(fit.coef / scale, fit.intercept, fit.loss, fit.n_iter, fit.converged)


def columns(codes: sp.csc_matrix, latents: Sequence[int]) -> NDArray[np.float64]:
    """Return some latents' activations, dense [rows, n]."""
    return np.asarray(codes[:, list(latents)].toarray(), np.float64)
