"""Stopped at any instant, by any means: the next writer goes on, and the store ends as one that was never stopped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
TIMEOUT_S = 400  # nothing may hang
pytestmark = [pytest.mark.crash, pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")]


def run(mode, tmp_path, n, *safeguard):
    line = [sys.executable, "-W", "error", str(DRIVER), mode, str(tmp_path), str(n), *safeguard]
    return subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def drive(mode, tmp_path, n=0):
    done = run(mode, tmp_path, n)
    assert done.returncode == 0, done.stderr
    return int(re.match(r"(\d+) ", done.stdout)[1])


def test_killed_at_random_times(tmp_path):
    assert drive("random", tmp_path, 250) == 250


def test_killed_at_every_step_that_changes_the_disk(tmp_path):
    assert drive("steps", tmp_path) > 300


def test_killed_at_every_step_of_a_repair(tmp_path):
    assert drive("repair", tmp_path) > 150


def test_interrupted_at_random_times(tmp_path):
    assert drive("interrupt", tmp_path, 200) == 200


def test_every_call_that_changes_the_disk_fails_once(tmp_path):
    assert drive("full", tmp_path) > 400


def test_power_lost_at_random_times(tmp_path):
    assert drive("power", tmp_path, 400) >= 400


@pytest.mark.parametrize(
    "safeguard", ["sync of files", "sync of folders", "sync of adopted shards", "sync of new folders"]
)
def test_a_writer_without_one_of_its_safeguards_loses_rows(tmp_path, safeguard):
    """The control: the disk that loses its power is hard enough to tell."""
    done = run("power", tmp_path, 2000, safeguard)
    assert done.returncode == 1
    assert re.search("AssertionError|DamageError", done.stderr)
