"""What memory allows a shuffle: chunks read from the page cache, hashed, their rows put in place, without a loader.

    python benchmarks/store_limits.py [--rows 1000000] [--folder DIR]

Each step alone and together, on one thread and on two; GB/s, the best of four. Writes 1536 bytes a row, and removes it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import xxhash
from measuring import machine

from workbench.cache.memory import Memory
from workbench.cache.scatter import records, scatter

ROW_BYTES, CHUNK_ROWS, WINDOW_ROWS = 1536, 682, (256 << 20) // 1536
STEPS = ("read", "hash", "place", "read hash", "read place", "read hash place")


def rate(file: int, n_chunks: int, steps: str, n_threads: int) -> float:
    """Return GB/s of some steps over all chunks."""
    window = Memory(WINDOW_ROWS * ROW_BYTES).bytes(0, WINDOW_ROWS * ROW_BYTES)
    np.frombuffer(window, np.uint8)[:] = 1  # touched: a system gives memory when it is first written to
    target, places = records(window, ROW_BYTES, WINDOW_ROWS), np.random.default_rng(1).permutation(WINDOW_ROWS)
    turns, lock, n_bytes = iter(range(n_chunks)), threading.Lock(), CHUNK_ROWS * ROW_BYTES

    def work() -> None:
        chunk = Memory(n_bytes).bytes(0, n_bytes)
        np.frombuffer(chunk, np.uint8)[:] = 1
        rows = records(chunk, ROW_BYTES, CHUNK_ROWS)
        while True:
            with lock:
                turn = next(turns, None)
            if turn is None:
                return
            if "read" in steps:
                os.preadv(file, [chunk], turn * n_bytes)
            if "hash" in steps:
                xxhash.xxh3_64_intdigest(chunk)
            if "place" in steps:
                first = turn * CHUNK_ROWS % (WINDOW_ROWS - CHUNK_ROWS)
                scatter(target, places[first : first + CHUNK_ROWS], rows)

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return n_chunks * n_bytes / (time.perf_counter() - start) / 1e9


def main() -> None:
    """Write the rows, time each step, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    n_chunks = asked.rows // CHUNK_ROWS
    with tempfile.NamedTemporaryFile(dir=asked.folder) as file:
        random = np.random.default_rng(0)
        for _ in range(n_chunks):
            file.write(random.bytes(CHUNK_ROWS * ROW_BYTES))
        file.flush()
        for steps in STEPS:
            told = (f"{n}: {max(rate(file.fileno(), n_chunks, steps, n) for _ in range(4)):6.1f}" for n in (1, 2))
            print(f"  {steps:<16} GB/s by threads  {'   '.join(told)}")
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
