"""Writes stores, stops them by every means there is, lets the next writer go on, and compares with one never stopped.

Run by `test_crash.py` as a program of its own: it must be free of threads to fork, and of torch to be quick.

    crash_driver.py MODE FOLDER N [SAFEGUARD]

``random``: SIGKILL at N random times. ``steps``: SIGKILL before, in the middle of and after each call that changes the
disk. ``repair``: the same, while a damaged store is repaired. ``interrupt``: Ctrl-C at N random times. ``full``: every
call that takes space fails, and every sync. ``power``: N losses of power, which take with them what was not synced; a
safeguard of the writer can be taken away, to see that it is missed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import power
from disk import Change, Disk, Failer, Killer, Recorder
from workload import check_what_is_left, contents, harm, repair, write

from workbench.cache import StoreError, files, labels, open_store, writer

INTERRUPTED = 130


def in_child(work: Callable[[], object], signal_after_s: float | None = None, number: int = signal.SIGKILL) -> bool:
    """Do the work in a fork; True if it was stopped by a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child can catch it
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            work()
            code = 0
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            if code == 1:
                traceback.print_exc()
            os._exit(code)
    if signal_after_s is not None:
        time.sleep(signal_after_s)
        os.kill(child, number)
    status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if code not in {0, INTERRUPTED, -signal.SIGKILL}:
        sys.exit(f"a writer ended with {code}")
    return code != 0


def write_under(disk: Disk, folder: Path) -> None:
    """Write with every change of the disk passing through a layer."""
    with disk:
        write(folder)


def stop_at_random_times(root: Path, n: int, want: dict[str, bytes], number: int) -> str:
    """Signals at any time, until a writer is quicker than its killer; then the next store."""
    rng = random.Random(n)
    started = time.monotonic()
    in_child(lambda: write(root / "timed"))
    whole_s = time.monotonic() - started
    n_stopped = n_stores = 0
    while n_stopped < n:
        folder = root / f"random{n_stores}"
        n_stores += 1
        while n_stopped < n and in_child(lambda folder=folder: write(folder), rng.uniform(0, 1.1 * whole_s), number):
            n_stopped += 1
            check_what_is_left(folder)
        in_child(lambda folder=folder: write(folder))
        assert contents(folder) == want, f"store {folder} differs"
        shutil.rmtree(folder)
    return f"{n_stopped} kills, {n_stores} stores"


def stop_at_every_step(root: Path, want: dict[str, bytes]) -> str:
    """One kill at each step, then one that goes on."""
    n_kills = 0
    while True:
        folder = root / f"step{n_kills}"
        if not in_child(lambda folder=folder, fatal=n_kills: write_under(Killer(folder, fatal), folder)):
            return f"{n_kills} kills"
        n_kills += 1
        check_what_is_left(folder)
        in_child(lambda folder=folder: write(folder))
        assert contents(folder) == want, f"store {folder} differs"
        shutil.rmtree(folder)


def kill_repairs(root: Path, want: dict[str, bytes]) -> str:
    """One kill at each step of a repair, then one that goes on; with the stored bits, and with others that are kept.

    Of the many writes to a file that is not in its place yet, some.
    """
    n_kills = 0
    for other_bits in (False, True):

        def work(folder: Path, fatal: int | None = None, other_bits: bool = other_bits) -> None:
            with contextlib.nullcontext() if fatal is None else Killer(folder, fatal):
                repair(folder, other_bits=other_bits)

        folder = harmed(root, f"repair {other_bits}")
        with Recorder(folder) as recorder:
            repair(folder, other_bits=other_bits)
        assert (contents(folder) == want) != other_bits
        done = contents(folder)
        first = 0
        for number, change in enumerate(recorder.log):
            n_steps = 3 if change.kind == "write" else 2
            is_many = change.kind == "write" and change.path.endswith(".h5.part")
            for fatal in range(first, first + n_steps) if not is_many or number % 50 == 0 else ():
                folder = harmed(root, f"repair {other_bits} {fatal}")
                assert in_child(lambda folder=folder, fatal=fatal: work(folder, fatal)), f"step {fatal} was not reached"
                in_child(lambda folder=folder: work(folder))
                assert contents(folder) == done, f"store {folder} differs"
                assert open_store(folder).verify() == []
                shutil.rmtree(folder)
                n_kills += 1
            first += n_steps
    return f"{n_kills} kills"


def harmed(root: Path, name: str) -> Path:
    """Return a damaged copy of the reference."""
    folder = root / name
    shutil.copytree(root / "reference", folder)
    harm(folder)
    return folder


FAULTS = [
    ("full disk", {"create", "write", "mkdir"}, errno.ENOSPC, True),
    ("full disk that has room again", {"create", "write", "size"}, errno.ENOSPC, False),
    ("read-only from now on", {"create", "write", "size", "rename", "unlink", "mkdir"}, errno.EROFS, True),
    ("failing sync", {"sync"}, errno.EIO, False),
    ("failing rename", {"rename", "unlink"}, errno.EIO, False),
    ("Ctrl-C", {"create", "write", "size", "sync", "rename", "unlink"}, KeyboardInterrupt(), False),
]


def fail_every_call(root: Path, want: dict[str, bytes]) -> str:
    """Every call fails once: an error that says what and what is safe; the next writer ends with the same bytes."""
    n_failures = 0
    for what, kinds, error, lasts in FAULTS:
        number = 0
        while True:
            folder = root / f"{what} {number}"
            folder.mkdir()
            layer = Failer(folder, kinds, number, error, lasts=lasts)
            said: BaseException | None = None
            try:
                write_under(layer, folder)
            except (StoreError, KeyboardInterrupt) as raised:
                said = raised
            if not layer.failed:
                break
            where = f"{what}, call {number}"
            if said is None:  # a leftover that could not be removed is no reason to stop
                assert kinds & {"unlink"}, f"{where}: nothing was said"
            elif isinstance(error, int):
                assert os.strerror(error) in str(said), f"{where}: {said}"
            check_what_is_left(folder)
            write(folder)
            assert contents(folder) == want, f"{where}: the store differs"
            shutil.rmtree(folder)
            number += 1
        n_failures += number
    return f"{n_failures} failures"


def lose_power(root: Path, n: int, want: dict[str, bytes]) -> str:
    """Kill and cut the power, in any order and up to four times, then go on; what was promised must be there."""
    n_losses = n_stores = 0
    for seed in range(10**9):
        rng = random.Random(seed)
        disk = power.Disk()
        promised = 0
        for run in range(rng.randint(1, 4)):
            log = run_on(disk, root / "run")
            if run == 0 and seed == 0:
                played = power.Disk()
                played.do(log)
                played.put(root / "played")
                assert contents(root / "played" / "acts") == want, "the layer does not see every change"
            renames = [end for end in range(len(log) + 1) if end and log[end - 1].kind == "rename"]
            done = log[: rng.choice([rng.randint(0, len(log)), rng.choice([0, *renames])])]
            disk.do(done)
            promised = max(promised, *(rows_promised(done, end) for end in range(len(done) + 1)))
            if rng.random() < 0.7:
                disk.lose_power(rng)
                n_losses += 1
            disk.put(root / "left")
            n_rows = check_what_is_left(root / "left" / "acts")
            assert n_rows >= promised, f"seed {seed}: {n_rows} rows are left, {promised} were safe"
            shutil.rmtree(root / "left")
        disk.do(run_on(disk, root / "run"))
        disk.put(root / "left")
        assert contents(root / "left" / "acts") == want, f"seed {seed}: the store differs"
        shutil.rmtree(root / "left")
        n_stores += 1
        if n_losses >= n:
            break
    return f"{n_losses} losses of power, {n_stores} stores"


def run_on(disk: power.Disk, folder: Path) -> list[Change]:
    """Let a writer go on from what a disk shows, and return what it did."""
    disk.put(folder)
    recorder = Recorder(folder)
    write_under(recorder, folder / "acts")
    shutil.rmtree(folder)
    return recorder.log


def rows_promised(log: list[Change], end: int) -> int:
    """Return the rows of the last manifest whose name was synced: a writer said that they are safe."""
    if not (0 < end <= len(log) and log[end - 1] == Change("sync", "acts")):
        return 0
    ends = [i for i, change in enumerate(log[:end]) if change.to == "acts/manifest.json"]
    if not ends:
        return 0
    writes = [c for c in log[: ends[-1]] if c.path == "acts/manifest.json.part"]
    begun = max(i for i, change in enumerate(writes) if change.kind in {"create", "size"})
    shards = json.loads(power.carried_out(b"", writes[begun + 1 :]))["shards"]
    return sum(shard["n_rows"] for shard in shards)


def take_away(safeguard: str) -> None:
    """Make the writer careless in one way."""
    careless = {
        "sync of files": [(files, "sync_file")],
        "sync of folders": [(files, "sync_folder")],
        "sync of adopted shards": [(writer, "sync_file"), (writer, "sync_folder")],
        "sync of new folders": [(writer, "make_folder"), (labels, "make_folder")],
    }
    for module, name in careless[safeguard]:
        made = name == "make_folder"
        setattr(module, name, (lambda path: path.mkdir(parents=True, exist_ok=True)) if made else (lambda path: None))


def main() -> None:
    """Do what the command line says, and print what was done."""
    mode, root, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.fsync = lambda handle: None  # a killed program leaves what it wrote to the system; `power` has a disk of its own
    in_child(lambda: write(root / "reference"))
    want = contents(root / "reference")
    for safeguard in sys.argv[4:]:
        take_away(safeguard)
    work = {
        "random": lambda: stop_at_random_times(root, n, want, signal.SIGKILL),
        "interrupt": lambda: stop_at_random_times(root, n, want, signal.SIGINT),
        "steps": lambda: stop_at_every_step(root, want),
        "repair": lambda: kill_repairs(root, want),
        "full": lambda: fail_every_call(root, want),
        "power": lambda: lose_power(root, n, want),
    }
    print(work[mode]())


if __name__ == "__main__":
    main()
