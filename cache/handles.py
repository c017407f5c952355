"""Files kept open for reading, a bounded number of them; past the page cache, where that is wanted."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from workbench.cache.memory import Memory
from workbench.cache.residency import CAN_TELL, Residency

N_OPEN = 64
BLOCK_BYTES = 4096
"""Direct reads start and end at multiples of this: a sector of any disk, and a page."""

CAN_PASS_CACHE = hasattr(os, "O_DIRECT") and CAN_TELL


class _Handle:
    """An open file, and the same file opened for reading past the page cache."""

    def __init__(self, path: Path, past_cache: bool) -> None:
        self.users = 0
        self.direct: int | None = None
        self.cached: Residency | None = None
        self.file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        if past_cache:
            with suppress(OSError, ValueError):  # a file system may refuse it: through the cache, then
                self.cached = Residency(self.file)
                self.direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        self._lock = threading.Lock()

    def read(self, place: int, buffer: memoryview) -> int:
        """Read some bytes at a place, whatever other threads read."""
        if hasattr(os, "preadv"):
            return os.preadv(self.file, [buffer], place)
        with self._lock:  # Windows
            os.lseek(self.file, place, os.SEEK_SET)
            data = os.read(self.file, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        os.close(self.file)
        if self.cached is not None:
            self.cached.close()
        if self.direct is not None:
            os.close(self.direct)


class OpenFiles:
    """Files opened when first read, and kept open while in use or among the last `N_OPEN`.

    Safe to share between threads, not between processes. A context manager.

    Parameters
    ----------
    past_cache : bool
        Read straight from the disk what the page cache does not have: as fast as the disk for pieces in any order, and
        nothing is evicted; but the next pass finds no more in the cache than this one. False: the cache keeps all.
    """

    def __init__(self, *, past_cache: bool = False) -> None:
        self._past_cache = past_cache and CAN_PASS_CACHE
        self._handles: OrderedDict[Path, _Handle] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def read(self, path: Path, place: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes with those of a file from `place` on.

        Raises
        ------
        EOFError
            If the file ends before.
        OSError
            If it cannot be opened or read.
        """
        handle = self._take(path)
        try:
            if not self._read_direct(handle, place, buffer):
                while len(buffer):
                    n = handle.read(place, buffer)
                    if not n:
                        raise EOFError
                    place, buffer = place + n, buffer[n:]
        finally:
            self._give_back(path, handle)

    def forget(self, path: Path) -> None:
        """Open a file anew next time: it may have been replaced since."""
        with self._lock:
            handle = self._handles.pop(path, None)
            if handle is not None and not handle.users:
                handle.close()

    def close(self) -> None:
        """Close all; safe to repeat. Nobody may be reading."""
        with self._lock:
            while self._handles:
                self._handles.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, path: Path) -> _Handle:
        with self._lock:
            handle = self._handles.get(path)
            if handle is None:
                handle = self._handles[path] = _Handle(path, self._past_cache)
                idle = [old for old, found in self._handles.items() if not found.users and old != path]
                for old in idle[: max(0, len(self._handles) - N_OPEN)]:
                    self._handles.pop(old).close()
            else:
                self._handles.move_to_end(path)
            handle.users += 1
            return handle

    def _give_back(self, path: Path, handle: _Handle) -> None:
        with self._lock:
            handle.users -= 1
            if not handle.users and self._handles.get(path) is not handle:  # forgotten while it was read
                handle.close()

    def _read_direct(self, handle: _Handle, place: int, buffer: memoryview) -> bool:
        """Fill a buffer from the disk; False if the page cache has all of it, or the file system cannot."""
        direct, cached = handle.direct, handle.cached
        if direct is None or cached is None or cached.has(place, len(buffer)):
            return False
        start, end = place - place % BLOCK_BYTES, place + len(buffer)
        room, done = self._room(end - start + -end % BLOCK_BYTES), 0
        try:
            while start + done < end and done % BLOCK_BYTES == 0:  # only the end of the file is inside a block
                n = os.preadv(direct, [room[done:]], start + done)
                if not n:
                    break
                done += n
        except OSError:
            return False  # larger blocks than ours, or a fault that reading through the cache will tell
        if start + done < end:
            raise EOFError
        buffer[:] = room[place - start : end - start]
        return True

    def _room(self, n_bytes: int) -> memoryview:
        """Return memory of this thread on huge pages: in small ones a disk gets a request for each page."""
        room: memoryview | None = getattr(self._local, "room", None)
        if room is None or len(room) < n_bytes:
            room = self._local.room = Memory(n_bytes).bytes(0, n_bytes)
        return room[:n_bytes]
