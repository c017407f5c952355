"""What a batch leaves beside its jobs: one table, heat maps, and one report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from workbench.batching.heat_map import MOST_PANELS, draw, heat_map_of, measures_shown
from workbench.batching.jobs import Failure, Job
from workbench.batching.planning import Plan, axes_of
from workbench.batching.table import failures_frame, metrics_frame
from workbench.errors import UserError, nearest
from workbench.results import Result
from workbench.run_manifest import versions
from workbench.runs import SCHEMA, write_json

if TYPE_CHECKING:
    import pandas as pd

TABLE = "metrics"


def summarise(plan: Plan, out: Path, failed: Sequence[tuple[Job, Failure]], measure: str | None = None) -> Result:
    """Write table, heat maps and report of a batch.

    Parameters
    ----------
    plan : Plan
        All of its jobs: finished, or among the failed ones.
    out : Path
        The batch's folder.
    failed : sequence of (Job, Failure)
        Set aside.
    measure : str, optional
        What heat maps show; by default up to three measures that most jobs have.

    Returns
    -------
    Result
        Saved in `out`.

    Raises
    ------
    UserError
        If no job has the measure.
    """
    missing = {job.identity for job, _ in failed}
    done = [job for job in plan.jobs if job.identity not in missing]
    table = metrics_frame(done, out)
    if measure is not None and measure not in set(table["measure"]):
        near = nearest(measure, table["measure"].unique())
        raise UserError(f"no job has a measure {measure!r} to show; nearest: {near}")
    result = Result()
    result.add_metric("jobs", len(plan.jobs), unit="jobs", description="in the grid")
    result.add_metric("done", len(done), unit="jobs", description="finished, now or by an earlier call")
    result.add_metric(
        "failed", len(failed), unit="jobs", description="set aside with their error; see the table failed"
    )
    result.add_metric(
        "work",
        round(float(table.drop_duplicates("job")["seconds"].sum()), 3),
        unit="s",
        description="that finished jobs took together, one after the other",
    )
    add_heat_maps(result, table, plan, measure)
    if failed:
        result.add_table(
            "failed",
            failures_frame(failed),
            description="Jobs that were set aside. 'wrong input' is not tried again by the same call, 'error' was, "
            "'worker died' is a job over which its worker crashed or ran out of memory, 'too long' one that had no "
            "time left. The same command tries them again; failed/JOB.json has the message and the traceback.",
        )
    result.add_table(
        TABLE,
        table,
        description="A row for each job and metric. measure: the metric's name without the job's own hook point and "
        "label, so that it is the same in all jobs. job: the folder under jobs/; 'workbench report' makes its figures.",
        units={"seconds": "s"},
    )
    result.save(out)
    csv, part = out / "tables" / f"{TABLE}.csv", out / "tables" / f".{TABLE}.csv.{os.getpid()}.part"
    table.to_csv(part, index=False)
    part.replace(csv)
    write_json(out / "manifest.json", manifest_of(plan, out))
    from workbench.report import write_report

    write_report(out)
    return result


def manifest_of(plan: Plan, out: Path) -> dict[str, object]:
    """Return what a batch's ``manifest.json`` records."""
    file = plan.grid.file
    identities = "\n".join(sorted(job.identity for job in plan.jobs))
    return {
        "schema": SCHEMA,
        "plugin": "batch",
        "plugin_version": None,
        "help": f"{len(plan.jobs):,} jobs: " + " × ".join(f"{len(v)} {k}" for k, v in axes_of(plan).items()),
        "identity": xxhash.xxh3_128_hexdigest(identities.encode()),
        "config": {key: ", ".join(values) for key, values in axes_of(plan).items()},
        "seed": None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "command": shlex.join(["workbench", "batch", str(file), "--out", str(out)]) if file else "",
    }


def add_heat_maps(result: Result, table: pd.DataFrame, plan: Plan, measure: str | None) -> None:
    """Add heat maps for each plugin of a batch."""
    for plugin in dict.fromkeys(job.plugin for job in plan.jobs):
        mine = table[table["plugin"] == plugin]
        jobs = [job for job in plan.jobs if job.plugin == plugin]
        values = axes_of(Plan(plan.grid, jobs))
        axes = [key for key, found in values.items() if len(found) > 1]
        shown = measures_shown(mine) if measure is None else [measure] * (measure in set(mine["measure"]))
        for number, name in enumerate(shown):
            arranged = heat_map_of(mine, jobs, name, axes or [key for key in values if key != "plugin"][:1])
            unit = str(mine[mine["measure"] == name]["unit"].iloc[0])
            figure = draw(
                arranged,
                rows=values.get(arranged.rows, [""]),
                columns=values.get(arranged.columns, [""]),
                unit=unit,
            )
            text = f"{name} of {plugin}; under each value its interval, as the jobs state it."
            if "seed" in axes and "seed" not in (arranged.rows, arranged.columns):
                which = "" if set(mine["job"]) >= {job.identity for job in jobs} else " (those that are done)"
                text += f" Mean over {len(values['seed'])} seeds{which}, with the widest of their intervals."
            if arranged.n_left_out:
                text += f" The first {MOST_PANELS} panels; {arranged.n_left_out} more are in the table."
            result.add_figure(f"heat-map-{plugin}-{number + 1}", figure, description=text)
