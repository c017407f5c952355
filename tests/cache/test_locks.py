"""One writer at a time; the lock goes when its process does, however that ends."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.cache import StoreError, StoreWriter, open_store

HERE = Path(__file__).parent


def test_a_second_writer_is_refused(tmp_path, specs, examples, manifest):
    with StoreWriter(tmp_path / "acts", specs, examples, manifest):
        with pytest.raises(StoreError, match="acts is being written by another process"):
            StoreWriter(tmp_path / "acts", specs, examples, manifest)
        open_store(tmp_path / "acts")  # readers are not
    StoreWriter(tmp_path / "acts", specs, examples, manifest).close()


HOLDER = """
import sys
from workbench.cache.lock import WriterLock
from pathlib import Path
lock = WriterLock(Path(sys.argv[1]) / ".lock")
print("held", flush=True)
sys.stdin.read()
"""


FORKED = HOLDER.replace("print(", "import os\nif not os.fork(): print(os.getpid(), ")  # the child speaks: it has let go


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the writer's lock; gives it and what it said."""
    folder = tmp_path / "acts"
    folder.mkdir()
    started = []

    def hold(program):
        line = [sys.executable, "-c", program, str(folder)]
        holder = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(holder)
        return folder, holder, holder.stdout.readline()

    yield hold
    for holder in started:
        holder.kill()
        holder.communicate(timeout=60)


def test_a_killed_writer_leaves_no_lock_behind(hold, specs, examples, manifest):
    folder, holder, said = hold(HOLDER)
    assert said == b"held\n"
    started = time.monotonic()
    with pytest.raises(StoreError, match="is being written by another process"):
        StoreWriter(folder, specs, examples, manifest)
    assert time.monotonic() - started < 5  # at once
    holder.kill()
    holder.wait(60)
    assert (folder / ".lock").exists()
    StoreWriter(folder, specs, examples, manifest).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_killed_writer_does_not_keep_the_lock(hold, specs, examples, manifest):
    """Worker processes are forked while the lock is held, and may outlive their parent."""
    folder, holder, said = hold(FORKED)
    child = int(said.split()[0])
    with pytest.raises(StoreError, match="is being written by another process"):
        StoreWriter(folder, specs, examples, manifest)
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    os.kill(child, 0)  # it lives
    StoreWriter(folder, specs, examples, manifest).close()


def test_a_disk_without_locks_is_refused_before_anything_is_written(tmp_path, specs, examples, manifest, monkeypatch):
    """A file whose existence is the lock would outlive its process."""

    def missing(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(StoreError, match=r"cannot lock .*acts/\.lock: Function not implemented"):
        StoreWriter(tmp_path / "acts", specs, examples, manifest)


READ_ON = """
import sys, time
from pathlib import Path
import workload
folder, seen = Path(sys.argv[1]), [0]
print("reading", flush=True)
while seen[-1] < workload.N_ROWS:
    seen.append(workload.check_what_is_left(folder))
assert seen == sorted(seen)
print(sorted(set(seen)))
"""
WRITE_SLOWLY = """
import sys, time
from pathlib import Path
import workload
from workbench.cache import StoreWriter
append = StoreWriter.append
StoreWriter.append = lambda *given: (time.sleep(0.1), append(*given))
workload.write(Path(sys.argv[1]))
"""


def test_readers_beside_a_writer_see_what_is_committed_and_nothing_else(tmp_path):
    """Each opens, verifies and reads all there is, again and again, from before the store is there until its end."""

    def start(program):
        line = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "acts")]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)

    readers = [start(READ_ON) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers] == ["reading\n"] * 2
    for process in (start(WRITE_SLOWLY), *readers):
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert set(json.loads(said)) <= {0, 64, 128, 150}
