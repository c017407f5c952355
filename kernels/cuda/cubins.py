"""Compile a CUDA source to a cubin, once per source, compiler and architecture; kept in the user's cache folder."""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from filelock import FileLock
from platformdirs import user_cache_path

SOURCES = Path(__file__).parent
# fmad=false: a product is fused into a sum where the source says fmaf and nowhere else, as on the CPU
NVCC_FLAGS = ("-std=c++17", "-fmad=false", "-cubin")
TIMEOUT_S = 600
DIGEST_BYTES = hashlib.sha256().digest_size  # at the end of a kept file

logger = logging.getLogger(__name__)


class CompilationError(Exception):
    """A compiler that is there refused a source; the message is the compiler's."""


class Compiler(Protocol):
    """One way from a source to a cubin."""

    @property
    def identity(self) -> str:
        """Name and version: part of the cache's key, and shown to the user."""

    def compile(self, source: Path, architecture: str) -> bytes:
        """Give the cubin of a source for `sm_XY`; raise CompilationError."""


@dataclass(frozen=True)
class Nvcc:
    """The compiler of a CUDA toolkit."""

    path: str
    identity: str

    def compile(self, source: Path, architecture: str) -> bytes:
        """Run nvcc."""
        with TemporaryDirectory(prefix="workbench-nvcc-") as folder:
            out = Path(folder) / "out.cubin"
            command = [self.path, *NVCC_FLAGS, f"-arch={architecture}", "-o", str(out), str(source)]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
            except subprocess.CalledProcessError as error:
                raise CompilationError(f"{' '.join(command)}: {error.stderr.strip()}") from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CompilationError(f"{self.path}: {error}") from error
            return out.read_bytes()


@dataclass(frozen=True)
class Nvrtc:
    """The compiler library that comes with torch's CUDA wheels, through the package cuda-core."""

    identity: str

    def compile(self, source: Path, architecture: str) -> bytes:
        """Compile in this process."""
        from cuda.core import Program, ProgramOptions

        options = ProgramOptions(
            name=source.name, arch=architecture, std="c++17", fma=False, include_path=[str(source.parent)]
        )
        try:
            code = Program(source.read_text(encoding="utf-8"), "c++", options).compile("cubin").code
        except Exception as error:  # the package's own errors have no common base
            raise CompilationError(f"{self.identity}: {error}") from error
        return bytes(code)


def compilers() -> Iterator[Compiler]:
    """List the compilers of this machine, the preferred first."""
    nvrtc = _nvrtc()
    if nvrtc is not None:
        yield nvrtc
    nvcc = _nvcc()
    if nvcc is not None:
        yield nvcc


def cubin(compiler: Compiler, name: str, architecture: str) -> bytes:
    """Return the cubin of `NAME.cu`, compiling it if the cache has none for this source, compiler and architecture.

    Raises
    ------
    CompilationError
        With the compiler's message.
    """
    source = SOURCES / f"{name}.cu"
    path = _folder() / f"{name}-{architecture}-{_key(source, compiler, architecture)}.cubin"
    kept = _read(path)
    if kept is not None:
        return kept
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # a second process waits instead of compiling the same
            kept = _read(path)
            if kept is None:
                kept = compiler.compile(source, architecture)
                part = path.with_suffix(f".{os.getpid()}.part")
                part.write_bytes(kept + hashlib.sha256(kept).digest())
                part.replace(path)
            return kept
    except OSError as error:
        logger.warning("CUDA kernels: %s is compiled, but cannot be kept for the next process: %s", source.name, error)
        return compiler.compile(source, architecture)


def _read(path: Path) -> bytes | None:
    """Read a kept cubin; None if there is none, or it is not what was written."""
    try:
        data = path.read_bytes()
    except OSError:  # mostly: no such file
        return None
    code, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _folder() -> Path:
    chosen = os.environ.get("WORKBENCH_KERNEL_CACHE")
    return (Path(chosen) if chosen else user_cache_path("interp-workbench") / "kernels") / "cuda"


def _key(source: Path, compiler: Compiler, architecture: str) -> str:
    digest = hashlib.sha256()
    for part in (compiler.identity, architecture, *NVCC_FLAGS):
        digest.update(part.encode() + b"\0")
    for file in (source, *sorted(SOURCES.glob("*.cuh"))):
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _nvrtc() -> Nvrtc | None:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return None
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program, ProgramOptions

        _, major, minor = nvrtc.nvrtcVersion()
    except Exception:  # noqa: BLE001  # the package without the library it wraps, or one too old: nvcc may be there
        return None
    del Program, ProgramOptions
    return Nvrtc(f"NVRTC {major}.{minor}")


def _nvcc() -> Nvcc | None:
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [os.environ.get("NVCC"), shutil.which("nvcc"), *(f"{r}/bin/nvcc" for r in roots if r)]
    for place in (*places, "/usr/local/cuda/bin/nvcc"):
        path = shutil.which(place) if place else None
        if path is None:
            continue
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        return Nvcc(path, f"nvcc, {done.stdout.strip().splitlines()[-1]}")
    return None
