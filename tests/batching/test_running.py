"""Jobs on workers inside this process: what they leave, what is tried again, what is set aside."""

import errno
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.batching.jobs import is_finished
from workbench.batching.running import Settings, run_plan, to_do
from workbench.batching.scheduling import Scheduling
from workbench.cli import main
from workbench.results_files import read_index
from workbench.runs import load_run, run_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def starts(notes):
    return {path.name: len(path.read_text().splitlines()) for path in Path(notes).iterdir()}


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "notes").mkdir()
    return {
        "plugin": "trial",
        "set": {"notes": str(tmp_path / "notes")},
        "grid": {"n": [1, 2, 3], "label": ["a", "b-c"], "seed": [0, 1]},
    }


def test_a_batch_leaves_jobs_one_table_heat_maps_and_a_report(trial, cluster, grid, tmp_path):
    out = tmp_path / "jobs"
    result = wb.batch(grid, out=out, scheduler=cluster)
    assert result.metrics["jobs"].value == result.metrics["done"].value == 12
    assert result.metrics["failed"].value == 0
    assert set(names(out)) >= {"jobs", "tables", "figures", "report.html", "manifest.json"}

    table = result.tables["metrics"]
    csv = pd.read_csv(out / "tables/metrics.csv", keep_default_na=False)
    for kept in (pd.read_parquet(out / "tables/metrics.parquet"), csv):
        pd.testing.assert_frame_equal(table, kept, check_dtype=False)
    assert len(table) == 12
    assert set(table["measure"]) == {"score.k1"}
    assert set(table["metric"]) == {"score.a.k1", "score.b-c.k1"}
    assert (table["lo"] < table["value"]).all()
    assert (np.floor(table["value"]) == table["n"]).all()

    for identity in table["job"]:
        folder = out / "jobs" / identity
        assert names(folder) == ["log.txt", "manifest.json", "metrics.json", "result.json", "tables"]
        assert load_run(folder).identity == identity
    assert not list(out.glob("jobs/*.part")) + list(out.glob("jobs/*.lock"))
    assert starts(tmp_path / "notes") == {
        f"{n}-{label}-well-{seed}": 1 for n in (1, 2, 3) for label in ("a", "b-c") for seed in (0, 1)
    }


def test_the_numbers_are_those_of_a_run(trial, cluster, grid, tmp_path):
    wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster)
    done = wb.run("trial", n=2, label="a", seed=1, notes=grid["set"]["notes"], out=tmp_path / "run")
    job = tmp_path / "jobs" / "jobs" / load_run(done.folder).identity
    assert (job / "metrics.json").read_bytes() == (done.folder / "metrics.json").read_bytes()
    assert (job / "tables/rows.parquet").read_bytes() == (done.folder / "tables/rows.parquet").read_bytes()
    assert load_run(job).manifest["config"] == load_run(done.folder).manifest["config"]


@pytest.mark.slow
def test_a_jobs_figures_are_made_when_asked_for_and_change_nothing_else(trial, cluster, grid, tmp_path, capsys):
    result = wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster)
    job = tmp_path / "jobs" / "jobs" / result.tables["metrics"]["job"][0]
    before = {name: (job / name).read_bytes() for name in ("manifest.json", "metrics.json")}
    assert read_index(job)["undrawn"] == ["line"]
    assert main(["report", str(job)]) == 0
    assert capsys.readouterr().out.strip() == str(job / "report.html")
    assert names(job / "figures") == ["line.png", "line.svg"]
    assert {name: (job / name).read_bytes() for name in before} == before
    assert is_finished(job, job.name)
    assert "line" in wb.load_run(job).result.figures
    assert main(["report", str(tmp_path / "jobs")]) == 0


@pytest.mark.slow
def test_finished_jobs_are_skipped_and_a_larger_grid_adds_to_them(trial, cluster, grid, tmp_path):
    wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster)
    wb.batch(grid, out=tmp_path / "jobs", scheduler="tcp://127.0.0.1:9")  # nothing to do, and so nobody is asked
    grid["grid"]["n"].append(4)
    assert len(wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster).tables["metrics"]) == 16
    assert set(starts(tmp_path / "notes").values()) == {1}
    assert len(starts(tmp_path / "notes")) == 16


@pytest.mark.slow
def test_jobs_that_a_power_cut_left_without_their_bytes_are_made_again(trial, cluster, grid, tmp_path):
    grid["grid"] = {"n": [1, 2, 3, 4]}
    first = wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster)
    whole, empty, cut, bare = (tmp_path / "jobs/jobs" / identity for identity in first.tables["metrics"]["job"])
    (empty / "metrics.json").write_text("")
    (bare / "manifest.json").unlink()
    (cut / "tables/rows.parquet").write_bytes(b"")
    again = wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster)
    pd.testing.assert_frame_equal(
        again.tables["metrics"].drop(columns="seconds"), first.tables["metrics"].drop(columns="seconds")
    )
    assert names(tmp_path / "jobs" / "damaged") == sorted(f"{job.name}-1" for job in (empty, cut, bare))
    assert all(is_finished(job, job.name) for job in (whole, empty, cut, bare))


def test_errors_are_tried_again_wrong_input_is_not_and_the_rest_go_on(trial, cluster, grid, tmp_path, caplog):
    grid["grid"] = {"way": ["well", "error", "once", "wrong", "leave"], "n": [1, 2]}
    out = tmp_path / "jobs"
    result = wb.batch(grid, out=out, scheduler=cluster, retries=2, pause_s=0.02)
    assert [result.metrics[name].value for name in ("jobs", "done", "failed")] == [10, 4, 6]
    tries = starts(tmp_path / "notes")
    assert {name.split("-")[2]: n for name, n in tries.items()} == {
        "well": 1, "error": 3, "once": 2, "wrong": 1, "leave": 3,
    }  # fmt: skip
    failed = result.tables["failed"]
    assert list(failed["way"]) == ["error", "error", "wrong", "wrong", "leave", "leave"]
    assert list(failed["kind"]) == ["error", "error", "wrong input", "wrong input", "error", "error"]
    assert failed["error"][0] == "ZeroDivisionError: n=1 cannot be done"
    assert failed["error"][2] == "n=1 has too few rows"
    kept = json.loads((out / "failed" / f"{failed['job'][0]}.json").read_text())
    assert "cannot be done" in kept["traceback"]
    assert kept["tries"] == 3
    assert names(out / "jobs") == sorted(result.tables["metrics"]["job"])
    assert "set aside: trial way=error n=1: ZeroDivisionError" in caplog.text


def test_whatever_a_plugin_raises_can_be_read_in_table_and_report(trial, cluster, grid, tmp_path):
    ways = ["interrupt", "leave", "unpicklable", "unprintable", "huge", "strange"]
    grid["grid"] = {"way": ways}
    result = wb.batch(grid, out=tmp_path / "jobs", scheduler=cluster, retries=0)  # not one job is done
    failed = pd.read_parquet(tmp_path / "jobs/tables/failed.parquet")
    begin = [
        "KeyboardInterrupt: of the plugin",
        "SystemExit: left",
        "UnpicklableError: cannot travel",
        "UnprintableError: (it has no message that can be printed)",
        "RuntimeError: begins xxx",
        r"RuntimeError: a lone \udc80, a NUL \x00, an \x1b[31mescape\x1b[0m",
    ]
    assert list(failed["way"]) == ways
    assert set(failed["kind"]) == {"error"}
    assert set(failed["tries"]) == {1}
    for error, begins in zip(failed["error"], begin, strict=True):
        assert error.startswith(begins)
    assert failed["error"].str.len().max() <= 400
    kept = json.loads((tmp_path / "jobs/failed" / f"{failed['job'][4]}.json").read_text())
    assert kept["error"].endswith("xxx ends")
    report = (tmp_path / "jobs/report.html").read_text(encoding="utf-8")
    assert "KeyboardInterrupt: of the plugin" in report
    assert "<script>alert(1)" not in report
    assert result.metrics["done"].value == 0
    assert names(tmp_path / "jobs/jobs") == []


def test_a_full_disk_stops_the_batch_and_blames_no_job(trial, cluster, grid, tmp_path, monkeypatch, capsys):
    from workbench.batching import worker

    file, room = tmp_path / "grid.yaml", iter([True, True])
    file.write_text(json.dumps(grid))
    made = worker.make_run

    def make(*arguments, **named):
        if next(room, False):
            return made(*arguments, **named)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "make_run", make)
    monkeypatch.setattr(worker, "LEAST_ROOM", 1 << 62)
    command = ["batch", str(file), "--out", str(tmp_path / "jobs"), "--scheduler", cluster]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/jobs: No space left on device; finished jobs are kept, and the same command" in said
    assert names(tmp_path / "jobs") == ["jobs"]
    assert len(names(tmp_path / "jobs/jobs")) == 2
    monkeypatch.setattr(worker, "make_run", made)
    assert main(command) == 0


def test_a_folder_that_cannot_be_written_is_refused_before_workers_start(trial, grid, tmp_path, monkeypatch, capsys):
    from workbench.batching import running

    def refused(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(running, "TemporaryFile", refused)
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps(grid))
    assert main(["batch", str(file), "--out", str(tmp_path / "jobs"), "--workers", "1"]) == 2
    assert f"cannot write in {tmp_path}/jobs/jobs: Read-only file system" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_ends_with_1_if_a_job_failed_and_with_0_once_it_is_done(trial, cluster, tmp_path, capsys):
    file = tmp_path / "grid.yaml"
    (tmp_path / "notes").mkdir()
    file.write_text(f"plugin: trial\nset: {{notes: {tmp_path}/notes}}\ngrid: {{way: [well, once], label: [a, b]}}\n")
    command = ["batch", str(file), "--out", str(tmp_path / "jobs"), "--scheduler", cluster, "--retries", "0"]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "2 of 4 jobs done, 2 failed" in said
    assert "ZeroDivisionError" in said
    assert len(names(tmp_path / "jobs/failed")) == 2
    assert main(command) == 0
    assert "4 of 4 jobs done, 0 failed" in capsys.readouterr().out
    assert names(tmp_path / "jobs/failed") == []


def test_a_job_that_another_batch_is_at_is_waited_for(trial, cluster, grid, tmp_path, monkeypatch):
    """The lock is free only after the job has been asked for: until then it is another's."""
    from workbench.batching.grid import read_grid
    from workbench.batching.planning import make_plan

    grid["grid"] = {"n": [1]}
    out = tmp_path / "jobs"
    plan = make_plan(read_grid(grid), out)
    (job,) = plan.jobs
    seen = []
    again = Scheduling._again

    def note(self, each, pause_s):
        if not seen:
            other.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # the other batch is stopped
        seen.append(each.job.identity)
        again(self, each, pause_s)

    other = run_folder(job.folder(out), job.identity)
    other.__enter__()
    monkeypatch.setattr(Scheduling, "_again", note)
    result = run_plan(plan, out, Settings(scheduler=cluster, pause_s=0.02))
    assert result.metrics["done"].value == 1
    assert seen == [job.identity]
    assert to_do(plan, out) == []
