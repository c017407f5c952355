"""A grid as it is written: what is the same for all jobs, and lists to be crossed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from workbench.configuration import FILE_KEYS, TEXT_KEYS, flatten, from_folder, read_keys
from workbench.errors import UserError, nearest
from workbench.registry import registry
from workbench.request import checked_seed

GRID_KEYS = (*FILE_KEYS, "grid")
INPUTS = ("store", "model", "data", "dictionary")
PATHS = ("store", "dictionary", "data")
PATTERNS = ("hook_point", "label")  # a text stands for all that it matches
COMMON = (*INPUTS, "seed", "device")


@dataclass(frozen=True)
class Grid:
    """What a grid file says.

    Attributes
    ----------
    where : str
        The file, for messages; ``grid`` if there is none.
    plugins : tuple of str
        Names of installed plugins.
    fixed : mapping
        Of `COMMON`: what all jobs share.
    options : mapping
        The plugins' options by dotted key; ``PLUGIN.KEY`` is for one plugin alone.
    axes : mapping of str to tuple
        Lists to be crossed: keys of `COMMON`, options, ``PLUGIN.KEY``.
    file : Path, optional
        Where it was read from.
    """

    where: str
    plugins: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    file: Path | None = None

    def fixed_for(self, plugin: str) -> dict[str, Any]:
        """Return the options under ``set`` that are for a plugin, without its name in front."""
        return self._of_plugin(self.options, plugin)

    def axes_for(self, plugin: str) -> dict[str, tuple[Any, ...]]:
        """Return the axes that are for a plugin, without its name in front."""
        return self._of_plugin(self.axes, plugin)

    def key_of(self, option: str, plugin: str) -> str:
        """Return the key, as it is written, that gives a plugin an option."""
        for place, values in (("grid", self.axes), ("set", self.options)):
            for key in (option, f"{plugin}.{option}"):
                if key in values:
                    return f"{place}.{key}"
        return option

    def _of_plugin(self, values: Mapping[str, Any], plugin: str) -> dict[str, Any]:
        found = {}
        for key, value in values.items():
            if _owner(key) in (None, plugin):
                found[key.removeprefix(f"{plugin}.")] = value
        return found


def read_grid(source: str | Path | Mapping[str, Any]) -> Grid:
    """Read a grid from a YAML file, or take it from a mapping of the same form.

    Relative paths count from the file, those of a mapping from the working folder.

    Raises
    ------
    UserError
        Naming the key that is wrong, and what would be right.
    """
    if isinstance(source, Mapping):
        where, folder, values = "grid", Path(), dict(source)
        for key in values:
            if key not in GRID_KEYS:
                raise UserError(f"{where}: no key {key!r}; nearest: {nearest(str(key), GRID_KEYS)}")
    else:
        where, folder = str(source), Path(source).parent
        values = read_keys(Path(source), GRID_KEYS)
    axes: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for key in ("plugin", *COMMON):
        value = values.get(key)
        if isinstance(value, list | tuple):
            axes[key] = _axis(f"{where}: {key}", key, value)
        elif value is not None:
            fixed[key] = _checked(f"{where}: {key}", key, value)
    crossed = _mapping(where, "grid", values)
    for key, value in crossed.items():
        if key in axes or key in fixed:
            raise UserError(f"{where}: {key} and grid.{key} are both given: leave one out")
        axes[key] = _axis(f"{where}: grid.{key}", key, value)
    options = _mapping(where, "set", values)
    for key in options:
        if key in axes:
            raise UserError(f"{where}: set.{key} and grid.{key} are both given: leave one out")
        if key in ("plugin", *COMMON):
            raise UserError(f"{where}: set.{key}: {key} is no option of a plugin; write it beside set, or under grid")
    for key in PATHS:
        if isinstance(fixed.get(key), str):
            fixed[key] = from_folder(fixed[key], folder)
        if key in axes:
            axes[key] = tuple(from_folder(value, folder) for value in axes[key])
    plugins = axes.pop("plugin", (fixed.pop("plugin"),) if "plugin" in fixed else ())
    if not plugins:
        raise UserError(f"{where}: names no plugin: give plugin: NAME, or a list of names")
    for name in plugins:
        try:
            registry().plugin(name)
        except UserError as error:
            raise UserError(f"{where}: plugin: {error}") from None
    for place, keys in (("set", options), ("grid", axes)):
        for key in keys:
            owner = _owner(key)
            if owner is not None and owner not in plugins:
                raise UserError(f"{where}: {place}.{key}: {owner} is not among the plugins: {', '.join(plugins)}")
    return Grid(where, plugins, fixed, options, axes, None if isinstance(source, Mapping) else Path(source).resolve())


def crossings(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Go through all combinations of the axes' values; the last axis varies fastest."""
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _owner(key: str) -> str | None:
    """Return the plugin that a key names in front; None if it is for all."""
    return next((name for name in registry().plugins if key.startswith(f"{name}.")), None)


def _mapping(where: str, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands under a key, nested mappings as dotted keys."""
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        meant = "lists to be crossed, KEY: [VALUE, …]" if key == "grid" else "the plugins' options, KEY: VALUE"
        raise UserError(f"{where}: {key} must hold {meant}")
    return flatten({str(name): value for name, value in found.items()})


def _axis(where: str, key: str, values: Any) -> tuple[Any, ...]:
    """Check one list to be crossed."""
    if isinstance(values, str) and key.rpartition(".")[2] in PATTERNS:
        values = [values]  # a pattern: one job for each that it matches
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}: {values!r} must be a list of values to be crossed, such as [1, 2]")
    if not values:
        raise UserError(f"{where}: the list is empty: give at least one value, or leave the key out")
    for at, value in enumerate(values):
        if value in values[:at]:
            raise UserError(f"{where}: {value!r} is there twice")
    return tuple(_checked(where, key, value) for value in values)


def _checked(where: str, key: str, value: Any) -> Any:
    """Check a value that belongs to no plugin."""
    if key in (*TEXT_KEYS, *INPUTS):
        value = str(value) if isinstance(value, Path) else value
        if not isinstance(value, str):
            raise UserError(f"{where}: {value!r} must be text")
    if key == "seed":
        try:
            checked_seed(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return value
