"""A plugin that is installed for a test, in this process and in those that it starts; a small store; a Dask cluster."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from workbench import progress
from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store
from workbench.registry import registry

TRIAL = Path(__file__).with_name("trial.py")
HOOKS = ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Put `trial` where other processes find it; returns the folder, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copy(TRIAL, folder / "workbench_trial.py")
    info = folder / "workbench_trial-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workbench-trial\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workbench]\ntrial = workbench_trial\n")
    return folder


@pytest.fixture
def environment(installed):
    """Variables of a process that has `trial`."""
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def trial(installed, monkeypatch):
    """Make `trial` known to this process."""
    monkeypatch.syspath_prepend(str(installed))
    specification = importlib.util.find_spec("workbench_trial")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "workbench_trial", module)
    specification.loader.exec_module(module)
    registry.cache_clear()
    monkeypatch.setattr(progress, "drawn", progress.drawn)  # a job in this process switches it off
    yield module
    registry.cache_clear()


@pytest.fixture(scope="session")
def acts(tmp_path_factory):
    """A store of 24 documents of 40 tokens; unit 3 of the second hook point tells `span`, none tells `noise`."""
    folder = tmp_path_factory.mktemp("batching") / "acts"
    rng = np.random.default_rng(0)
    builder = ExamplesBuilder()
    for number in range(24):
        builder.sequence(builder.document(f"d{number}"), rng.integers(1, 40, 40), special=np.zeros(40, bool), window=0)
    examples = builder.build()
    span, noise = rng.random((2, examples.n_rows)) < 0.3
    arrays = {name: rng.normal(size=(examples.n_rows, 8)).astype(np.float32) for name in HOOKS}
    arrays[HOOKS[1]][:, 3] += 3.0 * span
    specs = {name: ActivationSpec(("d_mlp",), (8,), "float32") for name in arrays}
    manifest = {
        "fingerprints": {"model": "m", "dataset": "d", "tokenizer": "t"},
        "model": {"address": "zoo:test", "fingerprint": "m"},
        "dataset": {"address": "test", "fingerprint": "d"},
    }
    with StoreWriter(folder, specs, examples, manifest) as writer:
        writer.append(arrays)
    labels = {"span": span, "noise": noise, "in_string": span ^ noise}
    infos = {name: LabelInfo(name, "kinds", "row", "binary", ()) for name in labels}
    open_store(folder).add_labels("kinds", {name: (infos[name], labels[name].astype(float), None) for name in labels})
    return folder


@pytest.fixture
def cluster():
    """Two workers that are threads of this process: quick to start."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
    ) as found:
        yield found.scheduler_address


@pytest.fixture
def cluster_of(environment):
    """Start a scheduler and two workers as processes of their own, as on a cluster."""

    @contextmanager
    def started(folder, *of_workers):
        """Start a scheduler and two workers; gives their processes and the address."""
        file = folder / f"scheduler-{time.monotonic_ns()}.json"
        told = ["--scheduler-file", str(file)]
        commands = [
            ["distributed.cli.dask_scheduler", *told, "--port", "0", "--no-dashboard"],
            *[
                [
                    "distributed.cli.dask_worker",
                    *told,
                    "--nthreads",
                    "1",
                    "--no-dashboard",
                    "--local-directory",
                    str(folder),
                    *of_workers,
                ]
                for _ in range(2)
            ],
        ]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for command in commands
        ]  # fmt: skip
        try:
            while not file.exists():
                assert processes[0].poll() is None
                time.sleep(0.05)
            yield processes, json.loads(file.read_text())["address"]
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    return started


@pytest.fixture
def children_of():
    """Find the processes that another one has started and that are Dask's workers."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("workers are found in /proc")

    def found(pid):
        pids = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                rest = status.read_text().rpartition(")")[2].split()
                if int(rest[1]) == pid and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                    pids.append(int(status.parent.name))
        return pids

    return found
