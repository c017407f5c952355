"""The right to write: one process, and one writer in it, at a time."""

from __future__ import annotations

import os
import sys
import time
import weakref
from pathlib import Path

from workbench.cache.errors import StoreError
from workbench.cache.files import cannot_write

SECONDS_BETWEEN_TRIES = 0.05

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class WriterLock:
    """The right to write a folder.

    An operating-system lock (``flock``, on Windows ``msvcrt.locking``) on an empty file: the kernel lets go of it when
    its process dies, however it dies, so none is ever left behind. The file itself stays. There is no falling back on
    files whose existence is the lock, which a dead process does leave: a disk that cannot lock is an error.

    Parameters
    ----------
    path : Path
        The file, ``.lock`` in the folder that is written.
    timeout_s : float
        How long to wait for another writer, seconds.

    Raises
    ------
    StoreError
        If another has it, or there can be none.
    """

    def __init__(self, path: Path, timeout_s: float = 0) -> None:
        self._handle: int | None = None
        until = time.monotonic() + timeout_s
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path.parent, error) from error
        try:
            while not _try(handle):
                if time.monotonic() >= until:
                    raise StoreError(f"{path.parent} is being written by another process; wait until that has ended")
                time.sleep(SECONDS_BETWEEN_TRIES)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, OSError):
                raise StoreError(f"cannot lock {path}: {error.strerror or error}") from error
            raise
        self._handle = handle
        _held.add(self)

    def release(self) -> None:
        """Let go; safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _try(handle: int) -> bool:
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):  # held by another: the second is what Windows says
        return False
    return True


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """Close the copies that a forked child got: a worker that outlives its parent would keep the lock."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
