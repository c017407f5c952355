"""The projections of a task at one hook point: those asked for, and random ones of equal rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.multiclass import OneVsRestClassifier

from workbench.context import Context
from workbench.errors import UserError
from workbench.plugins.nullspace import NullspaceConfig
from workbench.plugins.nullspace.tasks import LEAST_ROWS, Labelled, Task
from workbench.probes import (
    Held,
    Inlp,
    LDAProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    ProbeError,
    Projection,
    SVMProbe,
    bootstrap_weights,
    fit_inlp,
    fit_leace,
    fit_mean_projection,
    label_moments,
    random_projection,
)
from workbench.provenance import recorded_model

STOP_DRAWS = 500


def classifier_of(config: NullspaceConfig, n_classes: int) -> Any:
    """Return the estimator that a configuration names."""
    if config.classifier == "mean-difference":
        return MeanDifferenceProbe() if n_classes == 2 else OneVsRestClassifier(MeanDifferenceProbe())
    if config.classifier == "lda":
        return LDAProbe()
    return LogisticProbe(C=config.C) if config.classifier == "logistic" else SVMProbe(C=config.C)


def fit_erasures(
    context: Context, hook_point: str, task: Task, X: np.ndarray, main: Labelled | None
) -> tuple[dict[str, Projection], Inlp | None]:
    """Fit every method on the training rows of X [rows of the task, units].

    Raises
    ------
    UserError
        If the probes refuse the rows.
    """
    config: NullspaceConfig = context.config
    methods = (config.method,) if isinstance(config.method, str) else config.method
    train = task.at(0)
    found: dict[str, Projection] = {}
    inlp = None
    try:
        moments = label_moments(X[train], task.codes[train], task.n_classes)
        for method in methods:
            about = provenance(context, hook_point, task.label.name, method)
            if method == "inlp":
                inlp = run_inlp(context, task, X, task.codes, main)
                found[method] = inlp.projection.described(**about)
            elif method == "leace":
                found[method] = fit_leace(moments, **about)
            else:
                erase = fit_mean_projection(moments, **about)
                origin = Projection(erase.removed, erase.readout, np.zeros(erase.n_units), about=about)
                found[method] = erase if config.keep_mean else origin
    except ProbeError as error:
        raise UserError(f"{hook_point}, label {task.label.name!r}: {error}") from error
    return found, inlp


def run_inlp(context: Context, task: Task, X: np.ndarray, codes: np.ndarray, main: Labelled | None = None) -> Inlp:
    """Run iterative nullspace projection: fitted on train, stopped on select.

    Parameters
    ----------
    context : Context
        Of the run.
    task : Task
        Says which rows are of which part.
    X, codes : np.ndarray
        [rows of the task, units] and [rows of the task] classes, the task's own or permuted ones.
    main : Labelled, optional
        Rounds take the rows of one of its classes at a time.
    """
    config: NullspaceConfig = context.config
    train, select = task.at(0), task.at(1)
    groups, n_groups = task.documents(1)
    weights = bootstrap_weights(n_groups, STOP_DRAWS, context.rng(f"stop {task.label.name}"))
    return fit_inlp(
        X[train],
        codes[train],
        Held(X[select], codes[select], groups, weights),
        classifier=classifier_of(config, task.n_classes),
        max_rounds=config.max_rounds,
        margin=config.margin,
        mean=X[train].mean(axis=0, dtype=np.float64) if config.keep_mean else None,
        rows_of_round=None if main is None else _rows_by_class(context, task, main),
        progress=lambda done: context.log.info(
            "inlp, %s: rank %d, balanced accuracy on select documents %.3f [%.3f, %.3f]",
            task.label.name, done.rank, *done.balanced_accuracy,
        ),
    )  # fmt: skip


def _rows_by_class(context: Context, task: Task, main: Labelled) -> Any:
    """Return for each round the training rows of a class of the main task, drawn uniformly."""
    of_main = main.codes[task.rows[task.at(0)]]
    codes = task.codes[task.at(0)]
    usable = [
        each
        for each in range(len(main.classes))
        if np.bincount(codes[of_main == each], minlength=task.n_classes).min() >= LEAST_ROWS
    ]
    if not usable:
        raise UserError(
            f"by_class: no class of {main.name!r} has {LEAST_ROWS} rows of each class of {task.label.name!r}"
        )
    drawn = context.rng(f"by_class {task.label.name}").choice(usable, size=context.config.max_rounds + 1)
    return lambda number: of_main == drawn[number]


def provenance(context: Context, hook_point: str, label: str, method: str) -> dict[str, str]:
    """Return what a saved projection says of itself."""
    model = recorded_model(context.store)
    return {
        "hook_point": hook_point,
        "label": label,
        "method": method,
        "subject": model.address or "",
        "subject_fingerprint": model.fingerprint or "",
        "seed": str(context.seed),
    }


def random_controls(
    context: Context, erasures: Mapping[str, Projection], mean: np.ndarray, hook_point: str
) -> dict[str, list[Projection]]:
    """Return for each method random projections of its rank."""
    rng = context.rng(f"random projections {hook_point}")
    return {
        method: [
            random_projection(erase.n_units, erase.rank, rng, mean, hook_point=hook_point, method=f"random {method}")
            for _ in range(context.config.controls)
        ]
        for method, erase in erasures.items()
    }
