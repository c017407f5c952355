"""A store larger than the memory of who reads it: an epoch in a process that may have two gigabytes. Linux only.

`benchmarks/store.py --large 20` writes it and starts this file as that process.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from store_data import BLOCK_ROWS, CONTEXT, HOOK_POINT, DataSet

from workbench.cache import StoreWriter, open_store

LIMIT_BYTES = 2 << 30
"""Of private memory, code and libraries not counted; the page cache is the system's."""


def write(data: DataSet, folder: Path) -> None:
    """Write a store without having its rows in memory: the same few thousand, but for their numbers."""
    few = DataSet(folder, BLOCK_ROWS, data.width).values.copy()
    with StoreWriter(folder, {HOOK_POINT: data.spec}, data.plan(), {}) as writer:
        for first in range(0, data.n_rows, BLOCK_ROWS):
            rows = few[: data.n_rows - first]
            rows.view(np.uint32)[:, 0] = np.arange(first, first + len(rows))
            writer.append({HOOK_POINT: rows})


def read(folder: Path) -> dict[str, Any]:
    """Go through an epoch in a process with little memory, and see whether every row came once.

    Returns
    -------
    dict
        `rows`, `once` (whether each came once), `seconds`, `peak_bytes` of the process, `refused` (whether reading all
        rows at once was more than it may have: a limit that does not hold proves nothing).
    """
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    store = open_store(folder)
    seen, once = np.zeros(store.n_rows, np.bool_), True
    start = time.perf_counter()
    for batch in store.shuffled(HOOK_POINT, batch_rows=4096, seed=0, special=True):
        numbers = np.ascontiguousarray(batch[:, :2].numpy()).view(np.uint32)[:, 0]
        once &= not seen[numbers].any()
        seen[numbers] = True
    seconds = time.perf_counter() - start
    peak_bytes = peak()
    try:
        store.read(HOOK_POINT)
        refused = False
    except MemoryError:
        refused = True
    found = {"rows": int(seen.sum()), "once": bool(once), "seconds": seconds}
    return {**found, "peak_bytes": peak_bytes, "refused": refused}


def peak() -> int:
    """Return the most memory that this process had, in bytes; `ru_maxrss` would have what its parent had in it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell how much memory a process had")


def run(folder: Path, n_bytes: float, width: int) -> None:
    """Write a store of about `n_bytes`, read it in a process of its own, and print what that took."""
    data = DataSet(folder, max(1, round(n_bytes / (2 * width * CONTEXT))) * CONTEXT, width)
    acts = folder / "large"
    write(data, acts)
    command = [sys.executable, __file__, str(acts)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    shutil.rmtree(acts)
    if found["rows"] != data.n_rows or not found["once"]:
        raise SystemExit(f"{found['rows']} of {data.n_rows} rows came, or some of them twice")
    if not found["refused"] and data.n_bytes > LIMIT_BYTES:
        raise SystemExit("all rows were read into less memory than they have: the limit does not hold here")
    print(
        f"\na store of {data.n_bytes / 1e9:.1f} GB in a process that may have {LIMIT_BYTES / 1e9:.1f} GB: every row "
        f"once, checked, at {data.n_bytes / found['seconds'] / 1e9:.2f} GB/s; the process had "
        f"{found['peak_bytes'] / 1e9:.2f} GB at most"
    )


if __name__ == "__main__":
    json.dump(read(Path(sys.argv[1])), sys.stdout)
