"""Notes of the jobs that a batch has begun: how often a worker died over one, and that one took too long."""

from __future__ import annotations

import faulthandler
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import filelock

from workbench.batching.jobs import STARTED

BEGUN = b"begun\n"


@contextmanager
def notes_of(out: Path) -> Iterator[str]:
    """Make a folder for the notes of one call of a batch, and remove it afterwards; gives its name.

    Folders of calls that were killed are removed as well.
    """
    root, token = out / STARTED, uuid.uuid4().hex[:12]
    root.mkdir(parents=True, exist_ok=True)
    for name in {path.name.removesuffix(".lock") for path in root.iterdir()}:
        _remove(root / name)
    lock = _lock_of(root / token)
    lock.acquire()
    (root / token).mkdir()
    try:
        yield token
    finally:
        lock.release()
        _remove(root / token)
        with suppress(OSError):  # another batch may have notes there
            root.rmdir()


def _lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return the lock that a batch holds as long as it needs its notes."""
    return filelock.FileLock(folder.with_name(folder.name + ".lock"), timeout=0)


def _remove(folder: Path) -> None:
    """Remove notes that no batch needs any more."""
    with suppress(filelock.Timeout), _lock_of(folder) as lock:
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)


def n_deaths(note: Path) -> int:
    """Return how often a job was begun and not left: a worker died each time."""
    try:
        return note.read_bytes().count(BEGUN)
    except FileNotFoundError:
        return 0


def overdue(note: Path) -> str | None:
    """Return where in its code a job was when its time was over; None if it did not come to that."""
    try:
        _, timeout, stacks = note.read_text(encoding="utf-8", errors="replace").partition("Timeout (")
    except FileNotFoundError:
        return None
    of_jobs = [stack for stack in stacks.split("\n\n") if " in run_job" in stack]
    return "\n\n".join(of_jobs) if timeout else None


class Watch:
    """Ends this process if a job takes too long, even one that is stuck in compiled code.

    Python's watchdog is used, which needs no lock of the interpreter. There is one in a process: it waits for the job
    that is due first.
    """

    def __init__(self) -> None:
        self._due: dict[int, tuple[float, IO[bytes]]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def over(self, note: IO[bytes], limit_s: float | None) -> Iterator[None]:
        """Watch while the block runs; the process ends after `limit_s`, and the stacks of its threads are in `note`."""
        if limit_s is None:
            yield
            return
        self._change(note, time.monotonic() + limit_s)
        try:
            yield
        finally:
            self._change(note, None)

    def _change(self, note: IO[bytes], due: float | None) -> None:
        with self._lock:
            if due is None:
                del self._due[id(note)]
            else:
                self._due[id(note)] = due, note
            if not self._due:
                faulthandler.cancel_dump_traceback_later()
                return
            first, file = min(self._due.values(), key=lambda each: each[0])
            faulthandler.dump_traceback_later(max(0.001, first - time.monotonic()), exit=True, file=file)


class Turns:
    """Who may run in this process: jobs beside each other, or one alone, over which a worker has died before."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_beside = 0
        self._n_alone = 0  # that run or wait to
        self._alone_runs = False

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Wait until the block may run, and run it."""
        with self._changed:
            if alone:
                self._n_alone += 1
                self._changed.wait_for(lambda: not self._n_beside and not self._alone_runs)
                self._alone_runs = True
            else:
                self._changed.wait_for(lambda: not self._n_alone)
                self._n_beside += 1
        try:
            yield
        finally:
            with self._changed:
                if alone:
                    self._alone_runs = False
                    self._n_alone -= 1
                else:
                    self._n_beside -= 1
                self._changed.notify_all()


_watch, _turns = Watch(), Turns()


@contextmanager
def begun(note: Path, limit_s: float | None) -> Iterator[None]:
    """Keep a note while a job runs, one more entry each time it is begun; only a death leaves it behind.

    A job over which a worker has died before runs with no other beside it in its process, so that it is not held to
    account for another's crash again.

    Parameters
    ----------
    note : Path
        Of the job.
    limit_s : float, optional
        That it may take.
    """
    with _turns.taken(alone=n_deaths(note) > 0), note.open("ab", buffering=0) as file:
        file.write(BEGUN)
        try:
            with _watch.over(file, limit_s):
                yield
        finally:
            note.unlink(missing_ok=True)
