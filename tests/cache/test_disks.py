"""Disks that are full, read-only or failing: what is said, and what is safe. Every call once: see `test_crash.py`."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from workbench.cache import StoreError
from workbench.cache.open_shard import OpenShard

HERE = Path(__file__).parent


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the index, which HDF5 gives a time."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "index.h5")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("n_writes", [0, 1, 5, 17])
def test_a_full_disk_is_explained_and_loses_nothing(
    tmp_path, store_folder, specs, arrays, examples, manifest, write_store, monkeypatch, n_writes
):
    write, left = OpenShard._write, [n_writes]

    def full(self, place, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, place, data)

    monkeypatch.setattr(OpenShard, "_write", full)
    folder = tmp_path / "full"
    with pytest.raises(StoreError, match=r"No space left on device; rows before \d+ are safe"):
        write_store(folder, arrays, examples, rows_per_shard=24)
    assert not list(folder.rglob("*.part"))
    monkeypatch.undo()
    monkeypatch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", 8)
    write_store(folder, arrays, examples, rows_per_shard=24)
    assert files(folder) == files(store_folder)


@pytest.mark.parametrize("step", ["examples", "manifest", "sync", "rename"])
def test_a_full_disk_at_any_step(tmp_path, store_folder, arrays, examples, write_store, monkeypatch, step):
    names = {
        "examples": "workbench.cache.examples.replace_file",
        "manifest": "workbench.cache.manifest_file.replace_file",
        "sync": "workbench.cache.files.sync_file",
        "rename": "workbench.cache.files.sync_folder",
    }
    module, _, name = names[step].rpartition(".")
    true, n = getattr(sys.modules[module], name), [0]

    def full(*args):
        n[0] += 1
        if n[0] in (3, 4) or step == "examples":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(*args)

    with monkeypatch.context() as patch:
        patch.setattr(names[step], full)
        with pytest.raises((StoreError, OSError), match="No space left on device"):
            write_store(tmp_path / "full", arrays, examples, rows_per_shard=24)
    write_store(tmp_path / "full", arrays, examples, rows_per_shard=24)
    assert files(tmp_path / "full") == files(store_folder)


LIMITED = """
import resource, signal, sys, pathlib
import numpy as np
from workbench.cache import ActivationSpec, ExamplesBuilder, StoreError, StoreWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
builder = ExamplesBuilder()
builder.sequence(builder.document("d"), np.arange(1000))
spec = ActivationSpec(("d",), (64,), "float32")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with StoreWriter(sys.argv[1], {"h": spec}, builder.build(), {}, rows_per_shard=500) as writer:
        writer.append({"h": np.zeros((1000, 64), np.float32)})
except StoreError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is Unix's")
@pytest.mark.parametrize("limit", [0, 3000, 20_000, 100_000])
def test_the_system_refuses_to_write(tmp_path, limit):
    """HDF5 and we meet a true refusal at different files and places: a message each time, no traceback, no hang."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "acts"), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stdout
    assert "Traceback" not in done.stderr


# --- disks of our own ---------------------------------------------------------------------------------------------
def run(program, *arguments, before=()):
    """Run a program beside the fault injectors' workload; nothing may hang."""
    line = [*before, sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=HERE, check=False)


def may_mount():
    """Whether this machine lets us have mounts of our own, as root or in a namespace."""
    return (
        shutil.which("unshare") is not None and not subprocess.run(["unshare", "-rm", "true"], check=False).returncode
    )


MOUNTED = """
import subprocess, sys
from pathlib import Path
import workload
from workbench.cache import StoreError, open_store

def mount(*options):
    subprocess.run(["mount", *options, sys.argv[1]], check=True)

def refused():
    try:
        workload.write(folder)
    except StoreError as error:
        return str(error)

folder = Path(sys.argv[1]) / "acts"
mount("-t", "tmpfs", "-o", f"size={sys.argv[2]}k", "none")
print(refused())
print(workload.check_what_is_left(folder))
mount("-o", "remount,size=4m")
workload.write(folder)
print(workload.check_what_is_left(folder))
mount("-o", "remount,ro")
print(refused())
print(workload.check_what_is_left(folder))
try:
    workload.add_labels(open_store(folder))
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(not may_mount(), reason="may not mount a file system here (issue 4: covered by injected errors)")
@pytest.mark.parametrize("size_kb", [4, 40, 60, 80])
def test_a_disk_that_is_full_then_grows_then_is_read_only(tmp_path, size_kb):
    done = run(MOUNTED, tmp_path, size_kb, before=["unshare", "-rm"])
    assert done.returncode == 0, done.stderr
    full, n_left, n_rows, refused, n_read, no_labels = done.stdout.splitlines()
    assert "No space left on device" in full
    assert int(n_left) in {0, 64, 128}
    assert (n_rows, n_read) == ("150", "150")  # a read-only store is read and verified
    assert f"cannot write {tmp_path}/acts" in refused
    assert refused.endswith("Read-only file system")
    assert no_labels.endswith("Read-only file system")


UNPRIVILEGED = """
import email.parser  # for versions of packages; later it may not be read
import os, sys
from pathlib import Path
import workload
from workbench.cache import StoreError, open_store

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
folder = Path(sys.argv[1])
try:
    workload.write(folder)
except StoreError as error:
    print(error)
if (folder / "manifest.json").exists():
    print(workload.check_what_is_left(folder))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are Unix's")
@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_that_may_not_be_written(finished):
    """As a user whom permissions stop: root hands its rights back first."""
    with TemporaryDirectory() as root:  # not tmp_path, which others may not pass through
        Path(root).chmod(0o755)
        folder = Path(root) / "acts"
        folder.mkdir()
        if finished:
            run("import sys, pathlib, workload; workload.write(pathlib.Path(sys.argv[1]))", folder)
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = files(folder)
        done = run(UNPRIVILEGED, folder)
        assert done.returncode == 0, done.stderr
        said, *n_rows = done.stdout.splitlines()
        assert said == f"cannot write {folder}: Permission denied"
        assert n_rows == (["150"] if finished else [])
        assert files(folder) == before
        folder.chmod(0o755)
