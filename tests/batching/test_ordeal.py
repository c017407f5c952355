"""A grid with poisoned jobs, all killed in the middle: each job ends once, with an undisturbed batch's numbers."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from workbench.batching.jobs import is_finished

HOOKS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
LABELS = ["span", "noise"]
TIMEOUT_S = 1800
LIMIT_S = 20
POISONS = {  # way: what becomes of it
    "error": ("error", "ZeroDivisionError: n=0 cannot be done"),
    "leave": ("error", "SystemExit: left"),
    "interrupt": ("error", "KeyboardInterrupt: of the plugin"),
    "unpicklable": ("error", "UnpicklableError: cannot travel"),
    "unprintable": ("error", "UnprintableError: (it has no message"),
    "huge": ("error", "RuntimeError: begins xxx"),
    "strange": ("error", "RuntimeError: a lone \\udc80, a NUL \\x00, an \\x1b[31mescape"),
    "wrong": ("wrong input", "n=0 has too few rows"),
    "hang": ("too long", f"it took longer than {LIMIT_S} s"),
    "exit": ("worker died", "its worker died 2 times over it"),
    "kill": ("worker died", "its worker died 2 times over it"),
    "half": ("worker died", "its worker died 2 times over it"),
    "greed": ("worker died", "its worker died 2 times over it"),
    "once": None,  # well when it is tried again
    "once killed": None,
}
pytestmark = pytest.mark.long


class Ordeal:
    """One grid, continued by one command after another."""

    def __init__(self, folder: Path, acts: Path, environment: dict[str, str], n_jobs: int, n_poisons: int) -> None:
        self.folder, self.out, self.notes, self.environment = folder, folder / "jobs", folder / "notes", environment
        self.notes.mkdir()
        cells = list(itertools.product(HOOKS, LABELS, range(n_jobs // 4)))
        ways = [way for _, way in zip(range(n_poisons), [*POISONS] * n_poisons, strict=False)]
        poisoned = random.Random(0).sample(cells, n_poisons)
        self.ways = {" ".join(map(str, cell)): way for cell, way in zip(poisoned, ways, strict=True)}
        self.poisons = folder / "poisons.json"
        self.poisons.write_text(json.dumps(self.ways))
        options = {"notes": str(self.notes), "poisons": str(self.poisons), "seconds": 0.02}
        crossed = {"hook_point": HOOKS, "label": LABELS, "seed": list(range(n_jobs // 4))}
        self.grid = {"plugin": "store-trial", "store": str(acts), "set": options, "grid": crossed}
        (folder / "grid.yaml").write_text(json.dumps(self.grid))

    @contextmanager
    def going(self, *words: str):
        """Start the command in a process, which has to be stopped, or to end, inside the block."""
        command = [sys.executable, "-m", "workbench", "batch", str(self.folder / "grid.yaml"), "--out", str(self.out)]
        command += ["--retries", "1", "--pause", "0.1", "--limit", str(LIMIT_S), *words]
        with (self.folder / "said.txt").open("w+") as said:
            process = subprocess.Popen(
                command, env=self.environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                yield process
                process.wait(timeout=TIMEOUT_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert "Traceback" not in self.said()

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def n_done(self) -> int:
        return sum("." not in path.name for path in self.out.glob("jobs/*"))

    def wait_for(self, n_more: int, process) -> None:
        n = self.n_done() + n_more
        while process.poll() is None and self.n_done() < n:
            time.sleep(0.02)
        assert process.poll() is None, self.said()


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("n_jobs", "n_poisons"), [(60, 15), (500, 20)])
def test_everything_is_killed_and_nothing_is_lost(
    acts, environment, children_of, cluster_of, trial, cluster, tmp_path, n_jobs, n_poisons
):
    ordeal = Ordeal(tmp_path, acts, environment, n_jobs, n_poisons)
    some = n_jobs // 10

    with ordeal.going("--workers", "2", "--memory", "700MB") as batch:
        ordeal.wait_for(some, batch)
        kill(children_of(batch.pid)[0])
        ordeal.wait_for(some, batch)
        os.killpg(batch.pid, signal.SIGINT)
    assert batch.returncode == 130
    assert ordeal.said().endswith("interrupted; the same command continues\n")

    with ordeal.going("--workers", "2", "--memory", "700MB") as batch:
        ordeal.wait_for(some, batch)
        kill(batch.pid)  # client and scheduler, which watch over the workers
    assert batch.returncode == -signal.SIGKILL

    with (
        cluster_of(tmp_path, "--memory-limit", "700MB") as (processes, address),
        ordeal.going("--scheduler", address) as batch,
    ):
        ordeal.wait_for(some, batch)
        nanny = processes[1].pid
        kill(nanny, *children_of(nanny))
        ordeal.wait_for(some, batch)
        kill(processes[0].pid)
    assert batch.returncode == 1
    assert "the scheduler is gone; finished jobs are kept, and the same command continues" in ordeal.said()

    with cluster_of(tmp_path, "--memory-limit", "700MB") as (_, address), ordeal.going("--scheduler", address) as batch:
        pass
    assert batch.returncode == 1

    expected = {key: POISONS[way] for key, way in ordeal.ways.items() if POISONS[way]}
    n_failed = len(expected)
    assert f"{n_jobs - n_failed} of {n_jobs} jobs done, {n_failed} failed" in ordeal.said()
    failed = pd.read_parquet(ordeal.out / "tables/failed.parquet")
    found = {f"{each.hook_point} {each.label} {each.seed}": (each.kind, each.error) for each in failed.itertuples()}
    assert found.keys() == expected.keys()
    for key, (kind, error) in expected.items():
        assert found[key][0] == kind, (key, found[key])
        assert found[key][1].startswith(error), (key, found[key])
        assert len(found[key][1]) <= 400
    report = (ordeal.out / "report.html").read_text(encoding="utf-8")
    assert "ZeroDivisionError: n=0 cannot be done" in report
    assert "<script>alert(1)</script>" not in report

    ordeal.poisons.write_text("{}")  # the same jobs, all well
    calm = wb.batch(ordeal.grid, out=tmp_path / "calm", scheduler=cluster)
    want = calm.tables["metrics"].drop(columns="seconds")
    want = want[~want["job"].isin(failed["job"])].reset_index(drop=True)
    table = pd.read_parquet(ordeal.out / "tables/metrics.parquet").drop(columns="seconds")
    pd.testing.assert_frame_equal(table, want, check_exact=True)
    assert len(table) == n_jobs - n_failed
    assert len(pd.read_csv(ordeal.out / "tables/metrics.csv")) == len(table)
    assert sorted(path.name for path in ordeal.out.glob("jobs/*")) == sorted(table["job"])
    for identity in table["job"]:
        mine, theirs = ordeal.out / "jobs" / identity, tmp_path / "calm/jobs" / identity
        assert is_finished(mine, identity)
        assert sorted(map(str, _files(mine))) == sorted(map(str, _files(theirs)))
        for name in ("metrics.json", "result.json", "tables/rows.parquet"):
            assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    assert {path.name for path in ordeal.out.iterdir()} == {
        "jobs", "failed", "tables", "figures", "manifest.json", "metrics.json", "result.json", "report.html",
    }  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
