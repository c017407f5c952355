"""Writing: our writer beside plain files, h5py and SAELens's cache, from batches as a capture gives them.

    python benchmarks/store_writing.py [--rows 1000000] [--width 768] [--repeats 7] [--folder DIR]

Every way ends when its bytes are on the disk. Before each turn, outside the clock, the files of the last one are
removed, the disk is waited for, and as much memory as the files will take is touched: a virtual machine is given its
memory when it first writes to it, at a tenth of the speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr
from functools import cache, partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
from measuring import Others, in_turns, machine, print_rates
from numpy.typing import NDArray
from store_data import BLOCK_ROWS, CONTEXT, HOOK_POINT, DataSet

from workbench.cache import Examples, StoreWriter, open_store

CHUNK_ROWS = 512
FLOOR, OURS, SAELENS, H5PY = (
    "tofile + fsync",
    "ours, checksums on",
    "SAELens's writer",
    f"h5py, chunks of {CHUNK_ROWS} rows",
)
Batches = Iterator[dict[str, NDArray[np.float16]]]


def hook_points(n: int) -> list[str]:
    """Return names of `n` hook points."""
    return [HOOK_POINT.replace("0", str(layer)) for layer in range(n)]


def part(data: DataSet, n_hook_points: int) -> DataSet:
    """Return the rows that each of several hook points has: an equal share of all, in whole sequences."""
    return DataSet(data.folder, data.n_rows // n_hook_points // CONTEXT * CONTEXT, data.width)


@cache
def plan(data: DataSet) -> Examples:
    """Return where the rows come from: made before the clock starts, as a capture does."""
    return data.plan()


def batches(data: DataSet, n_hook_points: int) -> Batches:
    """Go through the rows 8192 at a time; each hook point has its own."""
    n_rows = part(data, n_hook_points).n_rows
    for first in range(0, n_rows, BLOCK_ROWS):
        end = min(first + BLOCK_ROWS, n_rows)
        yield {
            name: data.values[i * n_rows + first : i * n_rows + end]
            for i, name in enumerate(hook_points(n_hook_points))
        }


def sync(path: Path) -> None:
    """Wait until a file, or all files below a folder, are on the disk."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def plain(folder: Path, data: DataSet, n: int) -> None:
    """One file for each hook point, one fsync each: nothing but the bytes."""
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb", buffering=0)) for name in hook_points(n)}
        for batch in batches(data, n):
            for name, rows in batch.items():
                rows.tofile(files[name])
        for file in files.values():
            os.fsync(file.fileno())


def save(folder: Path, data: DataSet, n: int) -> None:
    """`numpy.save` of all rows at once: needs them all in memory."""
    n_rows = part(data, n).n_rows
    for i, name in enumerate(hook_points(n)):
        np.save(folder / f"{name}.npy", data.values[i * n_rows : (i + 1) * n_rows])
    sync(folder)


def ours(folder: Path, data: DataSet, n: int) -> None:
    """Our writer: checksums, atomic shards, origins of rows."""
    specs = dict.fromkeys(hook_points(n), data.spec)
    with StoreWriter(folder / "acts", specs, plan(part(data, n)), {}) as writer:
        for batch in batches(data, n):
            writer.append(batch)


def plain_h5py(folder: Path, data: DataSet, n: int, checksums: bool = False) -> None:
    """A dataset for each hook point, in chunks of 512 rows; a crash loses the file."""
    shape = part(data, n).n_rows, data.width
    with h5py.File(folder / "acts.h5", "w") as file:
        options = {"chunks": (CHUNK_ROWS, data.width), "fletcher32": checksums}
        made = {name: file.create_dataset(name, shape, np.float16, **options) for name in hook_points(n)}
        for number, batch in enumerate(batches(data, n)):
            for name, rows in batch.items():
                made[name][number * BLOCK_ROWS : number * BLOCK_ROWS + len(rows)] = rows
    sync(folder)


def saelens(folder: Path, data: DataSet, n: int) -> None:
    """What SAELens's runner does with activations: a dataset of Arrow files; one hook point alone, no fsync."""
    import datasets
    import torch
    from sae_lens.cache_activations_runner import CacheActivationsRunner

    assert n == 1
    datasets.disable_progress_bars()
    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)  # without a model
    runner.context_size = CONTEXT
    runner.features = datasets.Features({HOOK_POINT: datasets.Array2D((CONTEXT, data.width), "float16")})
    shards = folder / "acts" / ".tmp_shards"
    shards.mkdir(parents=True)
    n_sequences = BLOCK_ROWS * 8 // CONTEXT
    for i, first in enumerate(range(0, data.n_rows, n_sequences * CONTEXT)):
        rows = torch.from_numpy(data.values[first : first + n_sequences * CONTEXT])
        runner.cfg = SimpleNamespace(hook_name=HOOK_POINT, n_seq_in_buffer=len(rows) // CONTEXT, d_in=data.width)
        with redirect_stderr(StringIO()):
            runner._create_shard((rows, None)).save_to_disk(str(shards / f"shard_{i:05d}"), num_shards=1)
    runner._consolidate_shards(shards, folder / "acts", copy_files=False)


Way = Callable[[Path, DataSet, int], None]
WAYS: dict[str, Way] = {
    FLOOR: plain,
    "np.save + fsync": save,
    OURS: ours,
    H5PY: plain_h5py,
    "h5py, the same with fletcher32": partial(plain_h5py, checksums=True),
    SAELENS: saelens,
}
SLOW = {SAELENS: 2, "h5py, the same with fletcher32": 3}


def check_equal(data: DataSet, folder: Path) -> None:
    """Every way writes the same rows: a few, read back by its own reader."""
    few = DataSet(folder, 40 * CONTEXT, data.width)
    for n in (1, 3):
        written = {name: np.concatenate([batch[name] for batch in batches(few, n)]) for name in hook_points(n)}
        for way, write in WAYS.items():
            if n > 1 and way == SAELENS:
                continue
            fresh(folder)
            write(folder, few, n)
            for name, rows in written.items():
                if read_back(way, folder, name).reshape(rows.shape).tobytes() != rows.tobytes():
                    raise SystemExit(f"{way} did not write the rows of {name}")


def read_back(way: str, folder: Path, name: str) -> NDArray[np.float16]:
    """Return what a way wrote of a hook point."""
    if way == OURS:
        store = open_store(folder / "acts")
        assert store.finished
        assert store.verify() == []
        return store.read(name)
    if way == FLOOR:
        return np.fromfile(folder / name, np.float16)
    if way == SAELENS:
        import datasets

        return np.array(datasets.load_from_disk(str(folder / "acts")).with_format("numpy")[name][:], np.float16)
    if way.startswith("h5py"):
        with h5py.File(folder / "acts.h5") as file:
            return file[name][()]
    return np.load(folder / f"{name}.npy")


def fresh(folder: Path) -> None:
    """Empty the folder, and wait for a quiet disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()


def run(data: DataSet, repeats: int) -> None:
    """Print how fast each way writes all rows, as one hook point and as three."""
    folder = data.folder / "writing"
    check_equal(data, folder)
    print("all ways wrote the same rows")
    data.values  # noqa: B018 - made now

    def before(_: str) -> None:
        fresh(folder)
        np.ones(2 * data.n_bytes, np.uint8)

    for n in (1, 3):
        plan(part(data, n))
        timed = {name: partial(way, folder, data, n) for name, way in WAYS.items() if n == 1 or name != SAELENS}
        fewer = {name: turns for name, turns in SLOW.items() if name in timed}
        others = Others()
        seconds = in_turns(timed, repeats, fewer=fewer, before=before)
        what = "one hook point" if n == 1 else f"{n} hook points at once, a third of the rows each"
        print_rates(f"writing, {what}", seconds, n * part(data, n).n_bytes, floor=FLOOR, peers={OURS: H5PY})
        print(f"  other processes took {others.share():.0%} of the cores")
        if SAELENS in seconds:
            print(f"  {OURS} is {seconds[SAELENS] / seconds[OURS]:.2f} times as fast as {SAELENS}")
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Write alone, without the reading half of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768, help="float16 entries of a row, even")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; slow peers take part in fewer")
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-benchmark-", dir=asked.folder) as folder:
        data = DataSet(Path(folder), asked.rows // CONTEXT * CONTEXT, asked.width)
        print(f"{data.n_rows:,} rows of {data.width} float16, {data.n_bytes / 1e9:.2f} GB, {asked.repeats} rounds")
        run(data, asked.repeats)
    print(f"\n{machine()}; numpy {np.__version__}, h5py {h5py.__version__}")


if __name__ == "__main__":
    main()
