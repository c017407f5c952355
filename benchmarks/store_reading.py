"""Reading: our shuffled epoch beside plain reads, memory maps, h5py and SAELens's reader.

Every way gives batches and drops them. Some peers are so slow that they read the first rows only, or a few; their time
is scaled to all rows. `run` reads what the page cache holds, `run_cold` what it was made to drop.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import store_ways as ways_of
from measuring import Others, all_turns
from store_data import DataSet
from store_ways import CHUNK_ROWS, FEW_ROWS, Files, Rows, Way

from workbench.cache import open_store

FLOOR, INTO_ALL = "readinto, a batch at a time", "readinto, all rows to memory"
DIRECT, DIRECT_TWO = "past the page cache", "past the page cache, two at once"
OURS, UNCHECKED, IN_ORDER = "ours, shuffled, verified", "ours, shuffled, not verified", "ours, in order, verified"
FIRST, LATER = "ours, the same, memory not yet given", "ours, shuffled, verified, a later epoch"
NUMPY = "ours, the same, without a C compiler"
MAPPED, MAPPED_SORTED = "memmap, shuffled rows", "memmap, sorted within a batch"
CHUNKED, CONTIGUOUS = (
    f"h5py, whole chunks of {CHUNK_ROWS}, shuffled",
    f"h5py contiguous, {CHUNK_ROWS} at a time, shuffled",
)
FANCY = "h5py, fancy indexing"
SAELENS, SAELENS_MIXED = "SAELens's reader, in order", "SAELens's reader, mixed"


def check_equal(data: DataSet, way: str, batches: Iterator[Rows], n_rows: int) -> None:
    """Hold every batch of a way against the rows it should have, and every row to come once."""
    seen = np.zeros(data.n_rows, np.int64)
    for batch in batches:
        numbers = data.numbers(batch)
        seen[numbers] += 1
        if batch.tobytes() != data.values[numbers].tobytes():
            raise SystemExit(f"{way} does not give the rows that were written")
    if seen.max() > 1 or seen.sum() != n_rows:
        raise SystemExit(f"{way} gives {seen.sum()} rows, some {seen.max()} times: it should give {n_rows}, each once")


def measure(
    files: Files, title: str, ways: Mapping[str, Way], repeats: int, *, cold: bool, shares: Mapping[str, int]
) -> None:
    """Check that all ways give the same rows, time them in turns, and print their rates.

    Parameters
    ----------
    files : Files
        What they read.
    title : str
        What is measured.
    ways : mapping of str to callable
        The first is the floor.
    repeats : int
        Rounds; ways with a share take part in two.
    cold : bool
        Make the page cache drop the files before each turn.
    shares : mapping of str to int
        Rows that a way reads, where that is not all.
    """
    data = files.data
    for name, way in ways.items():
        check_equal(data, name, way(), shares.get(name, data.n_rows))
    print(f"\n{title}: all ways gave the rows that were written, each once")

    def go_through(way: Way) -> None:
        for _ in way():
            pass

    timed = {name: (lambda way=way: go_through(way)) for name, way in ways.items()}
    fewer, others = {name: min(repeats, 2) for name in shares}, Others()
    turns = all_turns(timed, repeats, fewer=fewer, before=(lambda _: drop(data.folder)) if cold else None)
    taken = others.share()
    n_bytes = {name: data.row_bytes * shares.get(name, data.n_rows) for name in ways}
    rates = {name: n_bytes[name] / statistics.median(seconds) / 1e9 for name, seconds in turns.items()}
    floor = next(iter(ways))
    print(f"  {'':<46} {'GB/s':>8} {'at best':>8} {'of ' + floor:>30} {'ours is faster':>15}")
    for name, rate in rates.items():
        rows = f" ({shares[name]:,} rows)" if name in shares else ""
        best = n_bytes[name] / min(turns[name]) / 1e9
        print(f"  {name + rows:<46} {rate:8.3f} {best:8.3f} {rate / rates[floor]:30.3f} {rates[OURS] / rate:15.2f}")
    print(f"  other processes took {taken:.0%} of the cores meanwhile")


def drop(folder: Path) -> bool:
    """Make the page cache drop every file below a folder; return whether it did."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                os.fsync(file.fileno())  # what is not on the disk yet is not dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                try:
                    if os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT):
                        return False
                except BlockingIOError:
                    continue  # it would have to be read
                except OSError:
                    return False  # a file system that cannot say
    return True


def run(data: DataSet, repeats: int) -> None:
    """Print how fast each way reads all rows from the page cache."""
    files = ways_of.write(data)
    ways_of.write_saelens(files)
    store = open_store(files.acts)  # once: a second epoch uses the memory of the first
    everything = np.zeros_like(data.values)
    everything[:] = 1  # touched: a system gives memory when it is first written to
    ways: dict[str, Way] = {
        FLOOR: lambda: ways_of.into_one_buffer(files),
        INTO_ALL: lambda: ways_of.into_all(files, everything),
        OURS: lambda: ways_of.ours(store),
        FIRST: lambda: ways_of.ours(open_store(files.acts)),
        NUMPY: lambda: ways_of.placed_by_numpy(store),
        UNCHECKED: lambda: ways_of.ours(store, verify=False),
        IN_ORDER: lambda: ways_of.ours_in_order(store),
        MAPPED: lambda: ways_of.mapped(files, in_batch_sorted=False),
        MAPPED_SORTED: lambda: ways_of.mapped(files, in_batch_sorted=True),
        CHUNKED: lambda: ways_of.whole_chunks(files, files.chunked),
        CONTIGUOUS: lambda: ways_of.whole_chunks(files, files.contiguous),
        FANCY: lambda: ways_of.fancy(files),
        SAELENS: lambda: ways_of.saelens(files, mixed=False),
    }
    shares = {FANCY: min(FEW_ROWS, data.n_rows), SAELENS: files.saelens_rows}
    if files.mixed_rows:
        ways[SAELENS_MIXED], shares[SAELENS_MIXED] = lambda: ways_of.saelens(files, mixed=True), files.mixed_rows
    measure(files, "reading, page cache warm", ways, repeats, cold=False, shares=shares)


def run_cold(data: DataSet, repeats: int) -> None:
    """Print how fast each way reads all rows from the disk."""
    files = ways_of.write(data)
    if not drop(data.folder):
        print("\nreading, page cache dropped: not measured, as this system does not drop it when asked")
        return
    store = open_store(files.acts)
    ways: dict[str, Way] = {FLOOR: lambda: ways_of.into_one_buffer(files)}
    if hasattr(os, "O_DIRECT"):
        ways |= {DIRECT: lambda: ways_of.past_cache(files, 1), DIRECT_TWO: lambda: ways_of.past_cache(files, 2)}
    ways |= {
        OURS: lambda: ways_of.ours(
            store, epoch=0
        ),  # the first epoch of a store, or any of one larger than half the memory
        LATER: lambda: ways_of.ours(store, epoch=1),
        IN_ORDER: lambda: ways_of.ours_in_order(store),
        CHUNKED: lambda: ways_of.whole_chunks(files, files.chunked),
        MAPPED_SORTED: lambda: ways_of.mapped(files, in_batch_sorted=True, n_rows=FEW_ROWS),
    }
    shares = {MAPPED_SORTED: min(FEW_ROWS, data.n_rows)}
    measure(files, "reading, page cache dropped", ways, repeats, cold=True, shares=shares)
