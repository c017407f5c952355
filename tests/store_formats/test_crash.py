"""Exports and imports that are killed at any instant: whole or not there, and the same bytes in the end."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest

from workbench.cache import open_store
from workbench.store_formats.exporting import export_store
from workbench.store_formats.importing import import_store

RESID, MLP = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"
pytestmark = pytest.mark.crash
KILLS = 40


def killed(work, seconds):
    """Do some work in a child and kill it after some time; returns whether it came to its end."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(1e-4)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def how_long(work):
    """Return the seconds that some work takes in a child."""
    start = time.monotonic()
    assert killed(work, 60)
    return time.monotonic() - start


@pytest.mark.parametrize("to", ["npy", "safetensors", "saelens"])
def test_an_export_that_is_killed(make_store, tmp_path, to, small_batches, all_digests):
    store, _ = make_store(tmp_path / "acts", [40] * 40, rows_per_shard=160)
    options = {"to": to, "hooks": [RESID, MLP], "file_bytes": 3000}
    export_store(store, out=tmp_path / "whole", **options)  # torch is imported here, once for all children
    want = all_digests(tmp_path / "whole")
    out = tmp_path / "out"
    whole = how_long(lambda: export_store(open_store(store.folder), out=tmp_path / "timed", **options))
    draw = random.Random(0)
    n_ended = n_killed = 0
    while n_killed < KILLS:
        if killed(lambda: export_store(open_store(store.folder), out=out, **options), draw.uniform(0, whole / 3)):
            n_ended += 1
            assert all_digests(out) == want
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()
            continue
        n_killed += 1
        if out.exists():  # killed after the rename, perhaps before the note of how far it was has gone
            assert {name: digest for name, digest in all_digests(out).items() if name != "progress.json"} == want
    export_store(store, out=out, **options)
    assert all_digests(out) == want
    assert n_ended < 2 * KILLS  # not all children were too quick


def test_an_import_that_is_killed(tmp_path, small_batches, monkeypatch):
    x = np.random.default_rng(0).standard_normal((3000, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", 64)
    monkeypatch.setattr("workbench.cache.schema.MIN_SHARD_BYTES", 2048)
    whole = how_long(lambda: import_store(tmp_path / "x.npy", out=tmp_path / "timed"))
    want = open_store(tmp_path / "timed").fingerprint()
    draw = random.Random(0)
    for _ in range(KILLS):
        killed(lambda: import_store(tmp_path / "x.npy", out=tmp_path / "out"), draw.uniform(0, whole / 2))
    store = import_store(tmp_path / "x.npy", out=tmp_path / "out")
    assert store.fingerprint() == want
    assert store.verify() == []
    assert store.read("x").tobytes() == x.tobytes()
