"""The run: for every hook point read its units once, and probe all labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from workbench.encoding import check_dictionary
from workbench.errors import UserError
from workbench.plugins.sparse_probe import SparseProbeConfig
from workbench.plugins.sparse_probe.ceiling import dense_probes
from workbench.plugins.sparse_probe.frames import too_few_shuffles
from workbench.plugins.sparse_probe.measure import Measurement, resamples_of_test
from workbench.plugins.sparse_probe.present import present
from workbench.plugins.sparse_probe.records import (
    HookRecords,
    dense_rows,
    drawn_rows,
    score_rows,
    sparse_rows,
    unit_rows,
)
from workbench.plugins.sparse_probe.tasks import Task, make_tasks
from workbench.plugins.sparse_probe.units import Matrix, Scaled, choose_hook_points, read_units
from workbench.probes import ProbeError, TokenIdentity, group_intervals
from workbench.probes.selectors import N_CANDIDATES, N_OPTIMAL, SCORES

LARGEST_COPIES = 2**32  # bytes

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.dictionary import Dictionary
    from workbench.progress import Ticker
    from workbench.results import Result


def run(context: Context) -> Result:
    """Probe every label at every hook point and put the result together.

    Raises
    ------
    UserError
        If a hook point, label, k or dictionary does not fit the store.
    """
    config: SparseProbeConfig = context.config
    store = context.store
    dictionary = context.dictionary() if context.has_dictionary else None
    if dictionary is not None:
        check_dictionary(store, dictionary, writes=False)
    hook_points = choose_hook_points(store, config.hook_point, dictionary)
    ks = checked_ks(config, {name: n_units(context, name, dictionary) for name in hook_points})
    tasks = make_tasks(
        store,
        config.label,
        max_rows=config.max_rows,
        max_labels=config.max_labels,
        seed=context.seed,
        log=context.log,
    )
    if config.baselines.shuffles and (few := too_few_shuffles(config.baselines.shuffles, len(tasks))):
        context.log.warning("%s", few)
    if store.origins["special"].all():
        context.log.info("every row of the store is one of a special token: they are what is probed")
    records = {}
    with context.progress(len(hook_points) * len(tasks), "probings", "sparse-probe") as ticker:
        for number, hook_point in enumerate(hook_points):
            folder = context.work / f"{number:04d}"
            if folder.exists():
                ticker.advance(len(tasks))
            else:
                probe_hook_point(context, hook_point, tasks, ks, dictionary, ticker).save(folder)
            records[hook_point] = HookRecords.load(folder)
    return present(context, tasks, ks, records, token_identity(context, tasks), dictionary)


def n_units(context: Context, hook_point: str, dictionary: Dictionary | None) -> int:
    """Count what there is to choose from."""
    return dictionary.n_latents if dictionary else int(np.prod(context.store.hook_points[hook_point].shape))


def checked_ks(config: SparseProbeConfig, widths: dict[str, int]) -> list[int]:
    """Return k ascending, each once.

    Raises
    ------
    UserError
        If there is none, or one is more than a hook point has or the selector chooses.
    """
    ks = sorted({config.k} if isinstance(config.k, int) else set(config.k))
    if not ks:
        raise UserError("k=[]: give at least one number of units")
    for hook_point, width in widths.items():
        if ks[-1] > width:
            raise UserError(f"k={ks[-1]}: must be between 1 and {width}, the units of {hook_point}")
    most = {"optimal": N_OPTIMAL, "enumerate": 1}.get(config.selector, N_CANDIDATES)
    if config.selector not in (*SCORES, "forward") and ks[-1] > most:
        raise UserError(f"k={ks[-1]}: selector {config.selector} chooses at most {most} units")
    return ks


def probe_hook_point(
    context: Context,
    hook_point: str,
    tasks: list[Task],
    ks: list[int],
    dictionary: Dictionary | None,
    ticker: Ticker,
) -> HookRecords:
    """Probe all tasks at one hook point, its rows read once."""
    config: SparseProbeConfig = context.config
    rows = np.unique(np.concatenate([task.rows for task in tasks]))
    X = read_units(context, hook_point, rows, dictionary)
    places = [np.searchsorted(rows, task.rows) for task in tasks]
    records, nulls = HookRecords(), []

    def probe(at: int) -> HookRecords:
        return probe_task(context, hook_point, X[places[at]], tasks[at], ks)

    # thousands of small products: a thread of its own for each label, none inside them, where they would stall
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_workers(X)) as pool:
        ticker.update(hook_point=hook_point)
        dense = pool.submit(dense_probes, X, tasks, places) if config.baselines.dense else None
        for of_task in pool.map(probe, range(len(tasks))):
            records.scores += of_task.scores
            records.units += of_task.units
            nulls.append(of_task.null)
            ticker.advance()
        for task, fit in zip(tasks, dense.result() if dense else [], strict=bool(dense)):
            weights = resamples_of_test(task, config.draws, context.rng(f"resamples {task.name}"))
            records.scores += dense_rows(task, hook_point, X.shape[1], fit, weights)
    records.null = np.concatenate(nulls)
    return records


def n_workers(X: Matrix) -> int:
    """Return how many labels are probed at once: one per processor, as long as their copies of the units fit."""
    n_bytes = X.nbytes if isinstance(X, np.ndarray) else X.data.nbytes
    return max(1, min(torch.get_num_threads(), LARGEST_COPIES // max(1, n_bytes)))


def probe_task(context: Context, hook_point: str, X: Matrix, task: Task, ks: list[int]) -> HookRecords:
    """Probe one task on its rows [rows of the task, units]."""
    config: SparseProbeConfig = context.config
    units = Scaled.fit(X, task.at(0))
    if len(units.usable) < ks[-1]:
        raise UserError(f"k={ks[-1]}: only {len(units.usable)} units of {hook_point} vary on the training rows")
    measurement = Measurement(task, units, ks, config.selector)
    weights = resamples_of_test(task, config.draws, context.rng(f"resamples {task.name}"))
    try:
        found = measurement.sparse(weights, context.rng(f"control {task.name}"))
    except ProbeError as error:
        raise UserError(f"{hook_point}, label {task.name!r}: {error}") from error
    records = HookRecords(sparse_rows(task, hook_point, found), unit_rows(measurement, hook_point, found))
    permuted = measurement.control(weights, context.rng(f"negative control {hook_point} {task.name}"), found)
    for k, intervals in permuted.items():
        common = {"hook_point": hook_point, "probe": "permuted rows", "k": k}
        records.scores += score_rows(task, dict(intervals), 2, {}, **common)
    if config.baselines.random_units:
        drawn = measurement.random_units(config.baselines.random_units, context.rng(f"units {hook_point}"))
        records.scores += drawn_rows(task, hook_point, "random units", ks, drawn)
    # the same name at every hook point, so the same permutations: the max statistic rests on it
    null = measurement.shuffled(config.baselines.shuffles, context.rng(f"shuffles {task.name}"), found)
    if len(null):
        records.scores += drawn_rows(task, hook_point, "shuffled labels", ks, null)
    records.null = null[None]
    return records


def token_identity(context: Context, tasks: list[Task]) -> HookRecords:
    """Score what the token alone tells, without any activation; nothing for images."""
    config: SparseProbeConfig = context.config
    records = HookRecords()
    if context.store.examples.modality != "text":
        return records
    for task in tasks:
        train, test = task.at(0), task.at(2)
        score = TokenIdentity(task.tokens[train], task.y[train])(task.tokens[test])
        groups = np.unique(task.groups[test], return_inverse=True)[1]
        weights = resamples_of_test(task, config.draws, context.rng(f"resamples {task.name}"))
        intervals = group_intervals(task.y[test], score, groups, weights)
        records.scores += score_rows(task, dict(intervals), 2, {}, hook_point="", probe="token identity", k=0)
    return records
