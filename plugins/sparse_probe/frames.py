"""The tables of the result: all scores with p and q, and for each label the hook point that the select part chose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.plugins.sparse_probe.records import HookRecords
from workbench.plugins.sparse_probe.tasks import Task
from workbench.probes import METRICS, benjamini_hochberg, max_statistic_p_values, permutation_p_value
from workbench.probes.metrics import Metric, lower_is_better

LEVEL = 0.05  # false discovery rate at which a label counts as found
COLUMNS = [
    *("hook_point", "label", "probe", "k", "seed", "split"),
    *("n_rows", "n_groups", "n_positive_groups", "prevalence"),
    *("metric", "value", "lo", "hi", "floor", "control", "p", "p_max", "q"),
    *("C", "units", "converged", "seconds"),
]


def scores_frame(
    records: Mapping[str, HookRecords], others: HookRecords, tasks: Sequence[Task], ks: Sequence[int], seed: int
) -> pd.DataFrame:
    """Join the hook points' rows and add p-values.

    Returns
    -------
    DataFrame
        One row per hook point, label, probe, k, split and metric. On test rows of k-sparse probes: ``p`` against
        shuffled labels, ``p_max`` the same corrected for the number of hook points, ``q`` that corrected for the
        number of labels (Benjamini and Hochberg).
    """
    rows = [row for of_hook in (*records.values(), others) for row in of_hook.scores]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame["seed"] = seed
    frame["units"] = frame["units"].fillna("").astype(str)
    frame["converged"] = frame["converged"].map(lambda value: value is not False and value != 0)
    mine = (frame["probe"] == "k-sparse") & (frame["split"] == "test")
    for metric in METRICS:
        for k in ks:
            _add_p_values(frame, mine & (frame["metric"] == metric) & (frame["k"] == k), records, tasks, ks, metric, k)
    return frame


def _add_p_values(
    frame: pd.DataFrame,
    mine: pd.Series[bool],
    records: Mapping[str, HookRecords],
    tasks: Sequence[Task],
    ks: Sequence[int],
    metric: Metric,
    k: int,
) -> None:
    sign = -1 if lower_is_better(metric) else 1
    hook_points = list(records)
    observed = frame[mine].set_index(["label", "hook_point"])["value"]
    draws = np.stack([records[name].null[:, :, ks.index(k), METRICS.index(metric)] for name in hook_points], axis=2)
    if not draws.shape[1]:
        return
    p, p_max = {}, {}
    for task, null in zip(tasks, sign * draws, strict=True):
        values = sign * np.array([observed[task.name, name] for name in hook_points])
        corrected = max_statistic_p_values(values, null)
        for at, name in enumerate(hook_points):
            p[task.name, name] = permutation_p_value(values[at], null[:, at])
            p_max[task.name, name] = corrected[at]
    q: dict[tuple[str, str], float] = {}
    for name in hook_points:
        of_labels = benjamini_hochberg([p_max[task.name, name] for task in tasks])
        q |= {(task.name, name): value for task, value in zip(tasks, of_labels, strict=True)}
    keys = list(zip(frame.loc[mine, "label"], frame.loc[mine, "hook_point"], strict=True))
    for column, values_of in (("p", p), ("p_max", p_max), ("q", q)):
        frame.loc[mine, column] = [values_of[key] for key in keys]


def best_frame(scores: pd.DataFrame, tasks: Sequence[Task], ks: Sequence[int], metric: Metric) -> pd.DataFrame:
    """For each label and k take the hook point that is best on the select documents, and what it scores on the test.

    Returns
    -------
    DataFrame
        One row per label and k. ``q`` is over labels, of p-values corrected for hook points.
    """
    ours = scores[scores["metric"] == metric]
    sign = -1 if lower_is_better(metric) else 1
    rows = []
    for task in tasks:
        mine = ours[ours["label"] == task.name]
        identity = _value(mine, "token identity", "", 0)
        for k in ks:
            probes = mine[(mine["probe"] == "k-sparse") & (mine["k"] == k)]
            select = probes[probes["split"] == "select"]
            hook_point = select.iloc[int(np.argmax(sign * select["value"].to_numpy()))]["hook_point"]
            test = probes[(probes["split"] == "test") & (probes["hook_point"] == hook_point)].iloc[0]
            rows.append(
                {
                    "label": task.name,
                    "k": k,
                    "hook_point": hook_point,
                    "units": test["units"],
                    "metric": metric,
                    **{name: test[name] for name in ("value", "lo", "hi", "floor")},
                    "shuffled": _value(mine, "shuffled labels", hook_point, k),
                    "random_units": _value(mine, "random units", hook_point, k),
                    "token_identity": identity,
                    "dense": _value(mine, "dense", hook_point),
                    "control": test["control"],
                    "prevalence": test["prevalence"],
                    "prevalence_store": task.prevalence,
                    "n_positive_groups": test["n_positive_groups"],
                    "p": test["p_max"],
                }
            )
    best = pd.DataFrame(rows)
    best["q"] = np.nan
    for k in ks:
        at = best["k"] == k
        best.loc[at, "q"] = benjamini_hochberg(best.loc[at, "p"].to_numpy(dtype=float))
    return best


def _value(scores: pd.DataFrame, probe: str, hook_point: str, k: int | None = None) -> float:
    at = (scores["probe"] == probe) & (scores["hook_point"] == hook_point) & (scores["split"] == "test")
    found = scores[at if k is None else at & (scores["k"] == k)]["value"]
    return float(found.iloc[0]) if len(found) else float("nan")


def labels_found(best: pd.DataFrame) -> int:
    """Count the labels that the largest k reads better than shuffled labels, at a false discovery rate of 5 %."""
    q = best[best["k"] == best["k"].max()]["q"]
    return int((q <= LEVEL * (1 + 1e-9)).sum())  # the smallest q may miss the level by rounding alone


def too_few_shuffles(n_shuffles: int, n_labels: int) -> str:
    """Say what cannot be found with so few shuffles, as p is never below 1 / (shuffles + 1); "" if they are enough.

    Parameters
    ----------
    n_shuffles : int
        Permutations of each label; 0 for none.
    n_labels : int
        Labels probed, for which p-values are corrected.
    """
    if not n_shuffles:
        return "without shuffles there are no p-values, and no label can be found"
    needed = round(n_labels / LEVEL) - 1
    if n_shuffles >= needed:
        return ""
    together = math.ceil(round(n_labels / LEVEL) / (n_shuffles + 1))  # so many smallest p-values have no larger q
    tested = f"with {n_shuffles} shuffles and {n_labels} label{'s' * (n_labels > 1)}"
    advice = f"at least {needed} are needed (baselines.shuffles)"
    if together > n_labels:
        return f"{tested}, nothing can be found at 5 %, however good the scores are: {advice}"
    return f"{tested}, fewer than {together} labels can not be found at 5 %, however good their scores are: {advice}"


def stays_at_floor(scores: pd.DataFrame, metric: Metric) -> pd.Series[bool]:
    """Tell for each interval after permuting the rows whether it reaches down to the floor: the negative control.

    It may lie below: the floor of F1 is what always saying yes gives, and no probe of noise gets there.
    """
    null = scores[(scores["probe"] == "permuted rows") & (scores["metric"] == metric)]
    return null["hi"] >= null["floor"] if lower_is_better(metric) else null["lo"] <= null["floor"]


def above_floor(scores: pd.DataFrame, metric: Metric) -> list[str]:
    """Name the labels whose shuffled draws lie beyond the floor somewhere: documents differ, and units know them."""
    null = scores[(scores["probe"] == "shuffled labels") & (scores["metric"] == metric)]
    beyond = null["hi"] < null["floor"] if lower_is_better(metric) else null["lo"] > null["floor"]
    return list(null[beyond]["label"].unique())
