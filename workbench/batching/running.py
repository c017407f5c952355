"""A batch from start to end: plan, skip what is done, run the rest, write table and report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.batching.grid import read_grid
from workbench.batching.jobs import STARTED, Failure, Job, clear_failure, failed_before, is_finished, write_failure
from workbench.batching.planning import Plan, make_plan
from workbench.errors import UserError
from workbench.progress import progress
from workbench.results import Result
from workbench.runs import RUNS

log = logging.getLogger("workbench")


def batch(
    grid: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    memory: str | None = None,
    scheduler: str | None = None,
    retries: int = 2,
    pause_s: float = 1.0,
    measure: str | None = None,
) -> Result:
    """Run all jobs of a grid on Dask's workers; jobs that are done already are skipped.

    Parameters
    ----------
    grid : path or mapping
        A YAML file with the keys of a configuration file and ``grid``, lists to be crossed; see docs/batch.md.
    out : path, optional
        The batch's folder; by default ``runs/NAME-OF-THE-FILE``. The same call continues what was interrupted.
    workers : int, optional
        Processes on this machine; by default one for each core.
    memory : str, optional
        That a worker may use, such as ``4GiB``; by default its share of the machine.
    scheduler : str, optional
        Address of a Dask scheduler to use instead of workers of this machine.
    retries : int
        How often a job that ended in an error is tried again; wrong input is not.
    pause_s : float
        Before the first retry; each further one waits twice as long.
    measure : str, optional
        What heat maps show; by default up to three measures that most jobs have.

    Returns
    -------
    Result
        ``tables["metrics"]`` has a row for each job and metric, ``tables["failed"]`` the jobs set aside, if any.

    Raises
    ------
    UserError
        If anything is wrong with any job of the grid, before the first one runs.
    SchedulerLostError
        If the scheduler ends before the jobs do; what is finished is kept.
    """
    checked_numbers(workers, retries, pause_s)
    read = read_grid(grid)
    folder = folder_of(grid, out)
    return run_plan(
        make_plan(read, folder), folder, workers=workers, memory=memory, scheduler=scheduler, retries=retries,
        pause_s=pause_s, measure=measure,
    )  # fmt: skip


def folder_of(grid: str | Path | Mapping[str, Any], out: str | Path | None) -> Path:
    """Return a batch's folder, absolute, as workers may have another working folder.

    Raises
    ------
    UserError
        If it is a run's, or no name can be made up.
    """
    if out is None and isinstance(grid, Mapping):
        raise UserError("a grid that is no file needs a folder for its jobs: out=FOLDER")
    folder = Path(out) if out is not None else RUNS / Path(str(grid)).stem
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another folder with --out")
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not (folder / "jobs").is_dir()
        and not (folder / "inputs").is_dir()
    ):
        raise UserError(f"{folder} is there and is no batch's folder: name another one with --out")
    return folder.resolve()


def checked_numbers(workers: int | None, retries: int, pause_s: float) -> None:
    """Refuse numbers out of range."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UserError(f"workers={workers}: must be a whole number, at least 1")
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 100:
        raise UserError(f"retries={retries}: must be a whole number between 0 and 100")
    if not 0 <= pause_s <= 3600:
        raise UserError(f"pause_s={pause_s}: must be between 0 and 3600 seconds")


def to_do(plan: Plan, out: Path) -> list[Job]:
    """Return the jobs that are not done, those that failed before last."""
    left = [job for job in plan.jobs if not is_finished(job.folder(out), job.identity)]
    failed = failed_before(out)
    return sorted(left, key=lambda job: job.identity in failed)


def run_plan(
    plan: Plan,
    out: Path,
    *,
    workers: int | None = None,
    memory: str | None = None,
    scheduler: str | None = None,
    retries: int = 2,
    pause_s: float = 1.0,
    measure: str | None = None,
) -> Result:
    """Run a plan's jobs and write what a batch leaves; see `batch`."""
    jobs = to_do(plan, out)
    failed: dict[str, tuple[Job, Failure]] = {}
    (out / "jobs").mkdir(parents=True, exist_ok=True)
    if jobs:
        n_done = len(plan.jobs) - len(jobs)
        failed = run_jobs(jobs, out, n_done, workers, memory, scheduler, retries, pause_s)
    for identity in failed_before(out) & {job.identity for job in plan.jobs} - set(failed):
        clear_failure(out, identity)
    from workbench.batching.summary import summarise

    in_order = [failed[job.identity] for job in plan.jobs if job.identity in failed]
    return summarise(plan, out, in_order, measure)


def run_jobs(
    jobs: list[Job],
    out: Path,
    n_done: int,
    workers: int | None,
    memory: str | None,
    scheduler: str | None,
    retries: int,
    pause_s: float,
) -> dict[str, tuple[Job, Failure]]:
    """Run jobs on Dask's workers; returns those that were set aside, by identity."""
    from workbench.batching.cluster import open_client
    from workbench.batching.scheduling import Scheduling, check_workers

    failed: dict[str, tuple[Job, Failure]] = {}
    total = n_done + len(jobs)
    with (
        open_client(workers=workers, memory=memory, scheduler=scheduler, n_jobs=len(jobs)) as (client, revive),
        progress(total, "jobs", "batch", log, n_done) as ticker,
    ):
        if scheduler is not None:
            check_workers(client, out, version("interp-workbench"))

        def done(job: Job, outcome: object) -> None:
            clear_failure(out, job.identity)
            ticker.advance()

        def set_aside(job: Job, failure: Failure) -> None:
            failed[job.identity] = job, failure
            write_failure(out, job, failure)
            log.warning("set aside: %s: %s", job.named(), failure.error.splitlines()[0] if failure.error else "")
            ticker.advance()
            ticker.update(failed=str(len(failed)))

        scheduling = Scheduling(client, out, retries, pause_s, done, set_aside, revive)
        try:
            scheduling.run(jobs)
        finally:
            shutil.rmtree(out / STARTED / scheduling.token, ignore_errors=True)
            with suppress(OSError):  # another batch may have notes there
                (out / STARTED).rmdir()
    return failed
