"""Layer by layer and position by position: where circles can be read, and where moving a point moves the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.context import Context
from workbench.labelled_rows import read_flat
from workbench.plugins.circular import CircularConfig
from workbench.plugins.circular.bench import Bench, Position, draw_pairs, outcome_row, toward
from workbench.plugins.circular.prompts import Prompts
from workbench.probes.circles import CircleProbe, r_squared, regressed_circle, turns
from workbench.probes.rings import class_means, fit_rings
from workbench.probes.statistics import bootstrap_weights, percentile_interval

POSITIONS: tuple[Position, ...] = ("operand", "answer")
ANSWER_PCA = 20


def probe_rows(
    context: Context, hook_points: Sequence[str], prompts: Prompts, frequencies: Sequence[int]
) -> list[dict[str, Any]]:
    """Fit circle probes of operand and answer at each hook point and position; score them on the scored prompts.

    A probe of the same label permuted over the fitting problems stands beside each: it should find nothing.
    """
    config: CircularConfig = context.config
    fit, score = np.flatnonzero(~prompts.scoring), np.flatnonzero(prompts.scoring)
    members, group = np.unique(prompts.group[score], return_inverse=True)
    weights = bootstrap_weights(len(members), config.draws, context.rng(f"problems {prompts.name}"))
    rng = context.rng(f"shuffled {prompts.name}")
    by_problem = rng.permutation(int(prompts.group.max()) + 1)[prompts.group]
    found = []
    for hook_point in hook_points:
        for position in POSITIONS:
            rows = prompts.operand_row if position == "operand" else prompts.answer_row
            X = read_flat(context.store, hook_point, rows).astype(np.float64)
            for what, classes in (("operand", prompts.a), ("answer", prompts.c)):
                for frequency in frequencies:
                    probe = CircleProbe(prompts.period, frequency, config.intervene.pca)
                    read = probe.fit(X[fit], classes[fit]).transform(X[score])
                    truth = turns(classes[score], prompts.period, frequency)
                    null = probe.fit(X[fit], by_problem[fit] % prompts.period)
                    lo, hi = percentile_interval(_r2_draws(read, truth, group, weights))
                    found.append(
                        {
                            "label": prompts.name,
                            "hook_point": hook_point,
                            "position": position,
                            "circle_of": what,
                            "frequency": frequency,
                            "r2": float(r_squared(read, truth).mean()),
                            "lo": lo,
                            "hi": hi,
                            "shuffled": null.score(X[score], by_problem[score] % prompts.period),
                            "n": len(score),
                            "n_problems": len(members),
                        }
                    )
    return found


def _r2_draws(read: np.ndarray, truth: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return R² (mean of cosine and sine) in each resample of problems."""
    sums = [
        np.stack([np.bincount(group, weights=column) for column in values.T])
        for values in (np.square(truth - read), np.square(truth), truth)
    ]
    count = weights @ np.bincount(group)
    left, square, total = (weights @ each.T for each in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((1 - left / (square - np.square(total) / count[:, None])).mean(axis=1))


def profile_rows(
    context: Context, hook_points: Sequence[str], prompts: Prompts, right: np.ndarray, frequencies: Sequence[int]
) -> list[dict[str, Any]]:
    """Move the class mean of operand or answer at each hook point and position, in a circle's plane and in all rings.

    What is put in place is fitted on the rows there, by the label: this is where circles *can* be moved, whether or not
    the dictionary has them.
    """
    config: CircularConfig = context.config
    fit = np.flatnonzero(~prompts.scoring)
    usable = np.flatnonzero(right & prompts.scoring)
    n = max(1, config.intervene.runs // 2)
    prompt, target = draw_pairs(prompts, usable, n, context.rng(f"profile {prompts.name}"))
    members, group = np.unique(prompts.group[prompt], return_inverse=True)
    weights = bootstrap_weights(len(members), config.draws, context.rng(f"problems {prompts.name}"))
    found = []
    with context.progress(len(hook_points) * len(POSITIONS), "places", f"{prompts.name}, profile") as ticker:
        for hook_point in hook_points:
            for position in POSITIONS:
                rows, classes = (
                    (prompts.operand_row, prompts.a) if position == "operand" else (prompts.answer_row, prompts.c)
                )
                X = read_flat(context.store, hook_point, rows[fit]).astype(np.float64)
                rings = fit_rings(class_means(X, classes[fit], prompts.period))
                means = rings.points(np.arange(prompts.period))
                bench = Bench(context.subject(), hook_point, prompts, prompt, target, position)
                values = {
                    "all, from a run with the other operand": bench.swapped,
                    "all rings": bench.x + toward(bench.x, means[bench.goal], rings.basis()),
                }
                for frequency in frequencies:
                    if position == "answer":
                        b = (prompts.c - prompts.a)[fit] % prompts.period
                        circle = regressed_circle(
                            X, prompts.a[fit], b, prompts.c[fit], prompts.period, k=ANSWER_PCA, frequency=frequency
                        )
                    else:
                        probe = CircleProbe(prompts.period, frequency, config.intervene.pca)
                        circle = probe.fit(X, classes[fit]).circle_
                    values[f"circle probe, frequency {frequency}"] = circle.place(bench.x, bench.goal)
                for way, value in values.items():
                    about = {"label": prompts.name, "hook_point": hook_point, "position": position, "way": way}
                    found.append({**about, **outcome_row(bench.run(value), group, weights)})
                ticker.advance()
    return found
