"""``workbench batch`` as a process of its own: workers and all of it killed, interrupted, two at once, resumed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.context import seed_of

TIMEOUT_S = 600
N = 40

pytestmark = pytest.mark.crash


class Batch:
    """A grid of jobs that note each start."""

    def __init__(self, folder: Path, environment: dict[str, str], grid: str) -> None:
        self.out, self.notes, self.environment = folder / "jobs", folder / "notes", environment
        self.notes.mkdir()
        self.grid = folder / "grid.yaml"
        self.grid.write_text(f"plugin: trial\nset: {{notes: {self.notes}, seconds: 0.15}}\ngrid: {grid}\n")

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "workbench", "batch", str(self.grid), "--out", str(self.out)]
        command += ["--retries", "0", *words]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert "Traceback" not in err, err
        return process.returncode, out + err

    def done(self) -> list[str]:
        """Identities of the jobs that have appeared."""
        return [path.name for path in self.out.glob("jobs/*") if "." not in path.name]

    def wait_for(self, n: int, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and len(self.done()) < n:
            time.sleep(0.02)
        assert process.poll() is None, self.end(process)

    def starts(self) -> dict[str, int]:
        return {path.name: len(path.read_text().splitlines()) for path in self.notes.iterdir()}


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_interrupted_and_two_at_once_it_loses_only_jobs_in_flight(environment, children_of, tmp_path):
    batch = Batch(tmp_path, environment, f"{{n: {list(range(N))}}}")

    first = batch.start("--workers", "2")
    batch.wait_for(5, first)
    kill(children_of(first.pid)[0])
    batch.wait_for(12, first)
    workers = children_of(first.pid)
    kill(first.pid)  # scheduler and client at once: they are one process
    batch.end(first)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    before = batch.done()

    second = batch.start("--workers", "2")
    batch.wait_for(len(before) + 4, second)
    os.killpg(second.pid, signal.SIGINT)  # as a terminal does
    code, said = batch.end(second)
    assert code == 130
    assert said.endswith("interrupted; the same command continues\n")
    assert set(before) <= set(batch.done())

    both = [batch.start("--workers", "1"), batch.start("--workers", "1")]
    for code, said in map(batch.end, both):
        assert code == 0
        assert f"{N} of {N} jobs done, 0 failed" in said

    table = pd.read_csv(batch.out / "tables/metrics.csv")
    assert table["value"].tolist() == [n + np.random.default_rng(seed_of(0, "value")).random() for n in range(N)]
    in_flight = 1 + 2 + 2  # of the worker that was killed, the batch that was killed, the one that was interrupted
    assert N <= sum(batch.starts().values()) <= N + in_flight
    assert [path.name for path in batch.out.glob("jobs/*") if "." in path.name] == []


def test_jobs_that_end_their_worker_are_set_aside_and_their_neighbours_are_not(environment, tmp_path):
    batch = Batch(tmp_path, environment, "{way: [exit, greed, error, well], n: [1, 2]}")
    code, said = batch.end(batch.start("--workers", "2", "--memory", "600MB"))
    assert code == 1
    assert "2 of 8 jobs done, 6 failed" in said
    failed = pd.read_parquet(batch.out / "tables/failed.parquet")
    assert failed.groupby("way")["kind"].unique().map(list).to_dict() == {
        "exit": ["worker died"], "greed": ["worker died"], "error": ["error"],
    }  # fmt: skip
    assert "its worker died 2 times over it" in failed[failed["way"] == "greed"]["error"].iloc[0]
    assert len(batch.done()) == 2
    assert {name.split("-")[2]: n for name, n in batch.starts().items()} == {
        "exit": 2,
        "greed": 2,
        "error": 1,
        "well": 1,
    }
    assert [path.name for path in (batch.out / "jobs").iterdir() if "." in path.name] == []


def test_neighbours_in_the_same_process_are_not_blamed(environment, cluster_of, tmp_path):
    batch = Batch(tmp_path, environment, "{n: [1, 2], way: [exit, well]}")
    with cluster_of(tmp_path, "--nthreads", "4") as (_, address):
        code, said = batch.end(batch.start("--scheduler", address))
    assert code == 1
    assert "2 of 4 jobs done, 2 failed" in said
    failed = pd.read_parquet(batch.out / "tables/failed.parquet")
    assert set(failed["way"]) == {"exit"}
    assert set(failed["kind"]) == {"worker died"}
