"""How fast a whole store is checked, beside reading its bytes and doing nothing with them.

    python benchmarks/store_verify.py [--rows 1000000] [--width 768] [--repeats 5] [--folder DIR]

`store verify` reads each byte once, and holds it against the digest of its file and the checksum of its chunk. Beside
it: plain `readinto` of every shard into one buffer, on one thread and on as many as there are cores; a digest of each
file and nothing else; and each checksum by a reading of its own, as two passes would do it. One store
is plain, one compressed (`zstd`: nothing is opened, so it costs what its bytes cost), one a single shard, which one
thread reads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np
import xxhash
from measuring import in_turns, machine, print_rates

from workbench.cache import ActivationSpec, ExamplesBuilder, Store, StoreWriter, open_store
from workbench.cache.files import file_digest

READ, READ_ALL, DIGEST, TWO = "readinto, one thread", "readinto, all cores", "digest of each file", "two passes"
VERIFY = "store verify"
BLOCK_BYTES = 6 << 20
SEQUENCE_ROWS = 1000


def make(folder: Path, rows: np.ndarray, rows_per_shard: int | None, compression: str | None) -> Store:
    """Write the rows as a store."""
    plan = ExamplesBuilder()
    document = plan.document("d")
    for first in range(0, len(rows), SEQUENCE_ROWS):
        n = min(SEQUENCE_ROWS, len(rows) - first)
        plan.sequence(document, np.arange(n), special=np.arange(n) == 0, window=first // SEQUENCE_ROWS)
    spec = ActivationSpec(("d_model",), rows.shape[1:], "float16", compression=compression)  # type: ignore[arg-type]
    with StoreWriter(folder, {"resid": spec}, plan.build(), {}, rows_per_shard=rows_per_shard) as writer:
        for first in range(0, len(rows), 4096):
            writer.append({"resid": rows[first : first + 4096]})
    return open_store(folder)


def read(path: Path) -> int:
    """Read a file into one buffer, as large as that of `store.py`; returns its size."""
    buffer, size = bytearray(BLOCK_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            size += n
    return size


def ways(store: Store) -> dict[str, Callable[[], object]]:
    """Return what is timed."""
    paths = sorted(store.folder.glob("shards/*.h5"))

    def on_all_cores(work: Callable[[Path], object]) -> list[object]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(work, paths))

    def two_passes() -> None:
        on_all_cores(file_digest)
        for _ in store.sequential("resid", batch_rows=4096):
            pass

    return {
        READ: lambda: [read(path) for path in paths],
        READ_ALL: lambda: on_all_cores(read),
        DIGEST: lambda: on_all_cores(file_digest),
        TWO: two_passes,
        VERIFY: store.verify,
    }


def check_finds_damage(store: Store) -> None:
    """A check that finds nothing in a damaged store would be quick too."""
    if store.verify():
        raise SystemExit("a sound store was said to be damaged")
    entry = store.manifest["shards"][-1]
    path = store.folder / "shards" / entry["name"]
    if xxhash.xxh3_128_hexdigest(path.read_bytes()) != entry["digest"]:
        raise SystemExit("the digest in the manifest is not that of the file")
    flip_a_bit(path)
    if [damage.file for damage in store.verify()] != [f"shards/{entry['name']}"]:
        raise SystemExit("a changed bit was not found")
    flip_a_bit(path)
    if store.verify():
        raise SystemExit("a store that is sound again was said to be damaged")


def flip_a_bit(path: Path) -> None:
    """Change a bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


CHECK = """
import resource, sys
from workbench.cache import open_store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not open_store(sys.argv[1]).verify()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory_of_a_check(folder: Path) -> int:
    """Return by how many bytes a process of its own grows."""
    done = subprocess.run([sys.executable, "-c", CHECK, str(folder)], check=True, capture_output=True, text=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Make the stores, check that damage is found, time all ways, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768, help="float16 entries of a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    asked = parser.parse_args()
    if min(asked.rows, asked.width, asked.repeats) < 1:
        parser.error("--rows, --width and --repeats must be at least 1")
    rows = np.random.default_rng(0).standard_normal((asked.rows, asked.width), np.float32).astype(np.float16)
    whole = -(-asked.rows // 4096) * 4096
    with tempfile.TemporaryDirectory(prefix="store-verify-", dir=asked.folder) as folder:
        for title, rows_per_shard, compression in (
            ("plain", None, None),
            ("zstd", None, "zstd"),
            ("one shard", whole, None),
        ):
            store = make(Path(folder) / title, rows, rows_per_shard, compression)
            check_finds_damage(store)
            grown = memory_of_a_check(store.folder)
            seconds = in_turns(ways(store), asked.repeats)
            n_shards = len(store.manifest["shards"])
            print_rates(
                f"{title}: {store.n_bytes / 1e9:.2f} GB in {n_shards} shards, page cache warm; a changed bit was found",
                seconds,
                store.n_bytes,
                floor=READ,
                peers={VERIFY: TWO},
            )
            print(f"  a process that checks it grows by {grown / 1e6:.0f} MB")
    print(f"\n{machine()}; numpy {np.__version__}, h5py {h5py.__version__}, xxhash {xxhash.VERSION}")


if __name__ == "__main__":
    main()
