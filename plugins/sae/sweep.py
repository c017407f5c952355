"""Several dictionaries of one run: every combination of the values that a sweep lists, by name."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from workbench.configuration import get_dotted, to_dict
from workbench.dictionary import JOIN
from workbench.errors import UserError
from workbench.plugins.sae import SaeConfig, SweepConfig
from workbench.plugins.sae.settings import COUNTED, L1

KEYS = {  # of what is swept, in the order in which names have it: its key in the configuration
    "architecture": "architecture",
    "hook_point": "hook_point",
    "latents": "latents",
    "expansion": "expansion",
    "k": "k",
    "sparsity": "sparsity",
    "lr": "train.lr",
    "seed": "train.seed",
}
PLAIN = ("architecture", "hook_point")  # whose value says by itself what it is
ALONG = ("k", "sparsity", "seed")  # what is varied along a line of the figure, not from line to line
LONGEST_NAME = 100


@dataclass(frozen=True)
class Variant:
    """One dictionary of a run.

    Attributes
    ----------
    name : str
        Of its weights.
    config : SaeConfig
        With which it would be trained alone.
    values : dict
        What it has of the options that are swept; an option that it does not have is left out.
    """

    name: str
    config: SaeConfig
    values: dict[str, Any]

    @property
    def line(self) -> str:
        """What it has in common with those that differ in how sparse they are, and in their seeds."""
        return name_of({key: value for key, value in self.values.items() if key not in ALONG})

    @property
    def family(self) -> str:
        """What it has in common with those that differ in their seeds alone."""
        return name_of({key: value for key, value in self.values.items() if key != "seed"})


def swept(config: SaeConfig) -> dict[str, tuple[Any, ...]]:
    """Return the values of each option that is swept."""
    return {key: values for key in KEYS if (values := getattr(config.sweep, key))}


def variants(config: SaeConfig) -> list[Variant]:
    """Return what is to be trained: the configuration itself, or every combination of the values that are swept.

    A number of active latents or a weight of a penalty is left out where architectures are swept and one of them does
    not have it; combinations that come to the same are trained once.

    Raises
    ------
    UserError
        If an option is given and swept, or a value listed twice.
    """
    grid = swept(config)
    if not grid:
        return [Variant("dictionary", config, {})]
    check_grid(config, grid)
    found: dict[str, Variant] = {}
    for combination in product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        architecture = values.get("architecture", config.architecture)
        absent = absent_in(architecture) if "architecture" in grid else ()
        values = {key: value for key, value in values.items() if key not in absent}
        own = replace(config, sweep=SweepConfig())
        for key, value in [*values.items(), *((key, None) for key in absent)]:
            own = with_value(own, key, value)
        variant = Variant(name_of(values), own, values)
        found.setdefault(repr(own), variant)
    chosen = list(found.values())
    names = {variant.name.lower() for variant in chosen}
    if len(names) < len(chosen) or max(map(len, names)) > LONGEST_NAME:  # they become names of files
        return [replace(variant, name=f"{number:03d}") for number, variant in enumerate(chosen, start=1)]
    return chosen


def check_grid(config: SaeConfig, grid: dict[str, tuple[Any, ...]]) -> None:
    """Refuse options that are given and swept, and values that are listed twice."""
    defaults = to_dict(SaeConfig())
    for key, values in grid.items():
        given = get_dotted(config, KEYS[key])
        if given != defaults[KEYS[key]]:
            raise UserError(f"{KEYS[key]}={given}: is swept as well, sweep.{key}={list(values)}; give one of the two")
        if len(set(values)) < len(values):
            raise UserError(f"sweep.{key}={list(values)}: each value once")
    if {"latents", "expansion"} <= grid.keys() or ("expansion" in grid and config.latents is not None):
        raise UserError("sweep.expansion: says nothing where latents are given; leave one of the two out")


def absent_in(architecture: str) -> tuple[str, ...]:
    """Return which of k and sparsity an architecture does not have."""
    if architecture in COUNTED:
        return ("sparsity",)
    return ("k",) if architecture in L1 else ()


def with_value(config: SaeConfig, key: str, value: Any) -> SaeConfig:
    """Return a configuration with one more option set."""
    if KEYS[key].startswith("train."):
        return replace(config, train=replace(config.train, **{key: value}))
    return replace(config, **{key: value})


def name_of(values: dict[str, Any]) -> str:
    """Return a name that says what values are, of letters, digits and ``._-``.

    Examples
    --------
    >>> name_of({"hook_point": ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"), "k": 16, "lr": 1e-4})
    'blocks.1.hook_mlp_out-blocks.2.hook_mlp_out-k16-lr0.0001'
    """
    words = [f"{'' if key in PLAIN else key}{shown(value)}" for key, value in values.items()]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))


def shown(value: Any) -> str:
    """Write a value as a person reads it."""
    if isinstance(value, tuple):
        return JOIN.join(value)
    return f"{value:g}".replace("+", "") if isinstance(value, float) else str(value)


def announce(chosen: list[Variant], log: logging.Logger) -> None:
    """Say what will be trained, one line each, before it begins."""
    log.info("%d dictionaries from one pass:", len(chosen))
    for variant in chosen:
        log.info("  %s: %s", variant.name, ", ".join(f"{key} {shown(value)}" for key, value in variant.values.items()))
