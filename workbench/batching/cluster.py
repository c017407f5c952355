"""Dask's workers: some of this machine by default, or those of a scheduler that runs already."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("workbench")

SHARE = 0.9  # of the machine's memory: the rest is for the scheduler and the system
PATIENCE_S = 30  # for an answer of a scheduler, or a local worker that starts on a busy machine
DEAD_LOOKS = 4
ANSWER_S = 15.0  # between complaints that no worker answers
LOST = 1_000_000  # deaths of a worker after which Dask gives its jobs up; we count per job instead (worker.death_noted)


@contextmanager
def open_client(
    workers: int | None = None, memory: str | None = None, scheduler: str | None = None, n_jobs: int = 1
) -> Iterator[tuple[Client, Callable[[], None]]]:
    """Give a client of Dask's scheduler, and a function to be called now and then, which looks after the workers.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine, of one thread each; by default one for each core that this process may use.
    memory : str, optional
        What a worker may use, such as ``4GiB``; by default its share of the machine. One that takes more is ended.
    scheduler : str, optional
        Address of a scheduler that runs already: ``tcp://HOST:8786``. Workers and memory are its own affair then.
    n_jobs : int
        No more workers are started than there are jobs.

    Raises
    ------
    UserError
        If no scheduler answers, or an option is wrong.
    """
    from distributed import Client

    silence()
    if scheduler is None:
        with local_cluster(workers, memory, n_jobs) as cluster, Client(cluster, set_as_default=False) as client:
            yield client, Reviver(cluster)
        return
    if workers is not None or memory is not None:
        raise UserError("workers and memory are those of the cluster that --scheduler names: leave them out")
    try:
        client = Client(scheduler, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); 'dask scheduler' prints its address, "
            "such as tcp://HOST:8786"
        ) from None
    try:
        yield client, lambda: None
    finally:
        with suppress(Exception):  # it may be gone
            client.close(timeout=2)


def silence() -> None:
    """Let Dask not log what becomes of workers and connections: what matters of it is told by us.

    For the rest of the process, as connections that were cut are logged when nobody expects it any more.
    """
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def local_cluster(workers: int | None, memory: str | None, n_jobs: int) -> Iterator[Any]:
    """Start a scheduler in this process and workers as processes of their own, which end with it."""
    import dask
    from dask.system import CPU_COUNT
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    if multiprocessing.parent_process() is not None:
        raise UserError(
            "a batch was started while a worker imported the main script: put the call under if __name__ == '__main__':"
        )
    n_workers = min(CPU_COUNT if workers is None else workers, max(1, n_jobs))
    options = {
        "n_workers": n_workers,
        "threads_per_worker": 1,
        "memory_limit": checked_memory(memory) if memory is not None else int(SHARE * MEMORY_LIMIT / n_workers),
        "processes": True,
        "dashboard_address": None,
        "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},  # its web server: 8787 may be somebody else's
        "silence_logs": logging.CRITICAL,  # what happens to jobs is told by us
    }
    settings = {
        "distributed.scheduler.allowed-failures": LOST,
        "distributed.comm.timeouts.connect": f"{PATIENCE_S}s",
        "distributed.deploy.lost-worker-timeout": "1000w",  # it may end one that has just started: see Reviver
        "distributed.worker.memory.pause": False,  # it would wait for others' data to go, and we send none
        "distributed.worker.memory.spill": False,
        "distributed.worker.profile.enabled": False,  # it keeps call stacks of each second of the last hour
        "distributed.worker.memory.target": False,
        "distributed.admin.tick.interval": "1s",  # 50 looks a second at whether the loop of each process is late
        "distributed.admin.system-monitor.interval": "10s",  # of interest on a dashboard alone
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1,
    }
    with dask.config.set(settings):
        with interrupts_held():
            cluster = LocalCluster(**options)
        try:
            yield cluster
        finally:
            stop(cluster)


class Reviver:
    """Starts local workers in the place of those that are gone for good.

    Dask starts a worker again that dies, but not one that dies while it starts.

    Parameters
    ----------
    cluster : LocalCluster
        Whose workers are looked after.
    """

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self._dead: Counter[int] = Counter()  # looks in a row at which a worker had no process, by its nanny

    def __call__(self) -> None:
        """Look at all workers; called now and then."""
        from distributed import Status

        for name, nanny in list(self.cluster.workers.items()):
            known = id(nanny)
            self._dead[known] = 0 if nanny.is_alive() else self._dead[known] + 1
            if nanny.status in (Status.closed, Status.failed) or self._dead[known] > DEAD_LOOKS:
                self.cluster.workers.pop(name, None)
                self.cluster.loop.add_callback(nanny.close)
        self.cluster.scale(len(self.cluster.worker_spec))  # opens what is planned and not there


def checked_memory(memory: str) -> int:
    """Read a size such as ``4GiB`` as bytes."""
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(memory))
    except ValueError:
        raise UserError(f"memory={memory}: must be a size, such as 4GiB or 500MB") from None
    if size < 2**26:
        raise UserError(f"memory={memory}: a worker needs at least 64 MiB")
    return size


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers are started: they inherit that, and the main process gets it afterwards.

    A terminal sends it to all processes; workers end by themselves when the main one does.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its first start would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(cluster: Any) -> None:
    """End a local cluster at once: what its workers are at is in no hurry, as a job can be begun again."""
    for nanny in list(cluster.workers.values()):
        process = getattr(getattr(nanny, "process", None), "process", None)
        if process is not None:
            with suppress(Exception):  # it may have ended by itself
                nanny.auto_restart = False
                process.kill()
    with suppress(Exception):  # whatever it finds missing, its processes are gone
        cluster.close(timeout=5)


def check_workers(client: Client, out: Path, version: str) -> None:
    """Ask a worker of another's cluster whether it can do what jobs need, before thousands of them fail.

    Raises
    ------
    UserError
        If it has another version of the workbench, or does not see the batch's folder.
    """
    asked = client.submit(surroundings, str(out), key=f"look-{uuid.uuid4().hex}", pure=False)
    while True:
        try:
            found = asked.result(timeout=ANSWER_S)
            break
        except TimeoutError:
            log.warning("no worker has answered yet: waiting for one")
        except Exception as error:
            raise UserError(
                f"the cluster cannot run jobs ({type(error).__name__}: {error}): scheduler and workers need the same "
                "packages as this process, interp-workbench among them"
            ) from error
    if found["version"] != version:
        raise UserError(
            f"the workers have interp-workbench {found['version']}, and this is {version}: install the same one"
        )
    if not found["sees"]:
        raise UserError(
            f"the workers on {found['host']} do not see {out}: batch and stores must lie on a file system that all "
            "of them share, under the same path"
        )
    if not found["writes"]:
        raise UserError(
            f"the workers on {found['host']} may not write in {out}: give them the right to, or another --out"
        )


def surroundings(out: str) -> dict[str, Any]:
    """Say what a worker has and sees."""
    import platform
    from importlib.metadata import version

    return {
        "version": version("interp-workbench"),
        "sees": Path(out).is_dir(),
        "writes": os.access(out, os.W_OK),
        "host": platform.node(),
    }
