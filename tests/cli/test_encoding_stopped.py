"""``workbench encode`` and ``reconstruct`` as processes of their own, killed at any step: the same command goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.cache import ActivationSpec, ExamplesBuilder, StoreWriter, open_store
from workbench.dictionary import Dictionary

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]
HOOK, WIDTH, LATENTS, K = "blocks.0.hook_resid_post", 256, 1024, 4
N_ROWS = 65_536
STOPPED = """
import os, signal, sys
import workbench.encoding
from workbench.cli import main

workbench.encoding.SHARD_ENTRIES = 1 << 15
left, fsync = [int(sys.argv[1])], os.fsync

def last(file):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = last
sys.exit(main(sys.argv[2:]))
"""
"""Kills itself before it syncs for the n-th time: a shard, the folder that it is in, the manifest; never for n = 0."""
WHEN = (1, 4, 9)


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    """A store of several shards, and a dictionary, in one folder."""
    folder = tmp_path_factory.mktemp("encoded")
    numbers = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=numbers), dim=1)
    zeros = torch.zeros(WIDTH)
    Dictionary(W, torch.zeros(LATENTS), W, zeros, zeros, "topk", HOOK, HOOK, k=K).save(folder / "dictionary")
    plan = ExamplesBuilder()
    for number in range(N_ROWS // 256):
        plan.sequence(plan.document(f"{number}"), np.arange(256))
    spec = {HOOK: ActivationSpec(("d_model",), (WIDTH,), "float16")}
    with StoreWriter(
        folder / "acts", spec, plan.build(), {"model": {"address": "zoo:none", "fingerprint": ""}}
    ) as writer:
        while writer.next_row < N_ROWS:
            writer.append({HOOK: torch.randn(8192, WIDTH, generator=numbers).numpy()})
    return folder


def run(folder: Path, verb: str, *options: str, kill_at: int = 0) -> int:
    line = [verb, "--store", str(folder / "acts"), "--dictionary", str(folder / "dictionary"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(kill_at), *line, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        timeout=300,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode


def contents(folder: Path) -> dict[str, bytes]:
    """Shards, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shards/*"))}


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "reconstruct from codes"])
def test_killed_several_times_it_ends_with_the_same_bytes(verb, acts, tmp_path):
    def options(name):
        return ("--name", f"{name}-codes") if verb == "encode" else ("--out", str(tmp_path / name))

    def made(name):
        return acts / "acts" / "codes" / f"{name}-codes" if verb == "encode" else tmp_path / name

    command = verb.split()[0]
    for path in (acts / "acts").glob("codes/*/manifest.json"):
        path.rename(path.with_suffix(".hidden"))  # codes are found by their manifests
    if verb == "reconstruct from codes":
        assert run(acts, "encode", "--name", "read") == 0
    assert run(acts, command, *options("whole")) == 0
    assert {run(acts, command, *options("killed"), kill_at=n) for n in WHEN} == {-signal.SIGKILL}
    assert run(acts, command, *options("killed")) == 0
    whole, killed = contents(made("whole")), contents(made("killed"))
    assert len(whole) >= 2
    assert whole == killed
    assert not list(made("killed").rglob("*.part"))
    if verb == "encode":
        store = open_store(acts / "acts")
        assert store.codes("killed-codes").fingerprint() == store.codes("whole-codes").fingerprint()
        assert store.verify() == []
    else:
        assert open_store(made("killed")).fingerprint() == open_store(made("whole")).fingerprint()
        assert open_store(made("killed")).verify() == []
