"""Jobs through Dask: a window of them at a time, failed ones again after a pause, those that fail for good aside."""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.batching.jobs import Failure, Job
from workbench.batching.worker import Outcome, Task, run_job

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("workbench")

PER_THREAD, LEAST_WINDOW = 8, 32  # jobs that the scheduler holds: enough that no worker waits, few at any size of grid
LOOK_S = 1.0  # between looks at scheduler and workers
LONGEST_PAUSE_S = 300.0
NO_WORKER_S = 15.0  # between complaints that there is none
LEAST_DEATHS = 2  # one death does not tell whether the job was at fault: somebody may have killed the worker
MOST_LOSSES = 50  # of a job that never was begun: workers that cannot start jobs at all


class StoppedError(RuntimeError):
    """A batch cannot go on; what is finished is kept."""


class SchedulerLostError(StoppedError):
    """The scheduler does not answer any more."""


class FullError(StoppedError):
    """The batch's folder takes no more."""


@dataclass
class Progressing:
    """A job on its way.

    Attributes
    ----------
    job : Job
        Which.
    tries : int
        How often it ended in an error.
    losses : int
        How often Dask gave it up.
    """

    job: Job
    tries: int = 0
    losses: int = 0


@dataclass
class Scheduling:
    """Sends jobs to workers and collects what becomes of them.

    Attributes
    ----------
    client : Client
        Of the scheduler.
    out : Path
        The batch's folder, absolute.
    token : str
        Name of this call's notes.
    retries : int
        How often an error is tried again.
    pause_s : float
        Before the first retry; doubled for each further one.
    limit_s : float or None
        That a job may take.
    done : callable
        Told of each job that is done.
    failed : callable
        Told of each job that is set aside.
    revive : callable
        Looks after the workers; called now and then.
    """

    client: Client
    out: Path
    token: str
    retries: int
    pause_s: float
    limit_s: float | None
    done: Callable[[Job, Outcome], None]
    failed: Callable[[Job, Failure], None]
    revive: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._waiting: deque[Progressing] = deque()
        self._later: list[tuple[float, int, Progressing]] = []
        self._flying: dict[Any, tuple[Progressing, Any]] = {}
        self._landed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._looked, self._told = -LOOK_S, 0.0
        self._window = LEAST_WINDOW
        self._random = random.Random(self.token)

    def run(self, jobs: Sequence[Job]) -> None:
        """Bring all jobs to an end.

        Raises
        ------
        SchedulerLostError
            If the scheduler is gone.
        FullError
            If the batch's folder takes no more.
        """
        self._waiting.extend(Progressing(job) for job in jobs)
        self._told = time.monotonic()
        try:
            while self._waiting or self._later or self._flying:
                self._look()
                self._submit()
                self._collect()
        except SchedulerLostError:
            raise  # nobody is there to take jobs back from
        except BaseException:
            self._cancel()
            raise

    def _submit(self) -> None:
        """Fill the window, once half of it is free: jobs travel together."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._waiting.append(heapq.heappop(self._later)[2])
        free = self._window - len(self._flying)
        if not self._waiting or free < min(self._window // 2, len(self._waiting)):
            return
        sent = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        most_deaths = max(LEAST_DEATHS, self.retries + 1)
        tasks = [
            Task(job=asdict(each.job), out=str(self.out), token=self.token, deaths=most_deaths, limit_s=self.limit_s)
            for each in sent
        ]
        number = next(self._numbers)
        keys = [f"job-{self.token}-{number}-{each.job.identity}" for each in sent]
        for each, future in zip(sent, self.client.map(run_job, tasks, key=keys, pure=False, retries=0), strict=True):
            self._flying[future.key] = each, future
            future.add_done_callback(self._landed.put)

    def _collect(self) -> None:
        """Wait for jobs to come back, and see what became of them."""
        landed = []
        try:
            landed.append(self._landed.get(timeout=self._wait_s()))
            while True:
                landed.append(self._landed.get_nowait())
        except queue.Empty:
            pass
        mine = [future for future in landed if future.key in self._flying]
        finished = [future for future in mine if future.status == "finished"]
        outcomes = dict(zip((each.key for each in finished), self._gather(finished), strict=True))
        for future in mine:
            each, _ = self._flying.pop(future.key)
            outcome = outcomes.get(future.key)
            if outcome is None:
                self._lost(each, future)
            else:
                self._settle(each, outcome)
            future.release()

    def _gather(self, futures: Sequence[Any]) -> list[Outcome | None]:
        """Fetch outcomes; one that its worker has taken along is None."""
        if not futures:
            return []
        try:
            return list(self.client.gather(list(futures)))
        except Exception as error:  # noqa: BLE001 - Dask's own errors have no common kind; each job is looked at alone
            log.debug("outcomes were lost: %s", error)
        found: list[Outcome | None] = []
        for future in futures:
            try:
                found.append(future.result(timeout=10))
            except Exception as error:  # noqa: BLE001 - the same
                log.debug("an outcome was lost: %s", error)
                found.append(None)
        return found

    def _settle(self, each: Progressing, outcome: Outcome) -> None:
        """Go on as an outcome says."""
        state = outcome["state"]
        if state == "done":
            self.done(each.job, outcome)
        elif state == "busy":
            self._again(each, self.pause_s)
        elif state == "full":
            raise FullError(outcome["error"])
        elif state == "error" and each.tries < self.retries:
            each.tries += 1
            self._again(each, self.pause_s * 2 ** (each.tries - 1))
        else:
            tries = each.tries + outcome["deaths"] + (state in ("error", "wrong input"))
            self.failed(each.job, Failure(state, outcome["error"], outcome["traceback"], tries))

    def _lost(self, each: Progressing, future: Any) -> None:
        """Send a job again that Dask gave up: its worker died, perhaps not over this job, or never understood it."""
        if future.status == "cancelled":  # not by us
            raise SchedulerLostError("the scheduler is gone")
        each.losses += 1
        error = future.exception(timeout=10) if future.status == "error" else None
        killed = error is None or type(error).__name__ == "KilledWorker"
        if each.losses < (MOST_LOSSES if killed else self.retries + 1):
            self._again(each, 0.0 if killed else self.pause_s)
            return
        text = f"{type(error).__name__}: {error}" if error is not None else "its result was lost again and again"
        self.failed(each.job, Failure("worker died" if killed else "error", text, "", each.losses))

    def _again(self, each: Progressing, pause_s: float) -> None:
        """Let a job wait, not exactly as long as others that failed with it."""
        pause_s = min(pause_s, LONGEST_PAUSE_S) * self._random.uniform(1, 1.5)
        heapq.heappush(self._later, (time.monotonic() + pause_s, next(self._numbers), each))

    def _wait_s(self) -> float:
        """Return how long there is nothing to do but to wait."""
        due = self._later[0][0] - time.monotonic() if self._later else LOOK_S
        return max(0.001, min(LOOK_S, due))

    def _look(self) -> None:
        """Now and then, see that the scheduler is there and how many workers it has."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if self.client.status not in ("running", "connecting"):
            raise SchedulerLostError("the scheduler is gone")
        try:
            n_threads = sum(self.client.nthreads().values())
        except Exception as error:
            raise SchedulerLostError(f"the scheduler is gone: {error}") from error
        self.revive()
        self._window = max(LEAST_WINDOW, PER_THREAD * n_threads)
        if n_threads:
            self._told = now
        elif now - self._told > NO_WORKER_S:
            self._told = now
            log.warning("no worker is there: waiting for one")

    def _cancel(self) -> None:
        """Take back what was sent; what is running runs to its end, unheard."""
        try:
            self.client.cancel([future for _, future in self._flying.values()], force=True)
        except Exception as error:  # noqa: BLE001 - the scheduler may be gone, and nothing is lost then
            log.debug("jobs could not be taken back: %s", error)
