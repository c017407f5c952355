"""Load cubins and launch their kernels through the CUDA driver, on the stream and in the context that torch uses."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch

from workbench.kernels.cuda.cubins import CompilationError, Compiler, compilers, cubin
from workbench.kernels.cuda.launching import Argument, Extent, pointers

LIBRARY = "libcuda.so.1"
OLDEST = (8, 0)  # compute capability: cp.async, bfloat16 and m16n8k16 products
# numbers of the driver's header
MULTIPROCESSORS, SHARED_BYTES, MAJOR, MINOR = 16, 97, 75, 76  # CU_DEVICE_ATTRIBUTE_*
MAX_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
ORDINARY_SHARED_BYTES = 48 * 1024  # above it a kernel must be given leave


class DriverError(Exception):
    """The driver refused a call; the message holds the call and the driver's word for the reason."""


class Unavailable(Exception):
    """This device cannot run our kernels; the message says why."""


class Device:
    """One GPU: its context, the modules loaded into it, and how to launch them. A `Launcher`.

    Parameters
    ----------
    index : int
        As in `torch.device("cuda", index)`.

    Raises
    ------
    Unavailable
        If the driver cannot be loaded, the device is older than sm_80, or no compiler gives code that it takes.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = torch.cuda.get_device_name(index)
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Unavailable(f"{LIBRARY} cannot be loaded: {error}") from error
        self._lock = threading.Lock()
        self._modules: dict[str, ctypes.c_void_p] = {}
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._allowed: dict[str, int] = {}
        self._context = ctypes.c_void_p()
        self._call("cuInit", 0)
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), index)
        major, minor, self.n_processors, self.shared_bytes = (
            self._attribute(handle, which) for which in (MAJOR, MINOR, MULTIPROCESSORS, SHARED_BYTES)
        )
        if (major, minor) < OLDEST:
            raise Unavailable(f"{self.name} has compute capability {major}.{minor}, needs {OLDEST[0]}.{OLDEST[1]}")
        self.architecture = f"sm_{major}{minor}"
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)  # the one torch works in
        self.compiler = self._choose_compiler()

    def launch(self, kernel: str, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int = 0) -> None:
        """Start a kernel; see `Launcher`."""
        grid_x, grid_y = (*grid, 1)[:2]
        block_x, block_y = (*block, 1)[:2]
        stream = ctypes.c_void_p(torch.cuda.current_stream(self.index).cuda_stream)
        values = pointers(arguments)
        with self._lock:
            self._call("cuCtxPushCurrent_v2", self._context)  # a thread of autograd's may have none yet
            try:
                function = self._function(kernel)
                if shared_bytes > self._allowed.get(kernel, ORDINARY_SHARED_BYTES):
                    self._call("cuFuncSetAttribute", function, MAX_SHARED_SIZE, shared_bytes)
                    self._allowed[kernel] = shared_bytes
                extents = [ctypes.c_uint(n) for n in (grid_x, grid_y, 1, block_x, block_y, 1, shared_bytes)]
                self._call("cuLaunchKernel", function, *extents, stream, values, None)
            finally:
                self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _choose_compiler(self) -> Compiler:
        """Take the first compiler whose cubin this driver loads (one newer than the driver may not be)."""
        tried = []
        for compiler in compilers():
            self.compiler = compiler
            self._call("cuCtxPushCurrent_v2", self._context)
            try:
                self._module("decode")
            except (CompilationError, DriverError) as error:
                tried.append(f"{compiler.identity}: {error}")
            else:
                return compiler
            finally:
                self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        why = "; ".join(tried) if tried else "neither the package cuda-core with NVRTC nor nvcc was found"
        raise Unavailable(f"{self.name}: {why}")

    def _attribute(self, handle: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, handle)
        return value.value

    def _module(self, source: str) -> ctypes.c_void_p:
        if source not in self._modules:
            module = ctypes.c_void_p()
            self._call("cuModuleLoadData", ctypes.byref(module), cubin(self.compiler, source, self.architecture))
            self._modules[source] = module
        return self._modules[source]

    def _function(self, kernel: str) -> ctypes.c_void_p:
        if kernel not in self._functions:
            source, name = kernel.split(".")
            function = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(function), self._module(source), name.encode())
            self._functions[kernel] = function
        return self._functions[kernel]

    def _call(self, name: str, *arguments: Any) -> None:
        entry: Callable[..., int] = getattr(self._library, name)
        status = entry(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else "unknown error"
            raise DriverError(f"{name}: error {status}, {reason}")
