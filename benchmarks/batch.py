"""What a batch costs beside its jobs: over bare Dask, with two workers, and in memory over hundreds of jobs.

python benchmarks/batch.py overhead [--jobs 2000] [--rounds 4]
python benchmarks/batch.py workers  [--jobs 24] [--rounds 3]
python benchmarks/batch.py memory   [--jobs 500]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import Others, machine

if TYPE_CHECKING:
    from workbench.batching.jobs import Job

HOOKS = tuple(f"blocks.{layer}.mlp.hook_post" for layer in range(4))
LABELS = ("span", "noise")
N_DOCUMENTS, N_TOKENS, N_UNITS = 200, 60, 64

PLUGIN = '''
"""A job of a few milliseconds: means of rows of a store."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from workbench.hookspecs import hookimpl
from workbench.plugin import Needs, Option, Plugin


@dataclass(frozen=True)
class Config:
    hook_point: Annotated[str, Option("which")] = ""
    start: Annotated[int, Option("first row", ge=0)] = 0


def means(store, hook_point, start):
    return store.read(hook_point, slice(start, start + 256)).astype("float64").mean(axis=0)


@lru_cache
def opened(folder):
    from workbench.cache import open_store

    return open_store(folder)


def bare(task):
    """The same function as a bare Dask task."""
    return float(means(opened(task["store"]), task["hook_point"], task["start"]).mean())


class Small(Plugin):
    name = "small"
    help = "means of rows"
    Config = Config
    needs = Needs(store=True)

    def run(self, context):
        import pandas as pd

        from workbench.results import Result

        found = means(context.store, context.config.hook_point, context.config.start)
        result = Result()
        result.add_metric("mean", found.mean(), description="of all", lo=found.min(), hi=found.max())
        result.add_table("means", pd.DataFrame({"unit": range(len(found)), "mean": found}), description="of each unit")
        return result


@hookimpl
def provide_plugins():
    return [Small]
'''


def write_store(folder: Path) -> Path:
    """Write a store of random activations; one unit of each hook point tells the label `span`."""
    from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store

    rng = np.random.default_rng(0)
    builder = ExamplesBuilder()
    for number in range(N_DOCUMENTS):
        special = np.zeros(N_TOKENS, bool)
        builder.sequence(builder.document(f"d{number}"), rng.integers(1, 99, N_TOKENS), special=special, window=0)
    examples = builder.build()
    labels = {name: rng.random(examples.n_rows) < 0.3 for name in LABELS}
    arrays = {name: rng.normal(size=(examples.n_rows, N_UNITS)).astype(np.float32) for name in HOOKS}
    for name in HOOKS:
        arrays[name][:, 3] += labels["span"]
    specs = {name: ActivationSpec(("d_mlp",), (N_UNITS,), "float32") for name in HOOKS}
    manifest = {
        "fingerprints": {"model": "m", "dataset": "d", "tokenizer": "t"},
        "model": {"address": "zoo:test", "fingerprint": "m"},
        "dataset": {"address": "test", "fingerprint": "d"},
    }
    with StoreWriter(folder, specs, examples, manifest) as writer:
        writer.append(arrays)
    infos = {name: LabelInfo(name, "kinds", "row", "binary", ()) for name in LABELS}
    open_store(folder).add_labels("kinds", {name: (infos[name], labels[name].astype(float), None) for name in LABELS})
    return folder


def install_plugin(folder: Path) -> None:
    """Put the small plugin where this process and its workers find it."""
    info = folder / "workbench_small-1.0.dist-info"
    info.mkdir()
    (folder / "workbench_small.py").write_text(PLUGIN, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workbench-small\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[workbench]\nsmall = workbench_small\n", encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(folder))


@contextmanager
def cluster(n_workers: int) -> Iterator[Any]:
    """Start workers of one thread each, as `workbench batch` does; gives the scheduler's address and a client."""
    from distributed import Client

    from workbench.batching.cluster import local_cluster

    with (
        local_cluster(n_workers, None, n_workers) as found,
        Client(found.scheduler_address, set_as_default=False) as client,
    ):
        client.wait_for_workers(n_workers)
        yield found.scheduler_address, client


def small_grid(store: Path, n: int, round_: int) -> dict[str, Any]:
    """Return a grid of n small jobs; those of each round are new."""
    starts = list(range(round_ * n // len(HOOKS), (round_ + 1) * n // len(HOOKS)))
    return {"plugin": "small", "store": str(store), "grid": {"hook_point": list(HOOKS), "start": starts}}


def overhead(folder: Path, n_jobs: int, n_rounds: int) -> None:
    """Print what a job costs more than the same function as a bare Dask task."""
    install_plugin(folder)
    store = write_store(folder / "acts")
    from workbench_small import bare

    import workbench as wb

    n = n_jobs // n_rounds
    for n_workers in (1, 2):
        seconds: dict[str, list[float]] = {"bare Dask": [], "batch": []}
        with cluster(n_workers) as (address, client):
            warm = folder / f"warm{n_workers}"
            wb.batch(small_grid(store, 40, 10_000 // n), out=warm, scheduler=address)
            client.gather(client.map(bare, [{"store": str(store), "hook_point": HOOKS[0], "start": 0}] * 8, pure=False))
            for round_ in range(n_rounds):
                grid = small_grid(store, n, round_)
                tasks = [
                    {"store": str(store), "hook_point": hook_point, "start": start}
                    for hook_point in grid["grid"]["hook_point"]
                    for start in grid["grid"]["start"]
                ]
                clock = time.perf_counter()
                want = client.gather(client.map(bare, tasks, pure=False))
                seconds["bare Dask"].append(time.perf_counter() - clock)
                clock = time.perf_counter()
                result = wb.batch(grid, out=folder / f"jobs{n_workers}-{round_}", scheduler=address)
                seconds["batch"].append(time.perf_counter() - clock)
                got = result.tables["metrics"]["value"]
                np.testing.assert_allclose(got, want, rtol=1e-12)
        each = {way: statistics.median(found) / n * 1e3 for way, found in seconds.items()}
        more = each["batch"] - each["bare Dask"]
        print(
            f"{n_workers} worker{'s'[: n_workers > 1]}, {n_rounds} rounds of {n} jobs in turn: bare Dask "
            f"{each['bare Dask']:.2f} ms a job, batch {each['batch']:.2f}: {more:.2f} ms more of the clock, "
            f"{more * n_workers:.2f} ms of a worker's time; planning, table and report counted in"
        )


def probing_grid(store: Path, seeds: list[int]) -> dict[str, Any]:
    """Return a grid of real probing jobs."""
    return {
        "plugin": "sparse-probe",
        "store": str(store),
        "set": {
            "k": [1, 4],
            "max_rows": 6000,
            "draws": 200,
            "contexts": 4,
            "baselines": {"shuffles": 100, "random_units": 5},
        },
        "grid": {"hook_point": list(HOOKS[:2]), "label": ["span"], "seed": seeds},
    }


def make_all(jobs: list[Job], out: Path) -> None:
    """Make jobs one after the other in this process, as a worker makes each."""
    import torch

    from workbench.batching.worker import make_job

    torch.set_num_threads(1)
    for job in jobs:
        make_job(job, out)


def bare_seconds(jobs: list[Job], warm: list[Job], n_processes: int, out: Path) -> float:
    """Return how long processes take that share jobs evenly and know nothing of each other: what the machine allows."""
    parts = [jobs[i::n_processes] for i in range(n_processes)]
    outs = [out / str(i) for i in range(n_processes)]
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(make_all, [warm] * n_processes, [out / f"warm{i}" for i in range(n_processes)]))
        clock = time.perf_counter()
        list(pool.map(make_all, parts, outs))
        return time.perf_counter() - clock


def workers(folder: Path, n_jobs: int, n_rounds: int) -> None:
    """Print how much faster two workers are than one, on real probing jobs, and two bare processes than one."""
    store = write_store(folder / "acts")
    import workbench as wb
    from workbench.batching.grid import read_grid
    from workbench.batching.planning import make_plan

    seconds: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    warm = probing_grid(store, [900, 901])
    with cluster(1) as (one, _), cluster(2) as (two, _):
        for n_workers, address in ((1, one), (2, two)):
            wb.batch(warm, out=folder / f"warm{n_workers}", scheduler=address)
        for round_ in range(n_rounds):
            grid = probing_grid(store, list(range(round_ * n_jobs // 2, (round_ + 1) * n_jobs // 2)))
            plan, first = (make_plan(read_grid(each), folder / "plan").jobs for each in (grid, warm))
            values = []
            for n_workers, address in ((1, one), (2, two)):
                clock = time.perf_counter()
                result = wb.batch(grid, out=folder / f"{n_workers}-{round_}", scheduler=address)
                seconds[n_workers].append(time.perf_counter() - clock)
                values.append(result.tables["metrics"].drop(columns="seconds"))
                out = folder / f"bare{n_workers}-{round_}"
                bare[n_workers].append(bare_seconds(list(plan), list(first), n_workers, out))
            if not values[0].equals(values[1]):
                raise SystemExit("one worker and two have other numbers")
    for what, times in (("workers of a batch", seconds), ("bare processes", bare)):
        found = {n: statistics.median(each) for n, each in times.items()}
        ratios = ", ".join(f"{one / two:.2f}" for one, two in zip(times[1], times[2], strict=True))
        print(
            f"{n_jobs} probing jobs, {n_rounds} rounds in turn, {what}: one {found[1]:.1f} s ({found[1] / n_jobs:.2f} "
            f"s a job), two {found[2]:.1f} s: {found[1] / found[2]:.2f} times as fast (by round {ratios})"
        )


def memory(folder: Path, n_jobs: int, n_rounds: int) -> None:
    """Print a worker's memory while it does hundreds of probing jobs."""
    store = write_store(folder / "acts")
    import workbench as wb

    step = max(2, n_jobs // 10)
    with cluster(1) as (address, client):
        resident = []
        for done in range(0, n_jobs, step):
            grid = probing_grid(store, list(range(done // 2, (done + step) // 2)))
            grid["set"] |= {"max_rows": 1000, "draws": 50, "baselines": {"shuffles": 2, "random_units": 2}}
            wb.batch(grid, out=folder / "jobs", scheduler=address)
            resident.append(next(iter(client.run(resident_mb).values())))
            print(f"after {done + step:4d} jobs {resident[-1]:7.1f} MB")
    slope = np.polyfit(np.arange(1, len(resident)) * step, resident[1:], 1)[0]
    print(f"from {2 * step} jobs on {slope * 1000:+.0f} kB a job; {resident[-1] / resident[1]:.3f} times")


def resident_mb() -> float:
    """Return the resident memory of this process, in MB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def main() -> None:
    """Run one part."""
    parts = {"overhead": (overhead, 2000, 4), "workers": (workers, 24, 3), "memory": (memory, 500, 1)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("workbench").setLevel(logging.ERROR)
    run, n_jobs, n_rounds = parts[given.part]
    others = Others()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), given.jobs or n_jobs, given.rounds or n_rounds)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{machine()}; load {load}; other processes took {100 * others.share():.0f} % of all cores")


if __name__ == "__main__":
    main()
