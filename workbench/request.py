"""A run as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.context import Inputs
from workbench.errors import UserError
from workbench.plugin import Plugin


@dataclass(frozen=True)
class Request:
    """A run as it was asked for: the plugin, its configuration, and what it reads.

    Attributes
    ----------
    plugin : type
        The plugin's class.
    config : object
        Validated.
    inputs : Inputs
        As given; what is missing is filled in from the plugin's defaults.
    device, dtype, device_map : str
        How a subject is loaded.
    seed : int
        Of every random choice.
    """

    plugin: type[Plugin]
    config: Any
    inputs: Inputs
    device: str = "auto"
    dtype: str | None = None
    device_map: str | None = None
    seed: int = 0


def checked_seed(seed: Any) -> int:
    """Refuse what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed={seed}: must be a whole number between 0 and 2**63 - 1")
    return seed
