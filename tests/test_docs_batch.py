"""The page on batches: its commands are typed, its Python is run; clusters that are not there are stood in for."""

import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import workbench as wb

PAGE = (Path(__file__).parents[1] / "docs" / "batch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)  # every block: an end is no beginning
YAML, PYTHON, SHELL = ([block for its, block in BLOCKS if its == kind] for kind in ("yaml", "python", ""))
LOCAL, CLUSTER = (block.splitlines() for block in SHELL if "probes.yaml" in block)
QUICK = (
    "  k: [1, 4]\n  max_rows: 500\n  draws: 20\n  contexts: 0\n  baselines.random_units: 2\n  baselines.shuffles: 2\n"
)
SBATCH = """#!/bin/sh
# stands in for Slurm: runs the job at once on this machine
sh "$1" > "$1.out" 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the store and the grid that the page takes for given, the grid quick and small."""
    monkeypatch.chdir(tmp_path)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    wb.capture("zoo:pycode", data="python-stdlib", hooks=hooks, rows=4000, out="acts")
    grid = re.sub(r"  k: .*\n  baselines.shuffles: 100\n", QUICK, YAML[0])
    assert grid != YAML[0]
    Path("probes.yaml").write_text(grid.replace("seed: [0, 1, 2]", "seed: [0]"), encoding="utf-8")
    return tmp_path


def command(line, wait=True):
    """Type a line as a terminal would."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = shlex.split(re.sub(r"\s+#\s.*", "", line))
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    if not wait:
        return process
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, f"{line}\n{said}"
    return said


@contextmanager
def ended(*processes):
    """End what was started in the background."""
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.communicate()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_page_has_the_blocks_that_are_run_here():
    assert (len(YAML), len(PYTHON), len(SHELL)) == (1, 3, 2)
    assert len([line for line in LOCAL + CLUSTER if line.strip()]) == 5


@pytest.mark.slow
def test_a_batch_on_this_machine(folder):
    look, run = LOCAL
    assert "6 jobs: 0 done, 6 to do" in command(look)
    assert "6 of 6 jobs done, 0 failed" in command(f"{run.partition('#')[0]} --workers 1")
    Path("snippet.py").write_text(PYTHON[0].replace('["value"].mean()', '["value"].mean().to_csv("means.csv")'))
    result = runpy.run_path("snippet.py", init_globals={"wb": wb})["result"]
    assert len(Path("means.csv").read_text().splitlines()) == 1 + 6
    job = result.tables["metrics"]["job"][0]
    (report,) = re.findall(r"`(workbench report [^`]*IDENTITY)`", PAGE)
    assert wb.load_run(f"jobs/probes/jobs/{job}").manifest["threads"] == 1
    assert command(report.replace("IDENTITY", job)).strip().endswith("report.html")


@pytest.mark.long
def test_a_cluster_by_hand(folder):
    port = free_port()
    lines = [line.replace("8786", str(port)).replace("HOST", "127.0.0.1") for line in CLUSTER]
    scheduler = command(lines[0], wait=False)
    workers = command(lines[1].replace("--nworkers 16", "--nworkers 2").replace("4GiB", "1GiB"), wait=False)
    with ended(workers, scheduler):
        assert "6 of 6 jobs done, 0 failed" in command(lines[2].replace("/shared", str(folder)))


def snippet(holding):
    """Return the page's Python that uses a package."""
    (code,) = (code for code in PYTHON if holding in code)
    return code


@pytest.mark.long
def test_slurm(folder, monkeypatch):
    """Dask's own submission, with programs of Slurm's names that run the job here."""
    pytest.importorskip("dask_jobqueue")
    programs = folder / "programs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    code = snippet("SLURMCluster").replace(
        'memory="64GB"', 'memory="64GB", scheduler_options={"dashboard_address": ":0"}'
    )
    end = 'input("Enter ends the cluster")'
    assert end in code
    whole = code.replace("cluster.scale(jobs=20)", "script = cluster.job_script()").replace(end, "cluster.close()")
    script = run(whole)["script"]
    for asked in ("--cpus-per-task=16", "--mem=60G", "-t 08:00:00", "--nthreads 1 ", "--nworkers 16", "--lifetime 7h"):
        assert asked in script
    small = code.replace("cores=16", "cores=2").replace("processes=16", "processes=2").replace("64GB", "3GB")
    small = small.replace("jobs=20", "jobs=1").replace(end, "")
    cluster = run(small)["cluster"]
    try:
        line = f"workbench batch probes.yaml --out jobs/probes --scheduler {cluster.scheduler_address}"
        assert "6 of 6 jobs done, 0 failed" in command(line)
    finally:
        cluster.close()


@pytest.mark.long
def test_kubernetes(folder, monkeypatch):
    """The operator's own specification; its commands are read by Dask's own command line."""
    operator = pytest.importorskip("dask_kubernetes.operator")
    from distributed.cli import dask_scheduler, dask_worker

    class Cluster:
        def __init__(self, *, custom_cluster_spec):
            self.spec, self.scheduler_address = custom_cluster_spec, "tcp://localhost:8786"

    monkeypatch.setattr(operator, "KubeCluster", Cluster)
    spec = run(snippet("KubeCluster"))["cluster"].spec["spec"]
    assert spec["worker"]["replicas"] == 20
    for part, program in (("worker", dask_worker.main), ("scheduler", dask_scheduler.main)):
        pod = spec[part]["spec"]
        (container,) = pod["containers"]
        assert container["args"][:2] == ["dask", part]
        given = program.make_context(part, [*container["args"][2:]], resilient_parsing=False).params
        assert part == "scheduler" or given["nthreads"] == 1
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounts == {each["name"]: "/shared" for each in pod["volumes"]}
        assert {"name": "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "value": "False"} in container["env"]


def run(code):
    Path("snippet.py").write_text(code, encoding="utf-8")
    return runpy.run_path("snippet.py")
