"""Errors that a person can mend: what is wrong, what would be right, where to look."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Wrong input. The command line prints the message alone and exits with 2."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return the `n` known names closest to `name`, comma-separated, best first; "none" where nothing is known."""
    return ", ".join(get_close_matches(name, list(known), n=n, cutoff=0.0)) or "none"


def is_wrong_input(error: BaseException) -> bool:
    """True for errors that a person can mend: ours, and those of the ground-floor rooms that have been imported."""
    rooms = (
        ("workbench.cache", "StoreError"),
        ("workbench.probes", "ProbeError"),
        ("workbench.kernels.errors", "KernelError"),
    )
    kinds = [getattr(sys.modules[room], name) for room, name in rooms if room in sys.modules]
    return isinstance(error, (UserError, *kinds))
