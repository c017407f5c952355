"""A main task's true positive rates with and without the erased label, its classifier retrained on what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.context import Context
from workbench.errors import UserError
from workbench.plugins.nullspace.fresh import erased_rows
from workbench.plugins.nullspace.tasks import LEAST_ROWS, Labelled, Task
from workbench.probes import LogisticProbe, Projection, bootstrap_weights, rate_gaps
from workbench.probes.inlp import predict_evenly
from workbench.probes.statistics import percentile_interval

DRAWS = 200
HEAD_C = 1e-2


def bias_rows(
    context: Context, task: Task, main: Labelled, X: np.ndarray, ways: Mapping[str, Projection | None]
) -> list[dict[str, Any]]:
    """Return one row per way of erasing and class of the main task, and one for all classes together.

    Raises
    ------
    UserError
        If fewer than two classes of the main task have enough training rows.
    """
    train, test = task.at(0), task.at(2)
    codes = main.codes[task.rows]
    counts = np.bincount(codes[train], minlength=len(main.classes))
    if (counts >= LEAST_ROWS).sum() < 2:
        raise UserError(f"main={main.name}: fewer than two classes have {LEAST_ROWS} training rows")
    fitted_on = train[np.isin(codes[train], np.flatnonzero(counts >= LEAST_ROWS))]
    groups, n_groups = task.documents(2)
    weights = bootstrap_weights(n_groups, min(DRAWS, context.config.draws), context.rng(f"bias {main.name}"))
    protected = task.codes[test] == 1
    rows: list[dict[str, Any]] = []
    for method, erase in ways.items():
        Z = X if erase is None else erased_rows(erase, X)
        head = LogisticProbe(C=HEAD_C).fit(Z[fitted_on], codes[fitted_on])
        predicted = predict_evenly(head, Z[test])
        gaps = rate_gaps(codes[test], predicted, protected, len(main.classes))
        draws = [rate_gaps(codes[test], predicted, protected, len(main.classes), each[groups]).rms for each in weights]
        hits = np.bincount(groups, weights=codes[test] == predicted, minlength=n_groups)
        sizes = np.bincount(groups, minlength=n_groups)
        lo, hi = percentile_interval(np.array(draws))
        accuracy = percentile_interval((weights @ hits) / (weights @ sizes))
        rows.append(
            {
                "method": method,
                "class": "all",
                "n_with": int(protected.sum()),
                "n_without": int((~protected).sum()),
                "rms": gaps.rms,
                "lo": lo,
                "hi": hi,
                "correlation": gaps.correlation,
                "accuracy": float(hits.sum() / sizes.sum()),
                "accuracy_lo": accuracy[0],
                "accuracy_hi": accuracy[1],
            }
        )
        rows += [
            {
                "method": method,
                "class": title,
                "n_with": int(gaps.n_with[each]),
                "n_without": int(gaps.n_without[each]),
                "rate_with": float(gaps.rate_with[each]),
                "rate_without": float(gaps.rate_without[each]),
                "gap": float(gaps.gap[each]),
            }
            for each, title in enumerate(main.classes)
            if gaps.n_with[each] + gaps.n_without[each] > 0
        ]
    return rows
