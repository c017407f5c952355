"""A layer between a program and a folder: every call that changes the folder passes through it.

What passes can be recorded, or made to fail, or be the last thing that the program does. The layer stands in for the
calls of `os` and for the files that `open` returns; that nothing goes past it is checked by playing a record back.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Change:
    """One call that changes the disk.

    Attributes
    ----------
    kind : str
        ``create``, ``write``, ``size``, ``sync``, ``rename``, ``unlink``, ``mkdir`` or ``rmdir``.
    path : str
        Relative to the folder; "" is the folder itself.
    at : int
        Where a write starts; the size that ``size`` sets.
    data : bytes
        Of a write.
    to : str
        Where a rename leads.
    """

    kind: str
    path: str
    at: int = 0
    data: bytes = b""
    to: str = ""


class Disk:
    """Lets every change pass; subclasses do more. Use as a context manager.

    Parameters
    ----------
    root : Path
        The folder that is watched; what happens elsewhere goes past.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - it need not exist
        self._lock = threading.RLock()
        self._paths: dict[int, str] = {}
        self._true = {
            name: getattr(os, name)
            for name in (
                "open", "close", "write", "pwrite", "writev", "pwritev", "ftruncate", "truncate", "posix_fallocate",
                "fsync", "fdatasync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "sendfile",
                "copy_file_range",
            )
            if hasattr(os, name)
        }  # fmt: skip
        self._true_open = io.open
        self._stack = contextlib.ExitStack()

    def change(self, change: Change, do: Callable[[], Any]) -> Any:
        """Let a change pass."""
        return do()

    def sync(self, handle: int, do: Callable[[], Any]) -> Any:
        """Let a sync of an open file or folder pass."""
        path = self._paths.get(handle)
        return do() if path is None else self.change(Change("sync", path), do)

    def __enter__(self) -> Disk:
        stand_ins: dict[str, Callable[..., Any]] = {
            "open": self._os_open,
            "close": self._close,
            "write": lambda handle, data: self._write(handle, None, data),
            "pwrite": lambda handle, data, at: self._write(handle, at, data),
            "writev": lambda handle, datas: self._write(handle, None, b"".join(datas)),
            "pwritev": lambda handle, datas, at, flags=0: self._write(handle, at, b"".join(datas)),
            "ftruncate": self._ftruncate,
            "truncate": self._truncate,
            "posix_fallocate": self._fallocate,
            "fsync": lambda handle: self.sync(handle, lambda: self._true["fsync"](handle)),
            "fdatasync": lambda handle: self.sync(handle, lambda: self._true["fdatasync"](handle)),
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
            "remove": self._unlink,
            "mkdir": lambda path, mode=0o777, **o: self._named("mkdir", path, mode, **o),
            "rmdir": lambda path, **o: self._named("rmdir", path, **o),
        }
        for name in self._true.keys() & stand_ins.keys():
            self._stack.enter_context(mock.patch.object(os, name, stand_ins[name]))
        for module, name in ((io, "open"), (__import__("builtins"), "open")):
            self._stack.enter_context(mock.patch.object(module, name, self._open))
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def inside(self, path: Any) -> str | None:
        """Return a path relative to the folder, or None if it lies elsewhere."""
        if isinstance(path, int):
            return self._paths.get(path)
        whole = os.path.abspath(os.fspath(path))  # noqa: PTH100 - not resolved: links are none of ours
        if whole == str(self.root):
            return ""
        return whole[len(str(self.root)) + 1 :] if whole.startswith(f"{self.root}{os.sep}") else None

    def _named(self, kind: str, path: Any, *options: Any, **more: Any) -> Any:
        name = self.inside(path)
        do = lambda: self._true[kind](path, *options, **more)  # noqa: E731
        return do() if name is None else self.change(Change(kind, name), do)

    def _unlink(self, path: Any, **more: Any) -> Any:
        return self._named("unlink", path, **more)

    def _rename(self, path: Any, to: Any, **more: Any) -> Any:
        name, new = self.inside(path), self.inside(to)
        do = lambda: self._true["replace"](path, to, **more)  # noqa: E731
        return do() if name is None or new is None else self.change(Change("rename", name, to=new), do)

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        name = self.inside(path)
        with self._lock:
            if name is None:
                return int(self._true["open"](path, flags, mode, **more))
            do = lambda: self._true["open"](path, flags, mode, **more)  # noqa: E731
            handle = int(self._created(name, flags & os.O_CREAT, flags & os.O_TRUNC, do))
            self._paths[handle] = name
            return handle

    def _created(self, name: str, creates: object, empties: object, do: Callable[[], Any]) -> Any:
        there = (self.root / name).exists()
        if creates and not there:
            return self.change(Change("create", name), do)
        return self.change(Change("size", name, 0), do) if empties and there else do()

    def _close(self, handle: int) -> None:
        self._paths.pop(handle, None)
        self._true["close"](handle)

    def _write(self, handle: int, at: int | None, data: Any) -> int:
        name = self._paths.get(handle)
        if at is None:
            do = lambda: self._true["write"](handle, data)  # noqa: E731
            at = 0 if name is None else os.lseek(handle, 0, os.SEEK_CUR)
        else:
            do = lambda at=at: self._true["pwrite"](handle, data, at)  # noqa: E731
        if name is None:
            return int(do())
        return int(self.change(Change("write", name, at, bytes(data)), do))

    def _ftruncate(self, handle: int, size: int) -> None:
        name = self._paths.get(handle)
        do = lambda: self._true["ftruncate"](handle, size)  # noqa: E731
        return do() if name is None else self.change(Change("size", name, size), do)

    def _truncate(self, path: Any, size: int) -> None:
        name = self.inside(path)
        do = lambda: self._true["truncate"](path, size)  # noqa: E731
        return do() if name is None else self.change(Change("size", name, size), do)

    def _fallocate(self, handle: int, at: int, length: int) -> None:
        name = self._paths.get(handle)
        do = lambda: self._true["posix_fallocate"](handle, at, length)  # noqa: E731
        size = max(at + length, os.fstat(handle).st_size)
        return do() if name is None else self.change(Change("size", name, size), do)

    def _open(self, path: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        name = None if isinstance(path, int) else self.inside(path)
        if name is None or not set(mode) & set("wax+"):
            return self._true_open(path, mode, buffering, *args, **options)
        raw = File(self, name, path, mode)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)


class File(io.FileIO):
    """A file that is open for writing, whose changes pass through a `Disk`."""

    def __init__(self, disk: Disk, name: str, path: Any, mode: str) -> None:
        self._disk, self._name = disk, name
        plain = mode.replace("b", "").replace("t", "")
        with disk._lock:
            disk._created(name, "r" not in mode, "w" in mode, lambda: super(File, self).__init__(path, plain))
            disk._paths[self.fileno()] = name

    def write(self, data: Any) -> int:
        """Write some bytes."""
        change = Change("write", self._name, self.tell(), bytes(data))
        return int(self._disk.change(change, lambda: super(File, self).write(data)))

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        change = Change("size", self._name, self.tell() if size is None else size)
        return int(self._disk.change(change, lambda: super(File, self).truncate(size)))

    def close(self) -> None:
        """Forget the handle."""
        if not self.closed:
            self._disk._paths.pop(self.fileno(), None)
        super().close()


class Recorder(Disk):
    """Keeps every change, in order; nothing is really synced.

    Attributes
    ----------
    log : list of Change
        What was done.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.log: list[Change] = []

    def change(self, change: Change, do: Callable[[], Any]) -> Any:
        """Keep a change that worked."""
        with self._lock:
            result = None if change.kind == "sync" else do()
            self.log.append(change)
            return result


class Killer(Disk):
    """Dies before, in the middle of, or after the n-th change."""

    def __init__(self, root: Path, fatal: int) -> None:
        super().__init__(root)
        self.left = fatal

    def change(self, change: Change, do: Callable[[], Any]) -> Any:
        """Die, or do it."""
        with self._lock:
            if change.kind == "write" and self.left == 1:  # half of it reaches the disk
                descriptor = self._true["open"](self.root / change.path, os.O_WRONLY)
                os.lseek(descriptor, change.at, os.SEEK_SET)
                self._true["write"](descriptor, change.data[: len(change.data) // 2])
            self._step()
            self._step(change.kind == "write")
            result = None if change.kind == "sync" else do()
            self._step()
            return result

    def _step(self, counts: bool = True) -> None:
        if counts and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= counts


class Failer(Disk):
    """Lets the n-th change fail, and after it all that need what it lacked, until the context ends.

    Parameters
    ----------
    root : Path
        The folder.
    kinds : set of str
        Which changes can fail.
    first : int
        How many of these pass before.
    error : int or exception
        Error number, or what is raised.
    lasts : bool
        Whether those after it fail too.
    """

    def __init__(self, root: Path, kinds: set[str], first: int, error: int | BaseException, *, lasts: bool) -> None:
        super().__init__(root)
        self.kinds, self.left, self.error, self.lasts = kinds, first, error, lasts
        self.failed = 0

    def change(self, change: Change, do: Callable[[], Any]) -> Any:
        """Fail, or do it."""
        with self._lock:
            if change.kind in self.kinds:
                self.left -= 1
                if self.left == -1 or (self.lasts and self.left < 0):
                    self.failed += 1
                    if isinstance(self.error, int):
                        raise OSError(self.error, os.strerror(self.error), str(self.root / change.path))
                    raise self.error
            return None if change.kind == "sync" else do()
