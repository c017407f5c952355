"""From a grid to jobs: everything that can be wrong with any of them is found before the first one runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from workbench import configuration
from workbench.batching.grid import COMMON, INPUTS, PATTERNS, Grid, crossings
from workbench.batching.jobs import Job, text_of
from workbench.cache import Store, open_store
from workbench.context import Context, Inputs
from workbench.errors import UserError, is_wrong_input, nearest
from workbench.execution import with_defaults
from workbench.registry import registry
from workbench.request import Request
from workbench.run_manifest import input_parts, own_parts
from workbench.runs import identity_of

if TYPE_CHECKING:
    from workbench.plugin import Plugin

SIGNS = "*?["


@dataclass
class Plan:
    """The jobs of a grid.

    Attributes
    ----------
    grid : Grid
        Where they come from.
    jobs : list of Job
        Each identity once, in the order of the grid.
    n_same : int
        How many more there would be, had they not the identity of another.
    to_make : list of str
        Inputs that are made before jobs run, where a plan was asked for that makes nothing.
    """

    grid: Grid
    jobs: list[Job] = field(default_factory=list)
    n_same: int = 0
    to_make: list[str] = field(default_factory=list)


def make_plan(grid: Grid, out: Path, *, make: bool = True) -> Plan:
    """Expand a grid into jobs, and check every one.

    Parameters
    ----------
    grid : Grid
        As read.
    out : Path
        The batch's folder; what plugins need and was not given is made under ``inputs/`` in it.
    make : bool
        False makes nothing: jobs whose inputs would have to be made have no identity then.

    Raises
    ------
    UserError
        Naming the key, or the job, that is wrong.
    """
    plan, planner = Plan(grid), Planner(grid, out, make)
    seen: set[str] = set()
    for job in planner.jobs():
        if job.identity in seen:
            plan.n_same += 1
            continue
        if job.identity:
            seen.add(job.identity)
        plan.jobs.append(job)
    plan.to_make = list(dict.fromkeys(planner.to_make))
    return plan


class Planner:
    """Makes the jobs of one grid; stores are opened and inputs fingerprinted once, however many jobs read them."""

    def __init__(self, grid: Grid, out: Path, make: bool) -> None:
        self.grid, self.out, self.make = grid, out, make
        self.to_make: list[str] = []
        self._stores: dict[str, Store] = {}
        self._found: dict[tuple[Any, ...], tuple[dict[str, str], dict[str, str]]] = {}
        self._known: set[tuple[str, ...]] = set()

    def jobs(self) -> Iterator[Job]:
        """Go through all combinations, plugin by plugin; all are checked as far as can be before anything is made."""
        for name in self.grid.plugins:
            plugin = registry().plugin(name)
            self._check_options(plugin, self.grid.axes_for(name), self.grid.fixed_for(name))
        for job, request in list(self._drafts()):
            yield self._completed(job, request)

    def _drafts(self) -> Iterator[tuple[Job, Request]]:
        """Go through all combinations, without inputs that have to be made, and without identities."""
        for name in self.grid.plugins:
            plugin = registry().plugin(name)
            axes, options = self.grid.axes_for(name), self.grid.fixed_for(name)
            reading = {key: axes[key] for key in axes if key in INPUTS}
            rest = {key: values for key, values in axes.items() if key not in INPUTS}
            for read in crossings(reading):
                given = {key: self.grid.fixed[key] for key in INPUTS if key in self.grid.fixed} | read
                store = self._store(given.get("store"))
                for values in crossings({key: self._expanded(key, rest[key], store) for key in rest}):
                    yield self._draft(plugin, given, {**options, **values}, {**read, **values})

    def _check_options(self, plugin: type[Plugin], axes: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Hold every value of every option against the plugin's configuration."""
        known = {option.key: option for option in configuration.fields(plugin.Config)}
        single = {key: (value,) for key, value in options.items()}
        crossed = {key: values for key, values in axes.items() if key not in COMMON}
        for key, values in {**single, **crossed}.items():
            where = f"{self.grid.where}: {self.grid.key_of(key, plugin.name)}"
            if key not in known:
                near = nearest(key, known if key in options else [*known, *COMMON])
                raise UserError(f"{where}: {plugin.name} has no option {key!r}; nearest: {near}")
            for value in values:
                try:
                    configuration.check(known[key], value)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None

    def _store(self, path: str | None) -> Store | None:
        """Open a store, once."""
        if path is None:
            return None
        if path not in self._stores:
            try:
                self._stores[path] = open_store(Path(path).resolve())
            except Exception as error:
                if not is_wrong_input(error):
                    raise
                raise UserError(f"{self.grid.where}: store: {error}") from None
        return self._stores[path]

    def _expanded(self, key: str, values: Sequence[Any], store: Store | None) -> list[Any]:
        """Put what a pattern matches in its place."""
        if key not in PATTERNS:
            return list(values)
        found: dict[Any, None] = {}
        for value in values:
            if not isinstance(value, str) or not any(sign in value for sign in SIGNS):
                found[tuple(value) if isinstance(value, list) else value] = None
                continue
            where = f"{self.grid.where}: {self.grid.key_of(key, '')}"
            if store is None:
                raise UserError(
                    f"{where}: {value!r} needs a store to look in: give store: ACTS, or write the names out"
                )
            matched = matching(value, key, store)
            if not matched:
                raise UserError(f"{where}: {unknown(value, key, store)}")
            found |= dict.fromkeys(matched)
        return list(found)

    def _draft(
        self, plugin: type[Plugin], given: Mapping[str, str], values: dict[str, Any], axes: Mapping[str, Any]
    ) -> tuple[Job, Request]:
        """Check one combination."""
        options = {key: value for key, value in values.items() if key not in COMMON}
        common = {key: values.get(key, self.grid.fixed.get(key)) for key in ("seed", "device")}
        job = Job(
            identity="",
            plugin=plugin.name,
            options=configuration.plain_values(options),
            seed=common["seed"] or 0,
            device=common["device"] or "auto",
            inputs=given,
            axes=configuration.plain_values(axes),
        )
        try:
            config = configuration.build(plugin.Config, options)
        except UserError as error:
            raise UserError(f"{self.grid.where}: job {job.named()}: {error}") from None
        store = self._store(given.get("store"))
        self._check_names(plugin, config, store)
        inputs = Inputs(store, given.get("model"), given.get("data"), given.get("dictionary"))
        return job, Request(plugin, config, inputs, job.device, seed=job.seed)

    def _completed(self, job: Job, request: Request) -> Job:
        """Give a job its inputs and its identity; it has none yet if its inputs are not to be made now."""
        found = self._complete(request, job.inputs)
        if found is None:
            return replace(job, inputs={})
        inputs, fingerprints = found
        if "store" not in job.inputs and "store" in inputs:
            self._check_names(request.plugin, request.config, self._store(inputs["store"]))
        identity = identity_of({**own_parts(request), **fingerprints})
        return replace(job, identity=identity, inputs=inputs, fingerprints=fingerprints)

    def _check_names(self, plugin: type[Plugin], config: Any, store: Store | None) -> None:
        """Refuse hook points and labels that the store has not, each looked up once."""
        for key in PATTERNS if store is not None else ():
            wanted = getattr(config, key, None)
            for name in [wanted] if isinstance(wanted, str) else wanted or ():
                asked = (str(store.folder), key, name) if store is not None else ()
                if asked in self._known or store is None:
                    continue
                if not matching(name, key, store):
                    where = f"{self.grid.where}: {self.grid.key_of(key, plugin.name)}"
                    raise UserError(f"{where}: {unknown(name, key, store)}")
                self._known.add(asked)

    def _missing(self, request: Request) -> list[str]:
        """Say what would have to be made before this job can run."""
        plugin, inputs = request.plugin, request.inputs
        live = plugin.live and inputs.model is not None and inputs.data is not None
        missing = []
        if plugin.needs.store and inputs.store is None and not live and plugin.default_capture is not None:
            missing.append(f"the store that {plugin.name} captures by default")
        if plugin.needs.dictionary and inputs.dictionary is None and plugin.default_dictionary is not None:
            missing.append(f"the dictionary that {plugin.name} trains by default ({plugin.default_dictionary.plugin})")
        return missing

    def _complete(self, request: Request, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]] | None:
        """Return where a job's inputs are and their fingerprints, made if need be; None if that must wait."""
        missing = self._missing(request)
        made_with = (request.seed, request.device) if missing else ()
        key = (request.plugin.name, *sorted(given.items()), *made_with)
        if key not in self._found:
            if missing and not self.make:
                self.to_make += missing
                return None
            folder = self.out / "inputs" / xxhash.xxh3_64_hexdigest(repr(key).encode())
            try:
                inputs = with_defaults(request, folder)
                request = replace(request, inputs=inputs)
                context = Context(request.config, inputs, request.device, request.seed, Path())
                fingerprints = input_parts(request, context)
                self._found[key] = places(context), fingerprints
            except Exception as error:
                if not is_wrong_input(error):
                    raise
                raise UserError(f"{self.grid.where}: {request.plugin.name}: {error}") from None
        return self._found[key]


def places(context: Context) -> dict[str, str]:
    """Return where a context's inputs are, so that a process with another working folder finds them."""
    inputs, found = context.inputs, {}
    if inputs.store is not None:
        found["store"] = str(inputs.store.folder.resolve())
    if inputs.model is not None:
        found["model"] = context.subject().address
    if inputs.data is not None:
        found["data"] = context.data().address
    if inputs.dictionary is not None:
        place, hash_sign, name = str(inputs.dictionary).partition("#")
        found["dictionary"] = (str(Path(place).resolve()) if Path(place).exists() else place) + hash_sign + name
    return found


def matching(wanted: str, key: str, store: Store) -> list[str]:
    """Return what a name or pattern means among a store's hook points, or its labels and their categories."""
    if key == "hook_point":
        return [name for name in store.hook_points if fnmatchcase(name, wanted)]
    names = []
    for info in store.labels.values():
        names.append(info.name)
        if "=" in wanted:
            names += [f"{info.name}={category}" for category in info.categories]
    return [name for name in names if name == wanted or fnmatchcase(name, wanted)]


def unknown(wanted: str, key: str, store: Store) -> str:
    """Say that a store has no such hook point or label, and what is near."""
    names = list(store.hook_points) if key == "hook_point" else list(store.labels)
    if key == "label" and wanted.partition("=")[0] in store.labels:
        info = store.labels[wanted.partition("=")[0]]
        names = [f"{info.name}={category}" for category in info.categories] or [info.name]
    return f"{store.folder} has no {key.replace('_', ' ')} {wanted!r}; nearest: {nearest(wanted, names)}"


def axes_of(plan: Plan) -> dict[str, list[str]]:
    """Return the values of each axis that the jobs have, in order, as text."""
    found: dict[str, dict[str, None]] = {}
    for job in plan.jobs:
        for key, value in {"plugin": job.plugin, **job.axes}.items():
            found.setdefault(key, {})[text_of(value)] = None
    return {key: list(values) for key, values in found.items()}
