"""What a worker does: one job, from plain values to a run folder; nothing that goes wrong leaves it as an exception."""

from __future__ import annotations

import functools
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from workbench import configuration, progress
from workbench.batching.jobs import STARTED, Job, is_finished, put_damaged_away
from workbench.batching.keeping import Keeping
from workbench.context import Context, Inputs
from workbench.errors import UserError, is_wrong_input
from workbench.execution import make_run
from workbench.registry import registry
from workbench.request import Request
from workbench.run_manifest import own_parts
from workbench.runs import BusyError, identity_of

State = Literal["done", "wrong input", "error", "busy", "worker died"]
LONGEST_TRACEBACK = 20_000  # characters
START_S = 0.5


class Outcome(TypedDict):
    """What became of a job, as it travels back.

    ``done``: its run folder is there. ``wrong input``: trying again would not help. ``error``: it might. ``busy``:
    another batch is making it. ``worker died``: so often that it is not tried any more.
    """

    state: State
    error: str
    traceback: str
    seconds: float


class Task(TypedDict):
    """A job and where it belongs, as it travels to a worker.

    ``token`` names this call of the batch; after `deaths` workers that died over the job it is not begun again.
    """

    job: dict[str, Any]
    out: str
    token: str
    deaths: int


def run_job(task: Task) -> Outcome:
    """Make one job's run folder, unless it is there.

    Parameters
    ----------
    task : Task
        Plain values.

    Returns
    -------
    Outcome
        Whatever happens, but for a death of the process.
    """
    settle()
    clock = time.perf_counter()
    job, out = Job(**task["job"]), Path(task["out"])
    state: State = "done"
    error = text = ""
    try:
        folder = job.folder(out)
        if not is_finished(folder, job.identity):
            note = out / STARTED / task["token"] / job.identity
            if (deaths := n_deaths(note)) >= task["deaths"]:
                state, error = (
                    "worker died",
                    f"its worker died {deaths} time{'s'[: deaths > 1]} over it (crash, or no memory)",
                )
            else:
                with death_noted(note):
                    make_job(job, out)
    except BusyError as busy:
        state, error = "busy", str(busy)
    except BaseException as wrong:  # a plugin may raise anything, sys.exit included, and harms no other job
        if isinstance(wrong, KeyboardInterrupt):
            raise
        state = "wrong input" if is_wrong_input(wrong) else "error"
        error = str(wrong) if state == "wrong input" else f"{type(wrong).__name__}: {wrong}"
        text = "" if state == "wrong input" else traceback.format_exc()[-LONGEST_TRACEBACK:]
    return Outcome(state=state, error=error, traceback=text, seconds=time.perf_counter() - clock)


@functools.cache
def settle() -> None:
    """Prepare this process, once.

    It draws no progress bars into the terminal that it shares with others. Its first job waits until the nanny that
    watches over it knows that it has started: a nanny starts no other in the place of one that dies before.
    """
    progress.drawn = False
    if multiprocessing.parent_process() is not None:
        time.sleep(START_S)


def n_deaths(note: Path) -> int:
    """Return how often a job was begun and not left: a worker died each time."""
    try:
        return note.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def death_noted(note: Path) -> Iterator[None]:
    """Keep a note while the block runs, a byte for each time it was begun; only a death leaves it behind."""
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("ab") as file:
        file.write(b".")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def make_job(job: Job, out: Path) -> None:
    """Run a job's plugin as `workbench run` would, with what this process has opened already.

    Raises
    ------
    UserError
        If the input is wrong, or not what the job was planned with; `BusyError` if another process is at it.
    """
    request, context = prepared(job)
    parts = {**own_parts(request), **job.fingerprints}
    if identity_of(parts) != job.identity:
        raise UserError(
            f"{job.plugin} {request.plugin.version} of this worker is not the one that the batch was planned with: "
            "install the same versions everywhere"
        )
    folder = job.folder(out)
    if folder.exists() and not is_finished(folder, job.identity):
        put_damaged_away(out, job.identity)
    try:
        make_run(request, context, parts, folder, drawn=False, more={"batch": batch_record(job)})
    except UserError:
        if not is_finished(folder, job.identity):  # another batch may have been faster
            raise


def prepared(job: Job) -> tuple[Request, Context]:
    """Return a job's request and context; the store is open, the rest is loaded when it is asked for."""
    plugin = registry().plugin(job.plugin)
    loading = Keeping(job.fingerprints)
    inputs: dict[str, Any] = dict(job.inputs)
    if "store" in inputs:
        inputs["store"] = loading.store(inputs["store"])
    config = configuration.build(plugin.Config, job.options)
    request = Request(plugin, config, Inputs(**inputs), job.device, seed=job.seed)
    context = Context(config, request.inputs, job.device, job.seed, work=Path(), loading=loading)
    return request, context


def batch_record(job: Job) -> dict[str, Any]:
    """Return what a job's manifest says of it, beside what every run's says: enough to run it again."""
    return {
        "axes": dict(job.axes),
        "options": dict(job.options),
        "inputs": dict(job.inputs),
        "fingerprints": dict(job.fingerprints),
        "device": job.device,
    }


def job_of(manifest: Mapping[str, Any]) -> Job:
    """Return the job that a manifest is of."""
    record = manifest["batch"]
    return Job(identity=manifest["identity"], plugin=manifest["plugin"], seed=manifest["seed"], **record)
