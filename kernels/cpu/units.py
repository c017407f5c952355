"""The compiled units, one per instruction set, and what this processor has of it."""

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mprefer-vector-width=512")
AVX2 = ("-mavx2", "-mfma")
HAS_AVX2 = frozenset({"avx2", "fma"})
HAS_AVX512 = HAS_AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@dataclass(frozen=True)
class Unit:
    """One translation unit.

    Attributes
    ----------
    name : str
        Also of its source, ``csrc/NAME.cpp``.
    flags : tuple of str
        For the compiler; never ``-march=native``, since homes are shared between machines.
    needs : frozenset of str
        What the processor must have, in the words of ``/proc/cpuinfo``.
    screens : tuple of str
        How it can choose latents, those taken for large batches first.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]
    screens: tuple[str, ...] = ("float32", "exact")

    def lacking(self) -> list[str]:
        """Return what this unit needs and this processor does not have."""
        return sorted(self.needs - features())


# Best first: the first one that the processor has and the compiler knows is used.
UNITS = {
    unit.name: unit
    for unit in (
        Unit(
            "avx512_bf16",
            (*AVX512, "-mavx512vnni", "-mavx512bf16"),
            HAS_AVX512 | {"avx512_vnni", "avx512_bf16"},
            ("int8", "bfloat16", "float32", "exact"),
        ),
        Unit("avx512_vnni", (*AVX512, "-mavx512vnni"), HAS_AVX512 | {"avx512_vnni"}, ("int8", "float32", "exact")),
        Unit("avx512", AVX512, HAS_AVX512),
        Unit("avx2", AVX2, HAS_AVX2),
        Unit("generic", (), frozenset()),
    )
}


@functools.cache
def features() -> frozenset[str]:
    """Return what the processor has and the system lets programs use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _as_torch_sees()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def _as_torch_sees() -> frozenset[str]:
    """Where there is no /proc/cpuinfo torch still knows the widest vectors."""
    import torch

    widest = torch.backends.cpu.get_cpu_capability()
    return HAS_AVX512 if widest == "AVX512" else HAS_AVX2 if widest == "AVX2" else frozenset()


@functools.cache
def processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
