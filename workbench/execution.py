"""Running a plugin: resolve what it needs, give it a context, keep its result in a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from workbench import configuration
from workbench.cache import Store, open_store
from workbench.context import Context, Inputs
from workbench.errors import UserError
from workbench.ranks import ALONE, Ranks, in_turn, open_ranks
from workbench.registry import registry
from workbench.request import Request, checked_seed
from workbench.results import Result
from workbench.run_manifest import identity_parts, manifest_of
from workbench.runs import RUNS, Run, choose_folder, identity_of, load_run, run_folder, write_json

if TYPE_CHECKING:
    from workbench.datasets.protocol import Dataset
    from workbench.dictionary import Dictionary
    from workbench.subjects.protocol import Subject


def run(
    plugin: str | None = None,
    *,
    store: str | Path | Store | None = None,
    model: str | Subject | None = None,
    data: str | Dataset | None = None,
    dictionary: str | Path | Dictionary | None = None,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    seed: int | None = None,
    config: str | Path | None = None,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Result:
    """Run a plugin and keep the result in a run folder.

    Parameters
    ----------
    plugin : str, optional
        Its name; may come from the configuration file instead.
    store, model, data, dictionary : optional
        What it reads: an address, a folder, or an object. What it needs and is not given comes from its own defaults.
    device, dtype, device_map : str, optional
        How a subject is loaded (see `load_subject`).
    seed : int, optional
        Of every random choice; 0 if not given.
    config : path, optional
        A YAML file with ``plugin``, ``store``, ``model``, ``data``, ``dictionary``, ``seed``, ``device``, ``set``.
    set : mapping, optional
        The plugin's options by dotted key; they win over the file's.
    out : path, optional
        The run folder; by default a fresh one under ``runs/``. A finished folder of the same identity is read back.
    **options
        The plugin's options as keywords; they win over `set`.

    Returns
    -------
    Result
        ``result.folder`` is the run folder. Where torchrun started several processes, the first one has the result, and
        the others an empty one.

    Raises
    ------
    UserError
        For an unknown plugin or option, a value out of range, or something missing.
    """
    file = configuration.read_config_file(Path(config)) if config is not None else {}
    name = plugin or file.get("plugin")
    if name is None:
        raise UserError("no plugin named: give a name, or a configuration file with the key plugin")
    if file.get("plugin", name) != name:
        raise UserError(f"{config} is for the plugin {file['plugin']!r}, not for {name!r}")
    chosen = registry().plugin(name)
    values = {**configuration.flatten(file.get("set") or {}), **configuration.flatten(set or {}), **options}
    root = Path(out).parent if out is not None else RUNS
    given_store = store if store is not None else file.get("store")
    given_dictionary = dictionary if dictionary is not None else file.get("dictionary")
    request = Request(
        plugin=chosen,
        config=configuration.build(chosen.Config, values),
        inputs=Inputs(
            store=given_store if isinstance(given_store, Store) or given_store is None else open_store(given_store),
            model=model if model is not None else file.get("model"),
            data=data if data is not None else file.get("data"),
            dictionary=str(given_dictionary) if isinstance(given_dictionary, Path) else given_dictionary,
        ),
        device=device or file.get("device") or "auto",
        dtype=dtype,
        device_map=device_map,
        seed=checked_seed(seed if seed is not None else file.get("seed", 0)),
    )
    with open_ranks(request.device) as ranks:
        if ranks.size > 1 and not chosen.distributed:
            raise UserError(f"{name} is run by one process, and torchrun started {ranks.size}: leave torchrun out")
        request = replace(request, inputs=in_turn(ranks, lambda: with_defaults(request, root)))
        done = execute(request, Path(out) if out is not None else None, ranks)
    return Result() if done is None else done.result


def with_defaults(request: Request, root: Path) -> Inputs:
    """Fill in what the plugin needs and was not given; what is made on the way is kept under `root`."""
    plugin, inputs = request.plugin, request.inputs
    if inputs.store is not None and inputs.data is not None and not plugin.needs.data:
        raise UserError(f"{plugin.name} reads the store {inputs.store.folder} and no dataset: leave the data out")
    live = plugin.live and inputs.model is not None and inputs.data is not None
    if plugin.needs.store and inputs.store is None and not live:
        inputs = replace(inputs, store=default_store(request, root))
    if plugin.needs.labels and inputs.store is not None and not inputs.store.labels:
        raise UserError(
            f"{plugin.name} needs labels, and {inputs.store.folder} has none: 'workbench store label' adds them"
        )
    if inputs.store is None:
        model = inputs.model or (plugin.default_model if plugin.needs.subject else None)
        data = inputs.data or (plugin.default_data if plugin.needs.data else None)
        if plugin.needs.subject and model is None:
            raise UserError(f"{plugin.name} needs a subject model: give --model, for example --model zoo:pycode")
        if plugin.needs.data and data is None:
            raise UserError(f"{plugin.name} needs data: give --data, for example --data python-stdlib")
        inputs = replace(inputs, model=model, data=data)
    if plugin.needs.dictionary and inputs.dictionary is None:
        inputs = replace(inputs, dictionary=default_dictionary(request, inputs, root))
    return inputs


def default_dictionary(request: Request, inputs: Inputs, root: Path) -> str:
    """Make the dictionary that the plugin reads by default; one made before on the same store is used again."""
    plugin, default = request.plugin, request.plugin.default_dictionary
    if default is None:
        raise UserError(f"{plugin.name} needs a dictionary: give --dictionary RUN")
    read = inputs.store.fingerprint() if inputs.store is not None else str(inputs.model)
    what = [read, registry().plugin(default.plugin).version, sorted(default.options.items()), request.seed]
    made = run(
        default.plugin,
        store=inputs.store,
        model=inputs.model,
        device=request.device,
        seed=request.seed,
        out=root / f"{default.plugin}-for-{plugin.name}-{short_hash(what)}",
        set=default.options,
    )
    return str(made.folder)


def default_store(request: Request, root: Path) -> Store:
    """Capture what the plugin captures by default; a store captured before is used again."""
    from workbench.capturing import capture

    default = request.plugin.default_capture
    if default is None:
        raise UserError(f"{request.plugin.name} needs a store: give --store ACTS (made by 'workbench capture')")
    model, data = request.inputs.model or default.model, request.inputs.data or default.data
    named = [str(getattr(thing, "address", thing)) for thing in (model, data)]
    what = [*named, *default.hooks, default.rows, sorted(default.options.items()), request.dtype, request.seed]
    words = "".join(letter if letter.isalnum() else "-" for letter in named[0].split("/")[-1]).strip("-")
    return capture(
        model,
        data=data,
        hooks=list(default.hooks),
        rows=default.rows,
        out=root / f"acts-{words}-{short_hash(what)}",
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        device_map=request.device_map,
        **default.options,
    )


def short_hash(what: Any) -> str:
    """Return eight digits that tell apart the folders of what was made from one thing and from another."""
    return xxhash.xxh3_64_hexdigest(repr(what).encode())[:8]


def execute(request: Request, out: Path | None, ranks: Ranks = ALONE) -> Run | None:
    """Run a request whose inputs are complete, in a folder of its own; a finished run of it is read back.

    Of several processes the first one makes the folder, and the others, which return None, work in it.
    """
    context = Context(
        config=request.config,
        inputs=request.inputs,
        device=request.device,
        seed=request.seed,
        work=Path(),
        dtype=request.dtype,
        device_map=request.device_map,
        ranks=ranks,
    )
    if ranks.rank:
        if told := ranks.tell(""):
            context.work = Path(told) / "work"
            request.plugin().run(context)
        return None
    parts = identity_parts(request, context)
    identity = identity_of(parts)
    folder = out if out is not None else choose_folder(request.plugin.name, identity)
    if (folder / "manifest.json").is_file() and load_run(folder).identity == identity:
        context.log.info("%s is done already", folder)
        ranks.tell("")
        return load_run(folder)
    made = make_run(request, context, parts, folder)
    done = load_run(folder)
    done.result.figures.update(made.figures)  # as they were drawn, to be restyled; the folder has their images
    return done


def make_run(
    request: Request,
    context: Context,
    parts: Mapping[str, Any],
    folder: Path,
    *,
    drawn: bool = True,
    more: Mapping[str, Any] | None = None,
) -> Result:
    """Run a request in its context and keep the result in a folder, which is there when all is done.

    Parameters
    ----------
    request : Request
        With complete inputs.
    context : Context
        Of the request; its `work` is set here.
    parts : mapping
        From `identity_parts`.
    folder : Path
        Of the run.
    drawn : bool
        False leaves figures and report for later (`workbench.batching.drawing`).
    more : mapping, optional
        Further keys of the manifest.

    Returns
    -------
    Result
        As the plugin gave it; the folder holds the same, its figures as images.

    Raises
    ------
    UserError
        If the folder exists or is being written, or the plugin finds its input wrong.
    """
    identity = identity_of(parts)
    with run_folder(folder, identity) as part, logging_to(part / "log.txt", context.log):
        context.work = part / "work"
        context.ranks.tell(str(part.resolve()))
        started, clock = datetime.now(UTC), time.perf_counter()
        context.log.info("%s: %s", request.plugin.name, request.plugin.help)
        store = request.inputs.store
        if store is not None and not store.finished:
            context.log.warning("%s is unfinished: %d of %d rows", store.folder, store.n_rows, store.n_rows_planned)
        result = request.plugin().run(context)
        if not isinstance(result, Result):
            raise TypeError(f"{request.plugin.__name__}.run returned {type(result).__name__}, not a Result")
        seconds = round(time.perf_counter() - clock, 3)
        context.log.info("done in %.1f s", seconds)
        result.save(part, drawn=drawn)
        manifest = manifest_of(request, context, parts, identity, started, seconds)
        write_json(part / "manifest.json", {**manifest, **(more or {})})
        if drawn:
            from workbench.report import write_report

            write_report(part)
    return result


class LogFile(logging.FileHandler):
    """A log file that stays closed: the usual one is opened again by a line that another thread was about to write."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if self.stream is not None:
            super().emit(record)


@contextmanager
def logging_to(path: Path, log: logging.Logger) -> Iterator[None]:
    """Write what is logged inside the block to a file as well."""
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
