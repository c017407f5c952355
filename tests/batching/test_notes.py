"""Notes of begun jobs: deaths are counted, an overdue job ends its process, a suspected one runs alone."""

import subprocess
import sys
import threading
import time

import filelock
import pytest

from workbench.batching.notes import Turns, begun, n_deaths, notes_of, overdue


def test_only_a_death_leaves_a_note_behind(tmp_path):
    note = tmp_path / "job"
    assert (n_deaths(note), overdue(note)) == (0, None)
    with begun(note, None):
        assert n_deaths(note) == 1  # as another process would find it, were this one to die now
    with pytest.raises(ZeroDivisionError), begun(note, None):
        raise ZeroDivisionError
    assert not note.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stuck", ["time.sleep(60)", "sum(range(10**12))", "re.match(r'(a+)+b', 'a' * 60)"])
def test_a_job_that_takes_too_long_ends_its_process_and_says_where_it_was(stuck, tmp_path):
    """The last two never give the interpreter's lock away."""
    code = f"""
import re, time
from pathlib import Path
from workbench.batching.notes import begun

def run_job():
    with begun(Path({str(tmp_path / "other")!r}), 60), begun(Path({str(tmp_path / "job")!r}), 0.2):
        {stuck}

run_job()
"""
    clock = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert time.monotonic() - clock < 30
    assert "in run_job" in overdue(tmp_path / "job")
    assert n_deaths(tmp_path / "job") == n_deaths(tmp_path / "other") == 1
    assert overdue(tmp_path / "other") is None


def test_a_job_that_ends_in_time_ends_nothing(tmp_path):
    with begun(tmp_path / "one", 0.2), begun(tmp_path / "other", 60):
        pass
    time.sleep(0.3)
    assert not list(tmp_path.iterdir())  # and this process is still there


def test_one_that_runs_alone_waits_for_the_others_and_they_for_it():
    turns, running, seen = Turns(), [], []

    def job(name, alone):
        with turns.taken(alone=alone):
            running.append(name)
            seen.append((name, len(running)))
            time.sleep(0.02)
            running.remove(name)

    threads = [threading.Thread(target=job, args=(n, n % 3 == 0)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {beside for name, beside in seen if name % 3 == 0} == {1}
    assert max(beside for _, beside in seen) > 1


def test_notes_of_batches_that_were_killed_are_removed_and_those_of_living_ones_are_not(tmp_path):
    for name in ("dead", "living"):
        (tmp_path / "started" / name).mkdir(parents=True)
        (tmp_path / "started" / name / "job").write_bytes(b"begun\n")
        (tmp_path / "started" / f"{name}.lock").touch()
    with filelock.FileLock(tmp_path / "started" / "living.lock"):
        with notes_of(tmp_path) as token:
            assert {path.name for path in (tmp_path / "started").iterdir()} == {
                "living", "living.lock", token, f"{token}.lock",
            }  # fmt: skip
        assert {path.name for path in (tmp_path / "started").iterdir()} == {"living", "living.lock"}
    with notes_of(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
