"""One run from the command line, a notebook and a batch: the same identity, and the same bits of data."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from workbench.runs import load_run

HOOK = "blocks.1.hook_resid_post"
SETTINGS = {
    "sparse-probe": {
        "hook_point": HOOK, "label": "direction", "k": [1, 2], "max_rows": 1500, "draws": 50, "contexts": 2,
        "baselines.shuffles": 3, "baselines.random_units": 2,
    },
    "sae": {
        "hook_point": HOOK, "latents": 64, "k": 4, "train.rows": 2560, "train.batch_rows": 128,
        "evaluate.splice_tokens": 300, "evaluate.draws": 50, "pages.latents": 4,
    },
}  # fmt: skip
SEED = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same") / "acts"
    return str(wb.capture("zoo:calendar", data="calendar", hooks=HOOK, rows=3000, out=folder).folder)


def from_the_command_line(store, out):
    for plugin, settings in SETTINGS.items():
        words = [sys.executable, "-m", "workbench", "run", plugin, "--store", store, "--seed", str(SEED)]
        words += ["--out", str(out / plugin)]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        subprocess.run(words, check=True, capture_output=True)


def from_a_notebook(store, out):
    """Execute a notebook in a kernel that knows nothing of this process."""
    nbformat, nbclient = (
        pytest.importorskip(name, reason="make docs installs it") for name in ("nbformat", "nbclient")
    )
    pytest.importorskip("ipykernel")
    cells = ["import workbench as wb"]
    for plugin, settings in SETTINGS.items():
        named = {key: value for key, value in settings.items() if "." not in key}
        dotted = {key: value for key, value in settings.items() if "." in key}
        cells.append(
            f"result = wb.run({plugin!r}, store={store!r}, seed={SEED}, out={str(out / plugin)!r}, set={dotted!r}, "
            f"**{named!r})\nresult"
        )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()


def from_a_batch(store, out, cluster):
    for plugin, settings in SETTINGS.items():
        grid = {"plugin": plugin, "store": store, "set": settings, "grid": {"seed": [SEED]}}
        result = wb.batch(grid, out=out / "batches" / plugin, scheduler=cluster)
        (out / "batches" / plugin / "jobs" / result.tables["metrics"]["job"][0]).rename(out / plugin)


@pytest.mark.slow
def test_command_line_notebook_and_batch_give_the_same_bits(store, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # conftest's, and so this process's: a worker of a batch has one as well
    ways = {name: tmp_path / name for name in ("line", "notebook", "batch")}
    from_the_command_line(store, ways["line"])
    from_a_batch(store, ways["batch"], cluster)
    from_a_notebook(store, ways["notebook"])
    for plugin in SETTINGS:
        one = ways["line"] / plugin
        for other in (ways["notebook"] / plugin, ways["batch"] / plugin):
            same_run(one, other)


def same_run(one: Path, other: Path) -> None:
    """Compare two run folders: identity and what decides it, then every file that holds data, byte by byte."""
    mine, theirs = load_run(one).manifest, load_run(other).manifest
    for key in ("identity", "plugin", "config", "seed", "store", "subject", "labels", "threads", "kernels", "versions"):
        assert mine[key] == theirs[key], key
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    data = [path for path in files if path.parts[0] in ("tables", "arrays", "weights", "files", "metrics.json")]
    assert len(data) > 3
    for name in data:
        if name.name in TIMED:
            frames = (pd.read_parquet(folder / name).drop(columns=TIMED[name.name]) for folder in (one, other))
            pd.testing.assert_frame_equal(*frames, check_exact=True)
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


TIMED = {"scores.parquet": ["seconds"]}
