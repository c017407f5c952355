"""``workbench batch GRID.yaml``: many runs, as jobs on Dask's workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json, print_table

if TYPE_CHECKING:
    from workbench.batching.planning import Plan

SHOWN_JOBS, SHOWN_VALUES, SHOWN_FAILED = 20, 6, 20


def batch(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="What to run; see docs/batch.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the batch.", show_default="runs/NAME-OF-THE-FILE")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine, of one thread each.", show_default="cores")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of each worker, such as 4GiB.", show_default="its share of the machine")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler to use instead: tcp://HOST:8786.")
    ] = None,
    retries: Annotated[int, typer.Option(help="How often a job that ended in an error is tried again.")] = 2,
    pause: Annotated[float, typer.Option(help="Seconds before the first retry; doubled for each further one.")] = 1.0,
    limit: Annotated[
        float | None, typer.Option(help="Seconds that a job may take; a longer one is set aside.", show_default="none")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="What heat maps show.", show_default="up to three that most jobs have")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the jobs, and run none.")] = False,
    json: options.Json = False,
) -> None:
    """Run all jobs of a grid; finished ones are skipped, so that the same command also goes on where it was stopped."""
    from workbench.batching.grid import read_grid
    from workbench.batching.jobs import line_of
    from workbench.batching.planning import make_plan
    from workbench.batching.running import Settings, folder_of, run_plan
    from workbench.batching.scheduling import StoppedError

    log_to_terminal()
    settings = Settings(workers, memory, scheduler, retries, pause, limit)
    read = read_grid(grid)
    folder = folder_of(grid, out)
    plan = make_plan(read, folder, make=not dry_run)
    if dry_run and json:
        print_json(facts(plan, folder))
        return
    if not json:
        show(plan, folder)
    if dry_run:
        return
    try:
        result = run_plan(plan, folder, settings, measure)
    except StoppedError as stopped:
        typer.echo(f"{stopped}; finished jobs are kept, and the same command continues", err=True)
        raise typer.Exit(1) from None
    n_failed = int(result.metrics["failed"].value)
    if json:
        print_json({**facts(plan, folder), "failed": n_failed, "report": str(folder / "report.html")})
    else:
        if n_failed:
            frame = result.tables["failed"].drop(columns=["job"])
            frame["error"] = [line_of(error) for error in frame["error"]]
            typer.echo()
            print_table("set aside", list(frame.columns), frame.head(SHOWN_FAILED).itertuples(index=False))
        typer.echo(f"\n{int(result.metrics['done'].value):,} of {len(plan.jobs):,} jobs done, {n_failed:,} failed")
        typer.echo(f"{folder}/tables/metrics.csv\n{folder}/report.html")
    if n_failed:
        raise typer.Exit(1)


def show(plan: Plan, folder: Path) -> None:
    """Print the axes, the first jobs, and how many there are."""
    from workbench.batching.jobs import text_of
    from workbench.batching.planning import axes_of
    from workbench.batching.running import to_do

    axes = axes_of(plan)
    rows = []
    for key, values in axes.items():
        more = f", … {values[-1]}" if len(values) > SHOWN_VALUES else ""
        rows.append((key, len(values), ", ".join(values[:SHOWN_VALUES]) + more))
    print_table("", ["axis", "values", ""], rows)
    typer.echo()
    left = {job.identity for job in to_do(plan, folder)} if not plan.to_make else set()
    keys = [key for key in axes if key != "plugin"]
    table = [
        (
            job.plugin,
            *(text_of(job.axes[key]) if key in job.axes else "" for key in keys),
            job.identity[:12] or "?",
            "" if not job.identity or job.identity in left else "done",
        )
        for job in plan.jobs[:SHOWN_JOBS]
    ]
    print_table("", ["plugin", *keys, "job", ""], table)
    if len(plan.jobs) > SHOWN_JOBS:
        typer.echo(f"… and {len(plan.jobs) - SHOWN_JOBS:,} more")
    same = f" ({plan.n_same:,} more would be the same run as another)" if plan.n_same else ""
    done = "" if plan.to_make else f": {len(plan.jobs) - len(left):,} done, {len(left):,} to do"
    typer.echo(f"\n{len(plan.jobs):,} jobs{same}{done}  {folder}")
    for what in plan.to_make:
        typer.echo(f"made first: {what}")


def facts(plan: Plan, folder: Path) -> dict[str, object]:
    """Return a plan as plain values."""
    from workbench.batching.running import to_do

    left = {job.identity for job in to_do(plan, folder)}
    return {
        "folder": str(folder),
        "jobs": [
            {
                "identity": job.identity,
                "plugin": job.plugin,
                "seed": job.seed,
                **{"inputs": dict(job.inputs), "axes": dict(job.axes)},
                "done": bool(job.identity) and job.identity not in left,
            }
            for job in plan.jobs
        ],
        "to_make": plan.to_make,
    }
