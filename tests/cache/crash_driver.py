"""Writes stores in forked children, kills them, lets the next child go on, and compares with a store never stopped.

Run by `test_crash.py` as a program of its own: it must be free of threads to fork, and of torch to be quick.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from workbench.cache import ActivationSpec, ExamplesBuilder, StoreWriter, open_store, schema

N_ROWS, BATCH_ROWS, ROWS_PER_SHARD = 150, 40, 64
SPECS = {
    "resid": ActivationSpec(("d_model",), (64,), "float32"),
    "pattern": ActivationSpec(("head", "key"), (4, 8), "bfloat16"),
}
schema.MAX_CHUNK_ROWS = 16


def plan():
    builder = ExamplesBuilder()
    for number in range(N_ROWS // 10):
        builder.sequence(builder.document(f"d{number}"), np.arange(10) + number)
    return builder.build()


EXAMPLES = plan()
RNG = np.random.default_rng(0)
VALUES = {
    name: np.frombuffer(RNG.bytes(N_ROWS * spec.row_bytes), spec.stored).reshape(N_ROWS, *spec.shape)
    for name, spec in SPECS.items()
}


def write(folder: Path) -> None:
    with StoreWriter(
        folder, SPECS, EXAMPLES, {"fingerprints": {"model": "m"}}, rows_per_shard=ROWS_PER_SHARD
    ) as writer:
        while writer.next_row < N_ROWS:
            rows = slice(writer.next_row, min(writer.next_row + BATCH_ROWS, N_ROWS))
            writer.append({name: values[rows] for name, values in VALUES.items()})


class Steps:
    """Dies before, in the middle of, or after the n-th call that changes the disk."""

    def __init__(self, fatal: int) -> None:
        self.left = fatal
        sync, rename, write, unlink = os.fsync, Path.replace, io.FileIO.write, Path.unlink
        steps = self

        class File(io.FileIO):
            def write(self, data):
                half = memoryview(data).cast("B")[: len(data) // 2]
                steps.step()
                if steps.left == 0:
                    write(self, half)
                steps.step()
                return write(self, data)

        open_truly = Path.open

        def open_(self, mode="r", buffering=-1, **options):
            if mode[0] != "w" or "b" not in mode:
                return open_truly(self, mode, buffering, **options)
            raw = File(self, mode.replace("b", ""))
            return raw if buffering == 0 else io.BufferedWriter(raw)

        Path.open = open_
        os.fsync = self.around(sync)
        Path.replace = self.around(rename)
        Path.unlink = self.around(unlink)

    def step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def around(self, call: Callable) -> Callable:
        def stepped(*args, **options):
            self.step()
            result = call(*args, **options)
            self.step()
            return result

        return stepped


def in_child(work: Callable[[], None], kill_after_s: float | None = None) -> bool:
    """Do the work in a fork; True if it was killed."""
    child = os.fork()
    if child == 0:
        failed = True
        try:
            work()
            failed = False
        finally:
            if failed:
                traceback.print_exc()
            os._exit(failed)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit("a writer failed after a kill")
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the index; of the index, what plain h5py reads."""
    found = {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "index.h5"
    }
    with h5py.File(folder / "index.h5") as index:
        for name in [*(f"activations/{hook}" for hook in SPECS), "rows"]:
            found[f"index.h5:{name}"] = index[name][()].tobytes()
    return found


def check_what_is_left(folder: Path) -> None:
    """What a reader sees between two writers is right."""
    if not (folder / "manifest.json").exists():
        return
    store = open_store(folder)
    assert store.verify() == [], store.verify()
    for name, spec in SPECS.items():
        stored = store._reader.read_rows(name, np.arange(store.n_rows), verify=True)
        assert stored.dtype == spec.stored
        assert stored.tobytes() == VALUES[name][: store.n_rows].tobytes()


def main() -> None:
    mode, root, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(n)
    in_child(lambda: write(root / "reference"))
    started = time.monotonic()
    in_child(lambda: write(root / "timed"))
    whole_s = time.monotonic() - started
    want = contents(root / "reference")
    n_kills = n_stores = 0
    while True:
        folder = root / f"{mode}{n_stores}"
        n_stores += 1
        if mode == "steps":  # one kill at each step, then one that goes on
            if not in_child(lambda folder=folder, fatal=n_kills: (Steps(fatal), write(folder))):
                break
            n_kills += 1
            check_what_is_left(folder)
            in_child(lambda folder=folder: write(folder))
        else:  # kills at any time, until a writer is quicker than its killer
            while n_kills < n and in_child(lambda folder=folder: write(folder), rng.uniform(0, 1.1 * whole_s)):
                n_kills += 1
                check_what_is_left(folder)
            in_child(lambda folder=folder: write(folder))
        assert contents(folder) == want, f"store {folder} differs"
        if mode == "random" and n_kills >= n:
            break
    print(f"{n_kills} kills, {n_stores} stores")


if __name__ == "__main__":
    main()
