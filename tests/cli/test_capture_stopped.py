"""``workbench capture`` as a process of its own, stopped from outside at any time: the same command goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from workbench.cache import open_store

TIMEOUT_S = 120
ATTENTION = "blocks.*.attn.hook_pattern"  # makes rows of 2 KB, and so five shards


@pytest.fixture(scope="module")
def command():
    line = "-m workbench capture --model zoo:calendar --data calendar --hook blocks.*.hook_resid_post --device cpu"
    return [sys.executable, *line.split(), "--hook", ATTENTION, "--out"]


@pytest.fixture(scope="module")
def want(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "acts"
    assert end_of(start(command, folder)) == 0
    assert len(open_store(folder).manifest["shards"]) >= 4
    return contents(folder)


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(folder)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end; leaves a process that hangs no way out."""
    try:
        _, said = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert b"Traceback" not in said or process.returncode == -signal.SIGINT, said.decode()
    return process.returncode


def wait_for_rows(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until a shard is being written, or the process is at its end."""
    while process.poll() is None and not list(folder.glob("shards/*.part")):
        time.sleep(0.002)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store, byte for byte, but for locks and the derived index."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {".lock", "index.h5"})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.crash
def test_ten_kills_of_the_process_group(command, want, tmp_path):
    """While it loads, plans and labels, or while it writes; whenever a store is finished, another is begun."""
    rng = random.Random(0)
    killed = n_stores = 0
    while killed < 10:
        folder = tmp_path / f"acts{n_stores}"
        code = -signal.SIGKILL
        while code == -signal.SIGKILL and killed < 10:
            process = start(command, folder)
            if killed % 5:
                wait_for_rows(process, folder)
                time.sleep(rng.uniform(0, 0.5))
            else:
                time.sleep(rng.uniform(2, 5))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = end_of(process)
            killed += code == -signal.SIGKILL
        assert end_of(start(command, folder)) == 0
        assert contents(folder) == want
        assert open_store(folder).verify() == []
        n_stores += 1


@pytest.mark.crash
def test_interrupted_at_any_time_it_says_130(command, want, tmp_path):
    rng = random.Random(0)
    codes = []
    for number in range(6):
        process = start(command, tmp_path / "acts")
        if number % 2:
            wait_for_rows(process, tmp_path / "acts")
            time.sleep(rng.uniform(0, 0.4))
        else:
            time.sleep(rng.uniform(1, 5))
        process.send_signal(signal.SIGINT)
        codes.append(end_of(process))
    # 130 is what a shell makes of -SIGINT, the end of an interpreter that has not come to the command yet
    assert set(codes) <= {130, -signal.SIGINT, 0}, codes
    assert 130 in codes
    assert end_of(start(command, tmp_path / "acts")) == 0
    assert contents(tmp_path / "acts") == want


def damage(folder: Path) -> None:
    """Remove a shard, and cut another off."""
    (folder / "shards/000001.h5").unlink()
    shard = folder / "shards/000002.h5"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


@pytest.mark.crash
def test_a_repair_that_is_killed_at_any_time_ends_with_the_same_bytes(command, want, tmp_path):
    """Shards cut off and missing, so that many batches are run again; killed while it loads, checks or writes."""
    rng, folder = random.Random(0), tmp_path / "acts"
    assert end_of(start(command, folder)) == 0
    repair, codes = [sys.executable, "-m", "workbench", "store", "repair"], [0]
    while codes.count(-signal.SIGKILL) < 4:
        if codes[-1] == 0:
            damage(folder)
        process = start(repair, folder)
        if len(codes) % 2:
            wait_for_rows(process, folder)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0.5, 3))
        with suppress(ProcessLookupError):  # it may be at its end, and known to be
            os.killpg(process.pid, signal.SIGKILL)
        codes.append(end_of(process))
    assert end_of(start(repair, folder)) == 0
    assert contents(folder) == want
    assert open_store(folder).verify() == []
