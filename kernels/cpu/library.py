"""A compiled unit, loaded: its functions with their types, torch's threads, and a workspace."""

import ctypes
import functools
import threading
from pathlib import Path

import torch
from torch import Tensor

from workbench.kernels.cpu import compiler
from workbench.kernels.cpu.units import Unit

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SCREENS = {"auto": -1, "exact": 0, "float32": 1, "int8": 2, "bfloat16": 3}
COUNTS = ("candidates", "rescored", "left to float32", "computed exactly")
POINTER = ctypes.c_void_p
SIZE = ctypes.c_int64


class Encode(ctypes.Structure):
    """Mirrors `Encode` of csrc/interface.h."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "W", "b")),
        *((name, SIZE) for name in ("rows", "width", "latents", "k")),
        *((name, ctypes.c_int32) for name in ("dtype", "screen", "threads", "unused")),
        *((name, POINTER) for name in ("values", "indices", "counts", "workspace")),
    )


class Library:
    """The kernels of one unit.

    Parameters
    ----------
    unit : Unit
        Compiled first, if need be.
    extra : tuple of str
        Further flags for the compiler.

    Raises
    ------
    BuildError
        If it cannot be compiled or loaded.
    """

    def __init__(self, unit: Unit, extra: tuple[str, ...] = ()) -> None:
        self.unit = unit
        self.path: Path = compiler.build(unit, extra)
        try:
            self._functions = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise compiler.BuildError(f"{self.path} cannot be loaded: {error}") from error
        self._functions.workbench_encode_bytes.restype = SIZE
        self._functions.workbench_use_threads.argtypes = [POINTER] * 3
        for name, arguments in {"encode": Encode, "encode_bytes": Encode}.items():
            getattr(self._functions, f"workbench_{name}").argtypes = [ctypes.POINTER(arguments)]
        if threads := _openmp():
            self._functions.workbench_use_threads(*threads)
        self._held = threading.local()
        self.counts = dict.fromkeys(COUNTS, 0)  # of the last call, for tests and for the curious

    def topk_encode(self, x: Tensor, W: Tensor, b: Tensor, k: int, screen: str = "auto") -> tuple[Tensor, Tensor]:
        """Encode; see `workbench.kernels.topk.topk_encode`. The tensors are checked, on the CPU, and of one dtype."""
        x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
        rows, width = x.shape
        values = torch.empty(rows, k, dtype=torch.float32)
        indices = torch.empty(rows, k, dtype=torch.int64)
        counts = torch.zeros(len(COUNTS), dtype=torch.int64)
        call = Encode(
            *(t.data_ptr() for t in (x, W, b)), rows, width, W.shape[0], k,
            DTYPES[x.dtype], SCREENS[screen], torch.get_num_threads(), 0,
            *(t.data_ptr() for t in (values, indices, counts)),
        )  # fmt: skip
        if rows:
            call.workspace = self._workspace(self._functions.workbench_encode_bytes(ctypes.byref(call)))
            self._functions.workbench_encode(ctypes.byref(call))
        self.counts = dict(zip(COUNTS, counts.tolist(), strict=True))
        return values.to(x.dtype), indices

    def _workspace(self, n_bytes: int) -> int:
        """Return the address of memory that this thread keeps: fresh pages at each call would cost a tenth of it."""
        held: Tensor | None = getattr(self._held, "memory", None)
        if held is None or held.numel() < n_bytes:
            self._held.memory = None  # the old one is freed before the new one is taken
            held = self._held.memory = torch.empty(n_bytes, dtype=torch.uint8)
        return held.data_ptr()


@functools.cache
def _openmp() -> tuple[int, int, int] | None:
    """Return the addresses of the functions of the OpenMP runtime that torch has loaded, if it can be found.

    Kernels enter parallel regions by them: with a runtime of their own a second pool of threads would spin against
    torch's. Without them they start threads of their own for each call.
    """
    everything = ctypes.CDLL(None)
    try:
        functions = [
            getattr(everything, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        ]
    except AttributeError:
        return None
    fork, number, count = (ctypes.cast(function, POINTER).value or 0 for function in functions)
    return fork, number, count
