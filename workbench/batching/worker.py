"""What a worker does: one job, from plain values to a run folder; nothing that goes wrong leaves it as an exception."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import re
import shutil
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from workbench import configuration, progress
from workbench.batching.jobs import STARTED, Job, is_finished, put_damaged_away
from workbench.batching.keeping import Keeping
from workbench.batching.notes import begun, n_deaths, overdue
from workbench.context import Context, Inputs
from workbench.errors import UserError, is_wrong_input
from workbench.execution import make_run
from workbench.registry import registry
from workbench.request import Request
from workbench.run_manifest import own_parts
from workbench.runs import BusyError, identity_of

State = Literal["done", "wrong input", "error", "busy", "worker died", "too long", "full"]
LONGEST_ERROR, LONGEST_TRACEBACK = 2_000, 20_000  # characters
START_S = 0.5
GRACE_S = 30.0  # that the first job of a process may take longer: it imports and loads what the others find there
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LEAST_ROOM = 2**28  # bytes; who has more and finds a disk full, found another one


class Outcome(TypedDict):
    """What became of a job, as it travels back.

    ``done``: its run folder is there. ``wrong input``: trying again would not help. ``error``: it might. ``busy``:
    another batch is making it. ``worker died``: so often that it is not tried any more. ``too long``: it was ended.
    ``full``: the batch's folder takes no more.
    """

    state: State
    error: str
    traceback: str
    deaths: int
    seconds: float


class Task(TypedDict):
    """A job and where it belongs, as it travels to a worker.

    ``token`` names this call of the batch; after `deaths` workers that died over the job it is not begun again; it may
    take ``limit_s`` seconds.
    """

    job: dict[str, Any]
    out: str
    token: str
    deaths: int
    limit_s: float | None


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
    grace_s = GRACE_S if is_first() else 0.0
    settle()
    clock = time.perf_counter()
    job, out = Job(**task["job"]), Path(task["out"])
    note = out / STARTED / task["token"] / job.identity
    state: State = "done"
    error, text, deaths = "", "", 0
    try:
        deaths = n_deaths(note)
        if is_finished(job.folder(out), job.identity):
            pass
        elif (stack := overdue(note)) is not None:
            state, error, text = "too long", f"it took longer than {task['limit_s']:g} s and was ended", stack
        elif deaths >= task["deaths"]:
            state, error = "worker died", f"its worker died {deaths} times over it (crash, or no memory)"
        else:
            with begun(note, None if task["limit_s"] is None else task["limit_s"] + grace_s):
                make_job(job, out)
    except BusyError as busy:
        state, error = "busy", str(busy)
    except BaseException as wrong:  # noqa: BLE001 - a plugin may raise anything, sys.exit and Ctrl-C's error included
        state, error, text = told(wrong, out)
    return Outcome(state=state, error=error, traceback=text, deaths=deaths, seconds=time.perf_counter() - clock)


def told(wrong: BaseException, out: Path) -> tuple[State, str, str]:
    """Return what kind of failure an exception is, its message and its traceback, as text that can be kept anywhere."""
    if isinstance(wrong, OSError) and wrong.errno in FULL and has_no_room(out):
        return "full", f"{out}: {os.strerror(wrong.errno)}", ""
    try:
        message = str(wrong).strip()
    except Exception:  # noqa: BLE001 - a plugin's own exception class
        message = "(it has no message that can be printed)"
    if is_wrong_input(wrong):
        return "wrong input", plain(message, LONGEST_ERROR), ""
    error = f"{type(wrong).__name__}: {message}" if message else type(wrong).__name__
    lines = "".join(traceback.format_exception(wrong))
    return "error", plain(error, LONGEST_ERROR), plain(lines, LONGEST_TRACEBACK)


def plain(text: str, longest: int) -> str:
    """Return text with the middle left out if it is long, and what no file or terminal should get as escapes."""
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
    text = text.strip().encode("utf-8", "backslashreplace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def has_no_room(out: Path) -> bool:
    """Return whether the disk of a batch's folder is as good as full, or takes nothing."""
    try:
        return shutil.disk_usage(out).free < LEAST_ROOM or not os.access(out, os.W_OK)
    except OSError:
        return True


def is_first() -> bool:
    """Return whether this process has done no job yet."""
    return settle.cache_info().currsize == 0


@functools.cache
def settle() -> None:
    """Prepare this process, once.

    It draws no progress bars into the terminal that it shares with others. Its first job waits until the nanny that
    watches over it knows that it has started: a nanny starts no other in the place of one that dies before.
    """
    import torch  # noqa: F401 - the longest import of all, which no job shall be timed for

    progress.drawn = False
    if multiprocessing.parent_process() is not None:
        time.sleep(START_S)


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
