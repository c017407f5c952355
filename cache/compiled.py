"""Compiling the one function in C that the store has, at its first use, into a folder of the user's."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import platformdirs

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("scatter.c")
FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")
TIMEOUT_S = 60
Scatter = Callable[[int, int, int, int, int, int], int]

_lock = threading.Lock()


def scatter_function() -> Scatter | None:
    """Return `workbench_scatter` of scatter.c, compiled if need be; None, which the log gives a line, if that fails."""
    with _lock:  # reading threads ask at once
        return _load()


@functools.cache
def _load() -> Scatter | None:
    try:
        function = ctypes.CDLL(str(_built())).workbench_scatter  # the interpreter's lock is let go while it runs
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning("store: rows are placed by NumPy, which is slower: %s", said.strip().partition("\n")[0])
        return None
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
    ]
    function.restype = ctypes.c_int64
    found: Scatter = function
    return found


def _built() -> Path:
    """Return the shared object; its name tells what it was made from, and a file beside it what it should hold.

    Processes that start at once may each compile it: every one renames a whole file into place.
    """
    compiler = _compiler()
    chosen = os.environ.get("WORKBENCH_KERNEL_CACHE")
    folder = Path(chosen) if chosen else platformdirs.user_cache_path("interp-workbench") / "store"
    words = (*compiler, *FLAGS, platform.machine())
    name = hashlib.sha256(SOURCE.read_bytes() + "\0".join(words).encode()).hexdigest()[:20]
    path = folder / f"scatter-{name}.so"
    if _sound(path):
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=folder, prefix=path.stem, suffix=".part")
    os.close(handle)
    part = Path(made)
    try:
        command = [*compiler, *FLAGS, str(SOURCE), "-o", made]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        path.unlink(missing_ok=True)  # a process that has it mapped keeps it
        path.with_suffix(f".{digest[:20]}").touch()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _sound(path: Path) -> bool:
    """Whether a compiled file is there, and is one that was written: a power cut may leave half of it."""
    with contextlib.suppress(FileNotFoundError):
        return path.with_suffix(f".{hashlib.sha256(path.read_bytes()).hexdigest()[:20]}").exists()
    return False


def _compiler() -> list[str]:
    """Return the words that call ``$CC``, ``cc``, ``gcc`` or ``clang``, the first that there is."""
    tried = [name for name in (os.environ.get("CC", ""), "cc", "gcc", "clang") if name]
    for name in tried:
        first, *rest = shlex.split(name)
        path = shutil.which(first)
        if path is not None:
            return [path, *rest]
    raise FileNotFoundError(f"no C compiler: looked for {', '.join(tried)}")
