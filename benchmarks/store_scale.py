"""What an activation store of ten terabytes and more costs where it is not the values themselves that count.

    python benchmarks/store_scale.py [--rows 13000000000] [--width 768] [--dtype float16] [--folder DIR] [PART ...]

One shard of a gigabyte is written, and listed and linked under as many names as the store would have shards: manifest,
index, the set-up of a pass and its memory are then those of the whole store, and only the bytes of the values are not.
Needs 1.1 GB on the disk, some 2 GB of memory and a file system with hard links; removes what it made. Linux.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
from measuring import machine

from workbench.cache import ActivationSpec, Examples, ExamplesBuilder, StoreWriter, open_store
from workbench.cache.index import write_index
from workbench.cache.manifest import Manifest
from workbench.cache.schema import choose_chunk_rows, choose_rows_per_shard

HOOK_POINT = "blocks.0.hook_resid_post"
CONTEXT = 1024
USUAL_OPEN_FILES = 1024
"""What a process may open on most systems, unless it asks for more."""


@dataclass(frozen=True)
class Scale:
    """A store of many shards, all of which are one file.

    Attributes
    ----------
    folder : Path
        Where it is made.
    n_rows, width, dtype
        Rows wanted (those of the last shard are made up to a whole one), entries of a row and their type.
    """

    folder: Path
    n_rows: int
    width: int
    dtype: str

    @property
    def spec(self) -> ActivationSpec:
        """What a row is."""
        return ActivationSpec(("d_model",), (self.width,), self.dtype)  # type: ignore[arg-type]

    @cached_property
    def cut(self) -> tuple[int, int, int]:
        """Rows of a chunk, rows of a shard, shards."""
        chunk_rows = choose_chunk_rows({HOOK_POINT: self.spec})
        shard_rows = choose_rows_per_shard({HOOK_POINT: self.spec}, self.n_rows, chunk_rows)
        return chunk_rows, shard_rows, -(-self.n_rows // shard_rows)

    def make(self) -> float:
        """Write the shard, link it, list it; returns the seconds that the first took."""
        chunk_rows, shard_rows, n_shards = self.cut
        rng = np.random.default_rng(0)
        values = rng.standard_normal((chunk_rows, self.width), np.float32)
        start = time.perf_counter()
        plan = plan_of(shard_rows)
        with StoreWriter(self.folder, {HOOK_POINT: self.spec}, plan, {}, rows_per_shard=shard_rows) as writer:
            while writer.next_row < writer.n_rows:
                writer.append({HOOK_POINT: values[: writer.n_rows - writer.next_row]})
        seconds = time.perf_counter() - start
        manifest = Manifest.read(self.folder)
        (entry,) = manifest.shards
        shards = tuple(replace(entry, name=f"{i:06d}.h5", first_row=i * shard_rows) for i in range(n_shards))
        for shard in shards[1:]:
            os.link(self.folder / "shards" / entry.name, self.folder / "shards" / shard.name)
        replace(manifest, n_rows=n_shards * shard_rows, shards=shards).write(self.folder)
        return seconds


def plan_of(n_positions: int) -> Examples:
    """Return a plan as a capture of text makes it: a document for each sequence, its first token special."""
    builder = ExamplesBuilder()
    rng = np.random.default_rng(0)
    for first in range(0, n_positions, CONTEXT):
        n = min(CONTEXT, n_positions - first)
        tokens, ends = rng.integers(0, 50_000, n, np.int32), np.arange(1, n + 1, dtype=np.int32)
        offsets = np.stack([ends - 1, ends], axis=1)
        document = builder.document(f"{first // CONTEXT:08d}.txt", {"held_out": False})
        builder.sequence(document, tokens, special=np.arange(n) == 0, offsets=offsets)
    return builder.build()


def memory(name: str) -> int:
    """Return what the system says of this process's memory, in bytes: VmRSS, or VmHWM, the most since `forget`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {name}")


@contextmanager
def measured(what: str, per: int = 0, unit: str = "") -> Any:
    """Print how long something took, and by how much memory had grown at its peak and afterwards."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
    before, start = memory("VmRSS"), time.perf_counter()
    yield
    seconds, peak, after = time.perf_counter() - start, memory("VmHWM") - before, memory("VmRSS") - before
    each = f" ({peak / per:.1f} and {after / per:.1f} bytes a {unit})" if per else ""
    print(f"  {what:<44} {seconds:8.3f} s  + {peak / 1e6:.0f} MB at the peak, {after / 1e6:.0f} MB after it{each}")


def apart(work: Callable[..., None], *given: Any) -> None:
    """Do something in a process of its own, so that memory is its own, or its end."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(work, *given).result()


def manifest(scale: Scale) -> None:
    """Replace and read the manifest, at several sizes: a capture replaces it at each of its commits."""
    whole, n_shards = Manifest.read(scale.folder), scale.cut[2]
    path = scale.folder / "manifest.json"
    counts = np.linspace(0, n_shards, 9).astype(int).tolist()
    seconds = []
    for n in counts:
        part = replace(whole, shards=whole.shards[:n])
        part.write(scale.folder)  # entries have their text from here on, as in a writer
        times = []
        for _ in range(3):
            start = time.perf_counter()
            part.write(scale.folder)
            times.append(time.perf_counter() - start)
        seconds.append(float(np.median(times)))
    n_bytes = path.stat().st_size
    print(f"manifest: {n_bytes / 1e6:.2f} MB, {n_bytes / n_shards:.0f} bytes a shard")
    print(f"  replaced at the first commit {1e3 * seconds[0]:.1f} ms, at the last {1e3 * seconds[-1]:.1f} ms")
    total_s, total = float(np.trapezoid(seconds, counts)), n_bytes * n_shards / 2
    print(f"  over all {n_shards:,} commits {total_s / 60:.1f} min, {total / 1e9:.1f} GB written")
    start = time.perf_counter()
    assert Manifest.read(scale.folder) == whole
    print(f"  read {1e3 * (time.perf_counter() - start):.0f} ms")


def index(scale: Scale) -> None:
    """Build the index, read it, and see what becomes of a reader that may not open all shards."""
    whole = Manifest.read(scale.folder)
    start = time.perf_counter()
    write_index(scale.folder, whole)
    seconds = time.perf_counter() - start
    path = scale.folder / "index.h5"
    print(f"index: {path.stat().st_size / 1e6:.2f} MB, built in {seconds:.2f} s")
    start = time.perf_counter()
    with h5py.File(path) as file:
        found = file[f"activations/{HOOK_POINT}"]
        opened, last = time.perf_counter(), whole.shards[-1].first_row
        values = found[last : last + 10]
        print(f"  opened in {1e3 * (opened - start):.1f} ms, 10 rows in {1e3 * (time.perf_counter() - opened):.1f} ms")
    assert values.tobytes() == open_store(scale.folder).read_stored(HOOK_POINT, slice(0, 10))[HOOK_POINT].tobytes()
    small = scale.folder.parent / "small"
    with StoreWriter(small, {HOOK_POINT: scale.spec}, plan_of(1), {}, rows_per_shard=1) as writer:
        writer.append({HOOK_POINT: np.zeros((1, scale.width), np.float32)})
    part = Manifest.read(small)
    names = [f"{i:06d}.h5" for i in range(2 * USUAL_OPEN_FILES)]
    for name in names[1:]:
        shutil.copyfile(small / "shards" / names[0], small / "shards" / name)
    shards = tuple(replace(part.shards[0], name=name, first_row=i) for i, name in enumerate(names))
    write_index(small, replace(part, n_rows=len(names), shards=shards))
    for at_once in (len(names), USUAL_OPEN_FILES // 2):
        apart(read_every_shard, small / "index.h5", len(names), at_once)


def read_every_shard(index: Path, n_shards: int, at_once: int) -> None:
    """Read a row of each shard through an index that is opened anew every so many, with as many files as usual."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_OPEN_FILES, USUAL_OPEN_FILES))
    print(
        f"  {USUAL_OPEN_FILES} open files allowed, the index opened anew every {at_once} of {n_shards} shards:", end=" "
    )
    for first in range(0, n_shards, at_once):
        with h5py.File(index) as file:
            rows = file["rows"]
            for row in range(first, first + at_once):
                if rows[row]["document"] == -1:
                    print(f"shard {row} reads as missing, without an error", flush=True)
                    return
    print("all are read", flush=True)


def loading(scale: Scale) -> None:
    """Set up a pass over all rows, and take batches from it."""
    apart(_loading, scale)


def _loading(scale: Scale) -> None:
    import torch

    chunk_rows, shard_rows, n_shards = scale.cut
    n_chunks = n_shards * -(-shard_rows // chunk_rows)
    torch.zeros(1)
    print(f"a shuffled pass: {n_chunks:,} chunks")
    with measured("open_store"):
        store = open_store(scale.folder)
    for turn in ("first", "second"):
        with measured(f"set up, {turn} pass", n_chunks, "chunk"):
            batches = store.shuffled(HOOK_POINT, batch_rows=4096, seed=0)
        with measured("first batch"):
            next(batches)
        with measured("500 batches of 4096 rows"):
            for _ in range(500):
                next(batches)
        print(f"  files open: {len(os.listdir('/proc/self/fd'))}")  # noqa: PTH208 - names alone
        batches.close()
        del batches


def verify(scale: Scale) -> None:
    """Verify eight shards that are in the page cache: what the processor allows."""
    whole = Manifest.read(scale.folder)
    shards = whole.shards[: min(8, len(whole.shards))]
    part = replace(whole, n_rows=shards[-1].end_row, shards=shards)
    part.write(scale.folder)
    write_index(scale.folder, part)
    store = open_store(scale.folder)
    start = time.perf_counter()
    assert store.verify() == []
    rate = store.n_bytes / (time.perf_counter() - start)
    whole.write(scale.folder)
    write_index(scale.folder, whole)
    total = sum(shard.n_bytes for shard in whole.shards)
    print(f"verify: {rate / 1e9:.2f} GB/s from the page cache, {total / rate / 3600:.1f} h for {total / 1e12:.2f} TB")


class Counting:
    """A file-like object that counts how often and how much is read."""

    def __init__(self, file: Any) -> None:
        self._file, self.n, self.n_bytes = file, 0, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, n: int = -1) -> bytes:
        """Read, and count; h5py asks for both kinds."""
        data = bytes(self._file.read(n))
        self.n, self.n_bytes = self.n + 1, self.n_bytes + len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Read, and count."""
        n = int(self._file.readinto(buffer))
        self.n, self.n_bytes = self.n + 1, self.n_bytes + n
        return n


def objects(scale: Scale) -> None:
    """Read a shard through fsspec as an object store gives it; the index cannot be read so."""
    chunk_rows = scale.cut[0]
    want = open_store(scale.folder).read_stored(HOOK_POINT, slice(0, chunk_rows))[HOOK_POINT]
    files = fsspec.filesystem("file")
    shard = str(scale.folder / "shards" / "000000.h5")
    with files.open(shard, "rb", cache_type="none") as opened:
        counting = Counting(opened)
        with h5py.File(counting, "r") as file:
            found = file[f"activations/{HOOK_POINT}"]
            print(f"objects: a shard is opened in {counting.n} reads of {counting.n_bytes:,} bytes together")
            before = counting.n
            assert found[:chunk_rows].tobytes() == want.tobytes()
            print(f"  a chunk in {counting.n - before} more")
            start = found.id.get_offset()
            n_before = counting.n_bytes
            for name in (f"checksums/{HOOK_POINT}", "checksums/rows", "special/counts"):
                assert len(file[name][()])
            print(f"  checksums and counts of special tokens: {counting.n_bytes - n_before:,} bytes")
    assert files.cat_file(shard, start, start + want.nbytes) == want.tobytes()
    try:
        apart(_index_as_object, scale)
    except BrokenProcessPool:
        print("  the index through a file-like object: HDF5 ends the process")


def _index_as_object(scale: Scale) -> None:
    with (scale.folder / "index.h5").open("rb") as opened, h5py.File(opened, "r") as file:
        missing = file["rows"][0]["document"] == -1
        print(f"  the index through a file-like object: {'every shard reads as missing' if missing else 'is read'}")


def plan(scale: Scale, n_positions: int = 40 << 20) -> None:
    """Make, write and read the plan of a part of the rows."""
    print(f"the plan: {n_positions:,} positions in sequences of {CONTEXT}")
    apart(_make_plan, scale.folder / "plan", n_positions)
    apart(_read_plan, scale.folder / "plan", n_positions)


def _make_plan(folder: Path, n_positions: int) -> None:
    with measured("made", n_positions, "position"):
        found = plan_of(n_positions)
    with measured("rows numbered", n_positions, "position"):
        found.first_rows  # noqa: B018 - made once and kept
    with measured("written", n_positions, "position"):
        found.write(folder)
    (folder / "digest").write_text(found.digest(), encoding="ascii")
    print(f"  examples.h5 has {(folder / 'examples.h5').stat().st_size / n_positions:.2f} bytes a position")


def _read_plan(folder: Path, n_positions: int) -> None:
    digest = (folder / "digest").read_text(encoding="ascii")
    with measured("read", n_positions, "position"):
        assert Examples.read(folder, digest).n_sequences == -(-n_positions // CONTEXT)


PARTS = {"manifest": manifest, "index": index, "loading": loading, "verify": verify, "objects": objects, "plan": plan}


def main() -> None:
    """Make the store once, do the parts asked for, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--rows", type=int, default=13_000_000_000)
    parser.add_argument("--width", type=int, default=768, help="entries of a row")
    parser.add_argument("--dtype", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    if asked.rows < 1 or asked.width < 1:
        parser.error("--rows and --width must be at least 1")
    with tempfile.TemporaryDirectory(prefix="store-scale-", dir=asked.folder) as folder:
        scale = Scale(Path(folder) / "acts", asked.rows, asked.width, asked.dtype)
        chunk_rows, shard_rows, n_shards = scale.cut
        seconds = scale.make()
        write_index(scale.folder, Manifest.read(scale.folder))
        n_bytes = Manifest.read(scale.folder).shards[0].n_bytes
        print(f"{asked.rows:,} rows of {asked.width} {asked.dtype}: {asked.rows * scale.spec.row_bytes / 1e12:.2f} TB")
        print(f"{n_shards:,} shards of {shard_rows:,} rows and {n_bytes:,} bytes, chunks of {chunk_rows} rows")
        print(f"one was made, written and synced in {seconds:.1f} s")
        for part in asked.parts or PARTS:
            PARTS[part](scale)
    print(f"\n{machine()}; numpy {np.__version__}, h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}")


if __name__ == "__main__":
    main()
