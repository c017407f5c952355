"""How fast the activation store is read and written, beside its peers, on the same rows in one process.

    python benchmarks/store.py [--rows 1000000] [--width 768] [--repeats 5] [--folder DIR] [--large GB]
                               [reading] [cold] [writing]

`reading` reads from the page cache, `cold` from the disk. Needs five times the rows' bytes on the disk while it runs
(7.7 GB), and twice in memory beside what the page cache should hold; removes what it made. `--large 20` also reads a
store of 20 GB in a process that may have two, and needs as much more on the disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # some network disks have no locks, and all ways are alone here

import h5py
import numpy as np
import store_large
import store_reading
import store_writing
import torch
from measuring import machine
from store_data import CONTEXT, DataSet

PARTS = {"reading": store_reading.run, "cold": store_reading.run_cold, "writing": store_writing.run}


def main() -> None:
    """Make the rows once, run the parts asked for, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--rows", type=int, default=1_000_000, help=f"a multiple of {CONTEXT}")
    parser.add_argument("--width", type=int, default=768, help="float16 entries of a row, even")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; slow peers take part in fewer")
    parser.add_argument("--large", type=float, metavar="GB", help="read a store of this size in little memory as well")
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    if asked.rows < CONTEXT or asked.rows % CONTEXT or asked.width % 2 or asked.width < 2 or asked.repeats < 1:
        parser.error(f"--rows must be a multiple of {CONTEXT}, --width even, --repeats at least 1")
    with tempfile.TemporaryDirectory(prefix="store-benchmark-", dir=asked.folder) as folder:
        data = DataSet(Path(folder), asked.rows, asked.width)
        print(f"{data.n_rows:,} rows of {data.width} float16, {data.n_bytes / 1e9:.2f} GB, {asked.repeats} rounds")
        for part in asked.parts or PARTS:
            PARTS[part](data, asked.repeats)
        if asked.large:
            store_large.run(Path(folder), asked.large * 1e9, asked.width)
    print(f"\n{machine()}; torch {torch.__version__}, numpy {np.__version__}, h5py {h5py.__version__}")


if __name__ == "__main__":
    main()
