"""Compiling a unit at its first use, into a folder of the user's that later processes find."""

import contextlib
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from workbench.kernels.cpu.units import Unit, features

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent.parent / "csrc"
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fopenmp-simd", "-fvisibility=hidden",
    # Nothing reads errno or traps, and products may be added in one operation; NaN and infinity stay what they are.
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
TIMEOUT_S = 300


class BuildError(Exception):
    """A unit could not be compiled; says why in one line."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how it is called, and the first line of what it says of itself."""

    command: tuple[str, ...]
    version: str


@functools.cache
def find_compiler() -> Compiler:
    """Find ``$CXX``, ``c++``, ``g++`` or ``clang++``, the first that runs.

    Raises
    ------
    BuildError
        If there is none.
    """
    tried = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    for words in (tuple(shlex.split(name)) for name in tried if name):
        path = shutil.which(words[0])
        if path is None:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = (path, *words[1:])
            told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=30)
            return Compiler(command, told.stdout.partition("\n")[0].strip())
    raise BuildError(f"no C++ compiler: looked for {', '.join(name for name in tried if name)}")


def cache_folder() -> Path:
    """Return where compiled units are kept: ``$WORKBENCH_KERNEL_CACHE``, else a folder of the user's cache."""
    chosen = os.environ.get("WORKBENCH_KERNEL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("interp-workbench") / "kernels"


def built_path(unit: Unit, compiler: Compiler, extra: tuple[str, ...] = ()) -> Path:
    """Return where a unit lies once compiled; its name tells everything that went into it."""
    digest = hashlib.sha256()
    for source in [SOURCES / f"{unit.name}.cpp", *sorted(SOURCES.glob("*.h"))]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for word in (*compiler.command, compiler.version, *FLAGS, *unit.flags, *extra, *sorted(features())):
        digest.update(word.encode() + b"\0")
    return cache_folder() / f"{unit.name}-{digest.hexdigest()[:20]}.so"


def build(unit: Unit, extra: tuple[str, ...] = ()) -> Path:
    """Compile a unit, unless that has been done.

    Parameters
    ----------
    unit : Unit
        What to compile.
    extra : tuple of str
        Further flags (tests use them).

    Returns
    -------
    Path
        The shared object.

    Raises
    ------
    BuildError
        If there is no compiler, it refuses, or nothing can be written.

    Notes
    -----
    Processes that start at once may race: a lock lets one compile while the others wait, and the result is renamed
    into place, so that nobody ever loads half a file. A file that is no longer what was written is compiled anew.
    """
    compiler = find_compiler()
    path = built_path(unit, compiler, extra)
    try:
        if not _sound(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), timeout=TIMEOUT_S):
                if not _sound(path):
                    _compile(unit, compiler, path, extra)
    except (OSError, TimeoutError) as error:
        raise BuildError(f"cannot write to {path.parent} (another folder: WORKBENCH_KERNEL_CACHE): {error}") from error
    return path


def _sound(path: Path) -> bool:
    """Whether a compiled file is there, and is still the one that was written."""
    try:
        return path.with_suffix(".sha256").read_text(encoding="ascii") == hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _compile(unit: Unit, compiler: Compiler, path: Path, extra: tuple[str, ...]) -> None:
    logger.info("compiling the %s kernels (once): %s", unit.name, compiler.version)
    started = time.monotonic()
    with _beside(path) as part:
        source = SOURCES / f"{unit.name}.cpp"
        command = [*compiler.command, *FLAGS, *unit.flags, *extra, str(source), "-o", str(part)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{compiler.command[0]} took more than {TIMEOUT_S} s for {source.name}") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            reason = errors[0].strip() if errors else f"exit code {done.returncode}"
            raise BuildError(f"{compiler.command[0]} failed on {source.name}: {reason}")
        path.with_suffix(".sha256").write_text(hashlib.sha256(part.read_bytes()).hexdigest(), encoding="ascii")
        part.replace(path)
    logger.info("compiled %s in %.1f s", path, time.monotonic() - started)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a path, and leave nothing there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
