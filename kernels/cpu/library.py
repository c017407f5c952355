"""A compiled unit, loaded: its functions with their types, torch's threads, and a workspace."""

import ctypes
import functools
import threading
from pathlib import Path

import torch
from torch import Tensor

from workbench.kernels.cpu import compiler
from workbench.kernels.cpu.interface import NUMBER, POINTER, SIZE, Codes, Encode, Update
from workbench.kernels.cpu.units import Unit

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
FUNCTIONS = {
    "encode": Encode,
    "decode": Codes,
    "dots": Codes,
    "decode_error": Codes,
    "scatter": Codes,
    "update": Update,
}
COUNTS = ("candidates", "rescored", "left to float32", "computed exactly", "first screen")
Call = Encode | Codes | Update


class Library:
    """The kernels of one unit.

    Parameters
    ----------
    unit : Unit
        Compiled first, if need be.
    extra : tuple of str
        Further flags for the compiler.

    Attributes
    ----------
    counts : dict of str to int
        What the last call of the encoder did: pairs that passed a low-precision screen, pairs computed exactly, rows
        handed on to the float32 screen, rows whose every score was computed exactly; and the number of the screen
        that it started with.

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
        self._functions.workbench_use_threads.argtypes = [POINTER] * 3
        self._functions.workbench_first_bad.argtypes = [ctypes.POINTER(Codes)]
        self._functions.workbench_first_bad.restype = SIZE
        self._functions.workbench_encode_screen.argtypes = [ctypes.POINTER(Encode)]
        self._functions.workbench_encode_screen.restype = NUMBER
        self._sized: set[str] = set()
        for name, structure in FUNCTIONS.items():
            getattr(self._functions, f"workbench_{name}").argtypes = [ctypes.POINTER(structure)]
            size = getattr(self._functions, f"workbench_{name}_bytes", None)
            if size is not None:
                size.argtypes, size.restype = [ctypes.POINTER(structure)], SIZE
                self._sized.add(name)
        if threads := _openmp():
            self._functions.workbench_use_threads(*threads)
        self._held = threading.local()
        self.counts = dict.fromkeys(COUNTS, 0)

    def run(self, name: str, call: Call) -> None:
        """Call a function of csrc/interface.h with torch's number of threads and as much workspace as it needs."""
        call.threads = torch.get_num_threads()
        if name in self._sized:
            call.workspace = self._workspace(getattr(self._functions, f"workbench_{name}_bytes")(ctypes.byref(call)))
        getattr(self._functions, f"workbench_{name}")(ctypes.byref(call))

    def screen(self, call: Encode) -> int:
        """Return the number of the screen with which the encoder starts on a batch, by its sizes."""
        return int(self._functions.workbench_encode_screen(ctypes.byref(call)))

    def first_bad(self, call: Codes) -> int:
        """Return the number of the first index that names no latent, or -1."""
        return int(self._functions.workbench_first_bad(ctypes.byref(call)))

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
