"""A batch from start to end: plan, skip what is done, run the rest, write table and report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from workbench.batching.grid import read_grid
from workbench.batching.jobs import (
    JOBS,
    Failure,
    Job,
    clear_failure,
    failed_before,
    is_finished,
    line_of,
    write_failure,
)
from workbench.batching.notes import notes_of
from workbench.batching.planning import Plan, make_plan
from workbench.errors import UserError
from workbench.progress import progress
from workbench.results import Result
from workbench.runs import RUNS, drop_unfinished

log = logging.getLogger("workbench")

LONGEST_LIMIT_S = 1_000_000  # some eleven days


@dataclass(frozen=True)
class Settings:
    """How jobs are run; none of it changes their numbers. Each is described by `batch`.

    Raises
    ------
    UserError
        For a number out of range.
    """

    workers: int | None = None
    memory: str | None = None
    scheduler: str | None = None
    retries: int = 2
    pause_s: float = 1.0
    limit_s: float | None = None

    def __post_init__(self) -> None:
        workers, retries = self.workers, self.retries
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise UserError(f"workers={workers}: must be a whole number, at least 1")
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 100:
            raise UserError(f"retries={retries}: must be a whole number between 0 and 100")
        if not 0 <= self.pause_s <= 3600:
            raise UserError(f"pause_s={self.pause_s}: must be between 0 and 3600 seconds")
        if self.limit_s is not None and not 1 <= self.limit_s <= LONGEST_LIMIT_S:
            raise UserError(f"limit_s={self.limit_s}: must be between 1 and {LONGEST_LIMIT_S:,} seconds")


def batch(
    grid: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    memory: str | None = None,
    scheduler: str | None = None,
    retries: int = 2,
    pause_s: float = 1.0,
    limit_s: float | None = None,
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
    limit_s : float, optional
        That a job may take, in seconds; one that takes longer is ended and set aside. No limit by default.
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
    StoppedError
        If the scheduler ends before the jobs do, or the disk is full; what is finished is kept.
    """
    settings = Settings(workers, memory, scheduler, retries, pause_s, limit_s)
    read = read_grid(grid)
    folder = folder_of(grid, out)
    return run_plan(make_plan(read, folder), folder, settings, measure)


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


def to_do(plan: Plan, out: Path) -> list[Job]:
    """Return the jobs that are not done, those that failed before last."""
    left = [job for job in plan.jobs if not is_finished(job.folder(out), job.identity)]
    failed = failed_before(out)
    return sorted(left, key=lambda job: job.identity in failed)


def run_plan(plan: Plan, out: Path, settings: Settings, measure: str | None = None) -> Result:
    """Run a plan's jobs and write what a batch leaves; see `batch`."""
    jobs = to_do(plan, out)
    failed: dict[str, tuple[Job, Failure]] = {}
    require_writable(out / JOBS)
    with full_disk_told(out):
        if jobs:
            failed = run_jobs(jobs, out, len(plan.jobs) - len(jobs), settings)
        for identity in failed_before(out) & {job.identity for job in plan.jobs} - set(failed):
            clear_failure(out, identity)
        from workbench.batching.summary import summarise

        in_order = [failed[job.identity] for job in plan.jobs if job.identity in failed]
        return summarise(plan, out, in_order, measure)


def require_writable(folder: Path) -> None:
    """Make a folder if it is not there, and refuse one in which nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b".")
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None


@contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says that a batch can go on later."""
    from workbench.batching.scheduling import FullError
    from workbench.batching.worker import FULL

    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise FullError(f"{out}: {error.strerror}") from error


def run_jobs(jobs: list[Job], out: Path, n_done: int, settings: Settings) -> dict[str, tuple[Job, Failure]]:
    """Run jobs on Dask's workers; returns those that were set aside, by identity."""
    from workbench.batching.cluster import check_workers, open_client
    from workbench.batching.scheduling import Scheduling

    failed: dict[str, tuple[Job, Failure]] = {}
    total = n_done + len(jobs)
    with (
        notes_of(out) as token,
        open_client(settings.workers, settings.memory, settings.scheduler, len(jobs)) as (client, revive),
        progress(total, "jobs", "batch", log, n_done) as ticker,
    ):
        if settings.scheduler is not None:
            check_workers(client, out, version("interp-workbench"))

        def done(job: Job, outcome: object) -> None:
            clear_failure(out, job.identity)
            ticker.advance()

        def set_aside(job: Job, failure: Failure) -> None:
            failed[job.identity] = job, failure
            write_failure(out, job, failure)
            drop_unfinished(job.folder(out))
            log.warning("set aside: %s: %s", job.named(), line_of(failure.error))
            ticker.advance()
            ticker.update(failed=str(len(failed)))

        again = settings.retries, settings.pause_s, settings.limit_s
        Scheduling(client, out, token, *again, done, set_aside, revive).run(jobs)
    return failed
