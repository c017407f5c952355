"""Rows written on a thread behind the forward passes: in order, bounded, stopped by the first error."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from workbench import capture_passes
from workbench.cache import StoreError, open_store, schema
from workbench.cache.open_shard import OpenShard
from workbench.capture_passes import AppendingThread
from workbench.capturing import capture
from workbench.cli import main
from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder

HOOKS = ["blocks.*.hook_resid_post", "blocks.0.attn.hook_pattern"]
TEXTS = [f"text {i} of some length" for i in range(20)]


def rows(n_bytes=1):
    return {"h": SimpleNamespace(n_bytes=n_bytes)}


def test_batches_are_written_in_order_and_all_of_them():
    written = []
    with AppendingThread(lambda sequences, rows: written.append(sequences.start), 5) as thread:
        for i in range(100):
            thread.put(range(i, i + 1), rows())
    assert written == list(range(100))


def test_no_more_waits_than_may():
    room = threading.Event()
    handed = []

    def hand_over():
        with AppendingThread(lambda sequences, rows: room.wait(), 10) as thread:
            for i in range(6):
                thread.put(range(i, i + 1), rows(4))
                handed.append(i)

    other = threading.Thread(target=hand_over)
    other.start()
    time.sleep(0.2)
    assert handed == [0, 1]  # the third would make twelve
    room.set()
    other.join()
    assert handed == list(range(6))


def test_one_batch_is_taken_however_large():
    written = []
    with AppendingThread(lambda sequences, rows: written.append(1), 10) as thread:
        thread.put(range(1), rows(1000))
        thread.put(range(1), rows(1000))
    assert written == [1, 1]


@pytest.mark.parametrize("waiting_bytes", [0, 1000])
def test_an_error_ends_it_and_nothing_is_written_after_it(waiting_bytes):
    written = []

    def append(sequences, rows):
        if sequences.start == 3:
            raise StoreError("full")
        written.append(sequences.start)

    def hand_over():
        with AppendingThread(append, waiting_bytes) as thread:
            for i in range(10):
                thread.put(range(i, i + 1), rows())

    with pytest.raises(StoreError, match="full"):
        hand_over()
    assert written == [0, 1, 2]


def test_an_interruption_drops_what_waits():
    written = []
    room = threading.Event()

    def append(sequences, rows):
        room.wait()
        written.append(sequences.start)

    def hand_over():
        with AppendingThread(append, 1000) as thread:
            for i in range(10):
                thread.put(range(i, i + 1), rows())
            threading.Timer(0.1, room.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hand_over()
    assert written == [0]  # the one in hand


# --- in a capture -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'))}"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(schema, "MIN_SHARD_BYTES", 3000)
    monkeypatch.setattr(schema, "CHUNK_BYTES", 256)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_those_of_a_plain_hooked_pass(model, tmp_path, dtype, small_shards):
    """Bit for bit, batch by batch, with PyTorch's own hooks on the blocks."""
    subject = load_subject(model, device="cpu")
    store = capture(subject, data=TEXTS, hooks=HOOKS[0], out=tmp_path / "acts", store_dtype=dtype, batch_size=3)
    seen = {0: [], 1: []}
    for layer, block in enumerate(subject.network.stack.blocks):
        block.register_forward_hook(lambda module, given, out, layer=layer: seen[layer].append(out))
    examples, want = store.examples, {0: [], 1: []}
    for first in range(0, examples.n_sequences, 3):
        at = [slice(*examples.bounds[s : s + 2]) for s in range(first, min(first + 3, examples.n_sequences))]
        batch = subject.batch([examples.ids[each].tolist() for each in at])
        subject.run(batch)
        for layer in seen:
            want[layer].append(seen[layer].pop()[batch.mask])
    for layer, parts in want.items():
        expected = torch.cat(parts).to(getattr(torch, dtype))
        assert torch.equal(store.read_tensor(f"blocks.{layer}.hook_resid_post"), expected)


@pytest.mark.parametrize(("hooks", "n_run"), [(["blocks.0.hook_resid_post", "hook_embed"], 1), (HOOKS, 2)])
def test_layers_after_the_last_hook_point_do_not_run(model, tmp_path, hooks, n_run):
    """In whichever order the hook points are given. What each kind of subject runs: `check_only_needed_layers_run`."""
    subject = load_subject(model, device="cpu")
    run = []
    for layer, block in enumerate(subject.network.stack.blocks):
        block.register_forward_pre_hook(lambda module, given, layer=layer: run.append(layer))
    store = capture(subject, data=TEXTS[:2], hooks=hooks, out=tmp_path / "acts", batch_size=1)
    assert run == [*range(n_run)] * store.examples.n_sequences


def full_after(n_writes, monkeypatch):
    """A disk that has no room after some writes of shards; only one batch may wait."""
    write, left = OpenShard._write, [n_writes]

    def full(self, place, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, place, data)

    monkeypatch.setattr(OpenShard, "_write", full)
    monkeypatch.setattr(capture_passes, "WAITING_BYTES", 0)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {".lock", "index.h5"})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("n_writes", [0, 1, 10])
def test_a_full_disk_stops_the_capture_and_it_goes_on(model, tmp_path, monkeypatch, small_shards, n_writes):
    subject = load_subject(model, device="cpu")

    def run(name):
        return capture(subject, data=TEXTS, hooks=HOOKS, out=tmp_path / name, batch_size=2)

    run("whole")
    with monkeypatch.context() as patch:
        full_after(n_writes, patch)
        with pytest.raises(StoreError, match=r"No space left on device; rows before \d+ are safe"):
            run("full")
    assert not open_store(tmp_path / "full").finished
    run("full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_full_disk_from_the_command_line(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "corpus.txt").write_text("a text that is cut into windows of sixteen tokens")
    full_after(5, monkeypatch)
    line = ["capture", "--model", model, "--data", str(tmp_path / "corpus.txt"), "--hook", HOOKS[0], "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "acts")]) == 2
    said = capsys.readouterr().err
    assert "No space left on device; rows before 0 are safe: mend this and run again" in said
    assert "Traceback" not in said


def test_an_overflow_stops_the_capture(tmp_path, monkeypatch):
    subject = load_subject(f"zoo:{save_tiny_decoder(tmp_path / 'm')}", device="cpu")
    with torch.no_grad():
        subject.network.embed.weight[ord("x") - ord("!")] = 1e6
    passes = []
    run = type(subject).run
    monkeypatch.setattr(type(subject), "run", lambda *args, **options: (passes.append(1), run(*args, **options))[1])
    monkeypatch.setattr(capture_passes, "WAITING_BYTES", 0)
    texts = ["ab", "ax", *["cd"] * 50]
    with pytest.raises(UserError, match=r"hook_embed, row 5: 1e\+06 is beyond float16's largest"):
        capture(subject, data=texts, hooks="hook_embed", out=tmp_path / "a", store_dtype="float16", batch_size=1)
    assert len(passes) < 10  # not found out at the end


INTERRUPTED = """
import sys, time
from workbench import capture_passes
from workbench.cli import main
run_batch = capture_passes.run_batch
def slowly(*args):
    print("batch", flush=True)
    time.sleep(0.02)
    return run_batch(*args)
capture_passes.run_batch = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is Unix's")
@pytest.mark.parametrize("n_batches", [1, 5, 30])
def test_ctrl_c_at_any_batch_is_130_ends_soon_and_goes_on(model, tmp_path, n_batches):
    (tmp_path / "texts").mkdir()
    for i in range(60):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i}")
    line = ["capture", "--model", model, "--data", str(tmp_path / "texts"), "--hook", HOOKS[0], "--device", "cpu"]
    command = [sys.executable, "-c", INTERRUPTED, *line, "--batch-size", "1", "--out", str(tmp_path / "acts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(n_batches):
            assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - started < 10
    assert "the same command continues" in said
    for name in ("acts", "whole"):
        assert main([*line, "--batch-size", "1", "--out", str(tmp_path / name)]) == 0
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")
