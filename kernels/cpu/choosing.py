"""Which compiled unit answers for tensors on the processor, and why."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from workbench.kernels.cpu.compiler import BuildError
from workbench.kernels.cpu.kernels import SCREENS
from workbench.kernels.cpu.library import Library
from workbench.kernels.cpu.units import UNITS
from workbench.kernels.errors import KernelError

VARIABLE = "WORKBENCH_KERNELS"
REFERENCE = "reference"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What runs: a unit's library with a screen, or the PyTorch reference where `library` is None."""

    library: Library | None
    screen: str
    why: str

    @property
    def name(self) -> str:
        """Name of the unit, with the screen if that is forced; ``reference`` for the reference."""
        if self.library is None:
            return REFERENCE
        return self.library.unit.name + ("" if self.screen == "auto" else f":{self.screen}")


_lock = threading.Lock()
_choices: dict[str, Choice] = {}
_failed: dict[str, str] = {}  # units that could not be built in this process, and why
_forced: list[str] = []


def chosen() -> Choice:
    """Return what runs now: what `use` says, else the environment, else the best unit. Compiles it if need be.

    Raises
    ------
    KernelError
        If a kernel is forced that does not exist or cannot run here.
    """
    wanted = (_forced[-1] if _forced else os.environ.get(VARIABLE, "")) or "auto"
    found = _choices.get(wanted)
    if found is None:
        with _lock:
            found = _choices.get(wanted) or _choose(wanted)
            _choices[wanted] = found
    return found


@contextmanager
def use(name: str) -> Iterator[Choice]:
    """Force a kernel in a block of code, in all threads of the process.

    Parameters
    ----------
    name : str
        ``reference``, ``auto``, a unit (``avx2``), or a unit and how it chooses latents (``avx512_vnni:float32``).

    Raises
    ------
    KernelError
        If there is no such kernel, or it cannot run here.
    """
    _forced.append(name)
    try:
        yield chosen()
    finally:
        _forced.remove(name)


def _choose(wanted: str) -> Choice:
    if wanted == REFERENCE:
        return Choice(None, "auto", "asked for")
    if wanted != "auto":
        return _force(wanted)
    for unit in UNITS.values():
        if lacking := unit.lacking():
            logger.debug("kernels: not %s, the processor lacks %s", unit.name, ", ".join(lacking))
            continue
        try:
            found = Choice(Library(unit), "auto", "the best one that this processor and compiler can do")
            if _failed:
                logger.warning("kernels: %s is used; better ones cannot be built: %s", unit.name, _failed)
            return found
        except BuildError as error:
            _failed[unit.name] = str(error)
    why = next(iter(_failed.values()))
    logger.warning("kernels: the PyTorch reference runs, which is several times slower: %s", why)
    return Choice(None, "auto", why)


def _force(wanted: str) -> Choice:
    name, _, screen = wanted.partition(":")
    unit = UNITS.get(name)
    if unit is None:
        raise KernelError(f"kernel {wanted!r}: there are {REFERENCE}, {', '.join(UNITS)}")
    screen = screen or "auto"
    if screen not in ("auto", *unit.screens) or screen not in SCREENS:
        raise KernelError(f"kernel {wanted!r}: {name} has {', '.join(unit.screens)}")
    if lacking := unit.lacking():
        raise KernelError(f"kernel {wanted!r}: this processor lacks {', '.join(lacking)}")
    try:
        return Choice(Library(unit), screen, "asked for")
    except BuildError as error:
        raise KernelError(f"kernel {wanted!r} cannot be built: {error}") from error


def facts() -> list[dict[str, str]]:
    """Say of each unit whether it is used, could be, or why not; see `workbench kernels status`."""
    now = chosen()
    rows = []
    for unit in UNITS.values():
        used = now.library is not None and now.library.unit is unit
        if used:
            state = f"in use: {now.why}"
        elif lacking := unit.lacking():
            state = f"not here: the processor lacks {', '.join(lacking)}"
        elif unit.name in _failed:
            state = f"not built: {_failed[unit.name]}"
        else:
            state = "could be used"
        path = str(now.library.path) if used and now.library else ""
        rows.append({"kernel": unit.name, "state": state, "screens": ", ".join(unit.screens), "file": path})
    state = f"in use: {now.why}" if now.library is None else "used where nothing else is"
    rows.append({"kernel": REFERENCE, "state": state, "screens": "", "file": ""})
    return rows
