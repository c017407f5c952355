"""SIGKILL at any instant: the next writer goes on, and the store ends with the bytes of one never stopped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")


def drive(mode, tmp_path, n):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(DRIVER), mode, str(tmp_path), str(n)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(re.match(r"(\d+) kills", done.stdout)[1])


@pytest.mark.crash
def test_killed_at_random_times(tmp_path):
    assert drive("random", tmp_path, 40) == 40


@pytest.mark.crash
def test_killed_at_every_step_that_changes_the_disk(tmp_path):
    assert drive("steps", tmp_path, 0) > 100
