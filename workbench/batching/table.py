"""One tidy table of all jobs: a row for each job and metric."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.batching.grid import INPUTS
from workbench.batching.jobs import Job, text_of

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 400  # characters of an error that the table has
NAMED = ("hook_point", "label")  # what a metric's name may hold of its job


def metrics_frame(jobs: Sequence[Job], out: Path) -> pd.DataFrame:
    """Read the metrics of jobs that are done.

    Parameters
    ----------
    jobs : sequence of Job
        All of them finished.
    out : Path
        The batch's folder.

    Returns
    -------
    DataFrame
        A row for each job and metric: ``plugin``, a column for each axis of the grid, ``measure`` (the metric's name
        without the job's own hook point and label: the same in all jobs), ``value``, ``lo``, ``hi``, ``unit``,
        ``metric`` as the job calls it, ``seconds`` (of the job), ``seed``, the inputs, ``job`` (identity).
    """
    import pandas as pd

    axes = list(dict.fromkeys(key for job in jobs for key in job.axes))
    rows: list[dict[str, Any]] = []
    for job in jobs:
        folder = job.folder(out)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        common = {"job": job.identity, "plugin": job.plugin, **inputs_of(job), "seed": job.seed}
        common |= {key: cell(job.axes[key]) if key in job.axes else None for key in axes}
        for name, metric in metrics.items():
            numbers = {key: None if metric[key] is None else float(metric[key]) for key in ("value", "lo", "hi")}
            rows.append(
                {
                    **common,
                    "metric": name,
                    "measure": measure_of(name, job),
                    **numbers,
                    "unit": metric["unit"],
                    "seconds": manifest["seconds"],
                }
            )
    columns = ["plugin", *axes, "measure", "value", "lo", "hi", "unit", "metric", "seconds"]
    columns += [key for key in ("seed", *INPUTS, "job") if key not in axes]
    frame = pd.DataFrame(rows, columns=columns)
    for key in ("value", "lo", "hi", "seconds"):
        frame[key] = frame[key].astype(float)
    for key in axes:
        if frame[key].map(type).nunique() > 1:  # text and numbers mixed: no Parquet column
            frame[key] = frame[key].map(lambda value: None if value is None else text_of(value))
    return frame.drop(columns=[key for key in INPUTS if frame[key].isna().all()])


def inputs_of(job: Job) -> dict[str, str | None]:
    """Return where a job's inputs are; None for what it has not."""
    return {key: job.inputs.get(key) for key in INPUTS}


def cell(value: Any) -> Any:
    """Return a value of an axis as one cell: lists as text."""
    return value if isinstance(value, str | int | float | bool) or value is None else text_of(value)


def measure_of(metric: str, job: Job) -> str:
    """Take a job's own hook point and label out of a metric's name, so that jobs can be compared.

    Examples
    --------
    >>> measure_of("auc.in_string.k1", Job("", "sparse-probe", {"label": "in_string"}, 0))
    'auc.k1'
    """
    dotted = f".{metric}."
    for key in NAMED:
        value = job.options.get(key)
        if isinstance(value, str) and (plain := re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-.")):
            dotted = dotted.replace(f".{plain}.", ".")
    return dotted.strip(".") or metric


def failures_frame(failed: Sequence[tuple[Job, Any]]) -> pd.DataFrame:
    """Return a row for each job that was set aside: which, what kind of failure, and how its error begins.

    Parameters
    ----------
    failed : sequence of (Job, Failure)
        Set aside.
    """
    import pandas as pd

    axes = list(dict.fromkeys(key for job, _ in failed for key in job.axes))
    rows = [
        {
            "plugin": job.plugin,
            **{key: text_of(job.axes[key]) if key in job.axes else "" for key in axes},
            "kind": failure.kind,
            "error": failure.error if len(failure.error) <= LONGEST else f"{failure.error[: LONGEST - 1]}…",
            "tries": failure.tries,
            "job": job.identity,
        }
        for job, failure in failed
    ]
    return pd.DataFrame(rows)
