"""A scheduler and two workers as processes of their own, as on a cluster; a killed scheduler loses no finished job."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

import workbench as wb
from workbench.runs import load_run

TIMEOUT_S = 300
QUICK = {
    "k": [1, 2],
    "max_rows": 400,
    "draws": 20,
    "contexts": 0,
    "baselines.shuffles": 3,
    "baselines.random_units": 2,
    "baselines.dense": False,
}

pytestmark = pytest.mark.slow


def start(grid, out, address, environment):
    command = [sys.executable, "-m", "workbench", "batch", str(grid), "--out", str(out), "--scheduler", address]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_jobs_of_a_cluster_have_the_numbers_of_runs_and_a_killed_scheduler_loses_none(
    acts, environment, cluster_of, tmp_path
):
    (tmp_path / "notes").mkdir()
    trial = tmp_path / "trial.yaml"
    trial.write_text(f"plugin: trial\nset: {{notes: {tmp_path}/notes, seconds: 0.2}}\ngrid: {{n: {list(range(24))}}}\n")
    probes = tmp_path / "probes.yaml"
    grid = {"hook_point": "*.hook_post", "label": ["span", "noise"]}
    probes.write_text(json.dumps({"plugin": "sparse-probe", "store": str(acts), "set": QUICK, "seed": 5, "grid": grid}))

    with cluster_of(tmp_path) as (processes, address):
        batch = start(trial, tmp_path / "trials", address, environment)
        while batch.poll() is None and len(list((tmp_path / "notes").iterdir())) < 6:
            time.sleep(0.02)
        os.killpg(processes[0].pid, signal.SIGKILL)
        _, err = batch.communicate(timeout=TIMEOUT_S)
        assert batch.returncode == 1
        assert "the scheduler is gone; finished jobs are kept, and the same command continues" in err.splitlines()[-1]
        assert "Traceback" not in err

    with cluster_of(tmp_path) as (_, address):
        for file, out in ((trial, "trials"), (probes, "probes")):
            said, err = start(file, tmp_path / out, address, environment).communicate(timeout=TIMEOUT_S)
            assert "jobs done, 0 failed" in said, err

    pids = [path.read_text().split() for path in (tmp_path / "notes").iterdir()]
    assert len(pids) == 24
    assert sum(map(len, pids)) <= 24 + 2  # the two in flight were begun again
    assert len({pid for begun in pids for pid in begun}) >= 3

    table = pd.read_parquet(tmp_path / "probes/tables/metrics.parquet")
    assert len(table["job"].unique()) == 4
    asked = {"hook_point": "blocks.1.mlp.hook_post", "label": "span"}
    run = wb.run("sparse-probe", store=acts, seed=5, set=QUICK, **asked, out=tmp_path / "run")
    job = tmp_path / "probes/jobs" / load_run(run.folder).identity
    for name in ("metrics.json", "tables/scores.parquet", "tables/units.parquet", "tables/best.parquet"):
        if name.startswith("tables/scores"):  # it has a column of times
            mine, theirs = (pd.read_parquet(folder / name).drop(columns="seconds") for folder in (job, run.folder))
            pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
        else:
            assert (job / name).read_bytes() == (run.folder / name).read_bytes(), name
