"""Where the CUDA kernels run in tests: on a CPU, their sources compiled with the shim, and with `-m gpu` on a GPU.

With WORKBENCH_SHIM=sanitized (set by `make shim`, which also preloads the sanitizers' libraries) they run under
AddressSanitizer and UndefinedBehaviorSanitizer, and more seeds are tried.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from torch import Tensor

from workbench.kernels.cuda import registration
from workbench.kernels.cuda.driver import Device
from workbench.kernels.cuda.launching import Argument, Extent, pointers

ROOT = Path(__file__).parents[3]
SHIM, KERNELS = ROOT / "tests" / "kernels" / "shim", ROOT / "kernels" / "cuda"
SANITIZED = os.environ.get("WORKBENCH_SHIM") == "sanitized"
# -ffp-contract=off: a product is fused into a sum where the source says fmaf and nowhere else
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if SANITIZED else ["-O1"]
SEEDS = range(2) if SANITIZED else range(1)


class ShimError(Exception):
    """A kernel misused the execution model; the message says how."""


class Recorded:
    """A `Launcher` that remembers. `launched` lists the kernels that ran, `arguments` what each was last given."""

    where = "cpu"
    n_processors: int
    shared_bytes: int

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.arguments: dict[str, tuple[Argument, ...]] = {}

    def launch(self, kernel: str, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int = 0) -> None:
        self.launched.append(kernel)
        self.arguments[kernel] = arguments
        self.start(kernel, grid, block, *arguments, shared_bytes=shared_bytes)

    def start(self, kernel: str, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int) -> None:
        raise NotImplementedError

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the host side of a kernel with tensors of the CPU, and bring its results back there."""
        result = function(self, *(a.to(self.where) if isinstance(a, Tensor) else a for a in arguments))
        return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()


class ShimDevice(Recorded):
    """A GPU of three multiprocessors made of one CPU thread; `seed` decides the order of threads and blocks."""

    n_processors = 3
    shared_bytes = 227 * 1024  # of sm_90

    def __init__(self, library: Path, seed: int) -> None:
        super().__init__()
        self._library = ctypes.CDLL(str(library))
        self._library.shim_message.restype = ctypes.c_char_p
        self.seed = seed

    def start(self, kernel: str, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int) -> None:
        name = kernel.split(".")[1].encode()
        extents = [(ctypes.c_uint * 3)(*(*extent, 1, 1)[:3]) for extent in (grid, block)]
        self.seed += 1
        shared, seed = ctypes.c_size_t(shared_bytes), ctypes.c_uint64(self.seed)
        if self._library.shim_launch(name, *extents, shared, pointers(arguments), seed):
            raise ShimError(f"{kernel}: {self._library.shim_message().decode()}")


class GpuDevice(Recorded):
    """The first GPU, with our kernels on it: where they cannot run, these tests fail."""

    where = "cuda"

    def __init__(self, seed: int) -> None:
        super().__init__()
        found = registration.device(0)
        assert isinstance(found, Device), found
        self.n_processors, self.shared_bytes = found.n_processors, found.shared_bytes
        self.start = found.launch
        self.seed = seed


def compiled(folder: Path) -> Path:
    """Compile every kernel with the shim into one library, unless `folder` has it already."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the CUDA kernels for the CPU")
    sources = [*sorted(SHIM.glob("*.cpp")), *sorted(KERNELS.glob("*.cu"))]
    headers = [*SHIM.glob("*.h"), *KERNELS.glob("*.cuh")]
    digest = hashlib.sha256(repr(FLAGS).encode())
    for file in sorted([*sources, *headers]):
        digest.update(file.read_bytes())
    folder = folder / digest.hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    library = folder / "kernels.so"
    with FileLock(folder / "lock"):
        if not library.exists():
            objects = [folder / f"{source.stem}.o" for source in sources]
            include = [f"-I{SHIM}", f"-I{KERNELS}"]
            commands = [
                [compiler, *FLAGS, *include, "-c", "-x", "c++", str(source), "-o", str(into)]
                for source, into in zip(sources, objects, strict=True)
            ]
            running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
            messages = [process.communicate()[1] for process in running]
            assert not any(process.returncode for process in running), "\n".join(messages)
            part = folder / "part.so"
            subprocess.run([compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(part)], check=True)
            part.replace(library)
    return library


@pytest.fixture(scope="session")
def shim_library(pytestconfig) -> Path:
    return compiled(Path(pytestconfig.cache.mkdir("shim")))


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def new_device(request) -> Callable[[int], Recorded]:
    """Make a device from a seed."""
    if request.param == "gpu":
        return GpuDevice
    library = request.getfixturevalue("shim_library")
    return lambda seed: ShimDevice(library, seed)


@pytest.fixture(params=SEEDS)
def device(new_device, request) -> Recorded:
    return new_device(request.param * 1000)
