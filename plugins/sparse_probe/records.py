"""Rows of the tables, from what was measured at one hook point; kept on disk so that a run can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.plugins.sparse_probe.ceiling import Dense
from workbench.plugins.sparse_probe.measure import Fitted, Measurement
from workbench.plugins.sparse_probe.tasks import Task
from workbench.probes import METRICS, Interval, evaluate, floor, group_intervals
from workbench.probes.metrics import Metric

Record = dict[str, Any]


@dataclass
class HookRecords:
    """What was measured at one hook point.

    Attributes
    ----------
    scores, units : list of dict
        Rows of the two tables.
    null : np.ndarray
        [tasks, draws, ks, metrics] test metrics with shuffled labels.
    """

    scores: list[Record] = field(default_factory=list)
    units: list[Record] = field(default_factory=list)
    null: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 0)))

    def save(self, folder: Path) -> None:
        """Write into a folder that is there whole or not at all."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "records.json").write_text(json.dumps({"scores": self.scores, "units": self.units}), encoding="utf-8")
        np.save(part / "null.npy", self.null)
        part.rename(folder)

    @classmethod
    def load(cls, folder: Path) -> HookRecords:
        """Read what `save` wrote."""
        lists = json.loads((folder / "records.json").read_text(encoding="utf-8"))
        return cls(lists["scores"], lists["units"], np.load(folder / "null.npy", allow_pickle=False))


def score_rows(
    task: Task, values: Mapping[Metric, float | Interval], part: int, controls: Mapping[Metric, float], **common: Any
) -> list[Record]:
    """Return one row per metric; `common` fills the columns that all of them share."""
    at = task.at(part)
    y = task.y[at]
    shape = {
        "n_rows": int(at.sum()),
        "n_groups": len(np.unique(task.groups[at])),
        "n_positive_groups": task.n_positive_groups(part),
        "prevalence": float(y.mean()),
    }
    rows = []
    for metric in METRICS:
        value = values[metric]
        interval = value if isinstance(value, Interval) else Interval(float(value), float("nan"), float("nan"))
        rows.append(
            {
                "label": task.name,
                "split": ("train", "select", "test")[part],
                **shape,
                "metric": metric,
                **interval._asdict(),
                "floor": floor(metric, shape["prevalence"]),
                "control": float(controls.get(metric, float("nan"))),
                **common,
            }
        )
    return rows


def sparse_rows(task: Task, hook_point: str, found: Mapping[int, Fitted]) -> list[Record]:
    """Return the rows of k-sparse probes, on select and test documents."""
    rows = []
    for k, fitted in found.items():
        common = {
            "hook_point": hook_point,
            "probe": "k-sparse",
            "k": k,
            "C": fitted.C,
            "units": ", ".join(map(str, fitted.support.tolist())),
            "converged": fitted.fit.converged,
            "seconds": fitted.seconds,
        }
        rows += score_rows(task, dict(fitted.select), 1, {}, **common)
        rows += score_rows(task, dict(fitted.test), 2, fitted.control, **common)
    return rows


def dense_rows(task: Task, hook_point: str, n_units: int, dense: Dense, weights: np.ndarray) -> list[Record]:
    """Return the rows of the probe on all units."""
    at = task.at(2)
    groups = np.unique(task.groups[at], return_inverse=True)[1]
    common = {
        "hook_point": hook_point,
        "probe": "dense",
        "k": n_units,
        "C": dense.C,
        "converged": dense.converged,
        "seconds": dense.seconds,
    }
    select = evaluate(task.y[task.at(1)], dense.select)
    test = group_intervals(task.y[at], dense.test, groups, weights)
    return score_rows(task, dict(select), 1, {}, **common) + score_rows(task, dict(test), 2, {}, **common)


def drawn_rows(task: Task, hook_point: str, probe: str, ks: Sequence[int], draws: np.ndarray) -> list[Record]:
    """Return the rows of a baseline of many draws [draws, ks, metrics]: mean, and where 95 % of the draws lie."""
    rows = []
    for at, k in enumerate(ks):
        values: dict[Metric, Interval] = {}
        for place, metric in enumerate(METRICS):
            known = draws[:, at, place][~np.isnan(draws[:, at, place])]
            lo, hi = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
            values[metric] = Interval(float(known.mean()) if len(known) else float("nan"), float(lo), float(hi))
        rows += score_rows(task, dict(values), 2, {}, hook_point=hook_point, probe=probe, k=k)
    return rows


def unit_rows(measurement: Measurement, hook_point: str, found: Mapping[int, Fitted]) -> list[Record]:
    """Return which units were chosen, and what each tells alone on the test documents."""
    task, scaler, test = measurement.task, measurement.units.scaler, measurement.parts[2]
    alone: dict[int, float] = {}
    rows = []
    for k, fitted in found.items():
        Z = measurement.rows_of(fitted.support)[test]
        for place, unit in enumerate(fitted.support.tolist()):
            if unit not in alone:
                alone[unit] = evaluate(task.y[test], Z[:, place])["auc"]
            rows.append(
                {
                    "hook_point": hook_point,
                    "label": task.name,
                    "k": k,
                    "rank": place + 1,
                    "unit": unit,
                    "coefficient": float(fitted.fit.coef[place] / scaler.scale[unit]),
                    "coefficient_standardised": float(fitted.fit.coef[place]),
                    "auc": alone[unit],
                }
            )
    return rows
