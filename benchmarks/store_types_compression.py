"""Room taken by each type and compression, and rates of writing and reading, with the page cache warm."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from measuring import in_turns
from numcodecs import blosc
from numpy.typing import NDArray
from store_types_data import Form, Kind, captured, write_as

from workbench.cache import Store, dequantize, narrow, quantize
from workbench.cache.compression import CODECS
from workbench.cache.int8 import choose_factors
from workbench.cache.schema import Dtype

DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16", "int8")
COMPRESSIONS = (None, *CODECS)
SHUFFLES = {"bytes": blosc.SHUFFLE, "bits": blosc.BITSHUFFLE}
ALTERNATIVES = [(name, level) for name, level in (("lz4", 1), ("lz4", 5), ("zstd", 1), ("zstd", 3))]
READ_BATCH, READ_BYTES = 4096, 1 << 20
CHUNKS_LOOKED_AT = 8


def run(kind: Kind, folder: Path, n_rows: int, *, repeats: int) -> None:
    """Print, for one kind of activation, what a chunk gives in each codec, and then whole stores."""
    store = captured(kind, folder, n_rows)
    values = store.read(kind.hook_point)
    print(f"\n{kind}: {len(values):,} rows of {values.shape[1:]}, {values.nbytes / 1e6:.0f} MB as float32")
    given = {dtype: as_appended(values, dtype) for dtype in DTYPES if dtype != "int8" or np.isfinite(values).all()}
    chunks_table(given)
    print("  whole stores; million values a second; h5py with the same filter; plain: readinto, tofile and fsync")
    titles = ("bytes/value", "size", "written", "h5py", "plain", "read", "h5py", "plain")
    print(f"  {'stored as':<16}" + "".join(f"{title:>12}" for title in titles))
    for dtype, rows in given.items():
        Table(store, kind.hook_point, dtype, rows, folder / "forms").show(repeats)


def as_appended(values: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    """Return rows as a capture appends them: of the stored type, but float32 for int8."""
    if dtype == "bfloat16":
        return narrow(values, "bfloat16")
    return values.astype(np.float16) if dtype == "float16" else values


class Table:
    """One type: whole stores written and read, each compression beside h5py's filter.

    Parameters
    ----------
    store : Store
        The capture.
    hook : str
        Its hook point.
    dtype : str
        The type looked at.
    rows : array [rows, ...]
        What the writers are given.
    folder : Path
        Scratch space.
    """

    def __init__(self, store: Store, hook: str, dtype: Dtype, rows: NDArray[Any], folder: Path) -> None:
        self.source, self.hook, self.dtype, self.rows, self.folder = store, hook, dtype, rows, folder
        self.stores: dict[str, Store] = {}
        self.room = memoryview(bytearray(rows.size if dtype == "int8" else rows.nbytes))
        self.plain = rows.reshape(-1).view(np.int8)[: rows.size] if dtype == "int8" else rows

    def show(self, repeats: int) -> None:
        """Write, compare every bit, read, print."""
        self.folder.mkdir(exist_ok=True)
        ways = {self.name(c): c for c in COMPRESSIONS}
        writers = {name: lambda name=name: self.write(name, ways[name]) for name in ways}
        readers = {name: lambda name=name: self.read(name) for name in ways}
        if self.dtype != "int8":  # h5py has no such form
            writers |= {f"h5py {name}": lambda name=name: self.write_h5py(name, ways[name]) for name in ways}
            readers |= {f"h5py {name}": lambda name=name: self.read_h5py(name) for name in ways}
        writers["plain"], readers["plain"] = self.write_plain, self.read_plain
        written = in_turns(writers, repeats, before=self.remove)
        self.compare(ways)
        for reader in readers.values():
            reader()  # warm
        read = in_turns(readers, repeats)
        base = self.stores[self.name(None)].n_bytes
        for name in ways:
            n_bytes = self.stores[name].n_bytes
            line = f"  {name:<16}{n_bytes / self.rows.size:12.2f}{n_bytes / base:12.2f}"
            for seconds in (written, read):
                for way in (name, f"h5py {name}", "plain"):
                    line += f"{self.rows.size / seconds[way] / 1e6:12.0f}" if way in seconds else f"{'':>12}"
            print(line, flush=True)
        shutil.rmtree(self.folder)

    def name(self, compression: str | None) -> str:
        """Return what a line is called."""
        return f"{self.dtype} {compression or ''}".strip()

    def remove(self, name: str) -> None:
        """Make room for a way that writes."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / f"{name}.h5").unlink(missing_ok=True)
        (self.folder / name).with_suffix(".raw").unlink(missing_ok=True)

    def compare(self, ways: dict[str, str | None]) -> None:
        """Hold every bit against what was given, and plain h5py's view of our stores too."""
        first = self.stores[self.name(None)]
        for name in ways:
            found = self.stores[name].read_stored(self.hook)
            if self.dtype == "int8":
                factors = choose_factors(self.rows[: self.stores[name].manifest["chunk_rows"]])
                want = dequantize(*quantize(self.rows, factors), factors)
                assert self.stores[name].read(self.hook).tobytes() == want.tobytes(), name
                assert all(found[c].tobytes() == v.tobytes() for c, v in first.read_stored(self.hook).items()), name
            else:
                assert found[self.hook].tobytes() == self.rows.tobytes(), name
                with h5py.File(self.folder / f"h5py {name}.h5") as file:
                    assert file["x"][:].tobytes() == self.rows.tobytes(), f"h5py {name}"
            with h5py.File(self.folder / name / "index.h5") as file:
                assert file[f"activations/{self.hook}"][:].tobytes() == found[self.hook].tobytes(), f"index of {name}"

    def write(self, name: str, compression: Any) -> None:
        """Write a store."""
        form = Form(self.dtype, compression)
        self.stores[name] = write_as(self.source, self.folder / name, form, {self.hook: self.rows})

    def read(self, name: str) -> None:
        """Take a shuffled epoch of a store, every chunk held against its checksum."""
        for _ in self.stores[name].shuffled(self.hook, batch_rows=READ_BATCH, seed=0, special=True):
            pass

    def write_h5py(self, name: str, compression: str | None) -> None:
        """Write the same rows by h5py, through hdf5plugin's filter, in chunks as we have them."""
        codec = CODECS.get(compression or "")
        options = {} if codec is None else hdf5plugin.Blosc(codec.name, codec.level, codec.shuffle)
        chunks = (self.chunk_rows, *self.rows.shape[1:])
        path = self.folder / f"h5py {name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=self.rows, chunks=chunks, **options)
        sync(path)

    def read_h5py(self, name: str) -> None:
        """Read those chunks in a shuffled order."""
        with h5py.File(self.folder / f"h5py {name}.h5") as file:
            starts = np.random.default_rng(0).permutation(np.arange(0, len(self.rows), self.chunk_rows))
            for start in starts.tolist():
                file["x"][start : start + self.chunk_rows]

    def write_plain(self) -> None:
        """Write the bytes and nothing else; of int8, one byte for each value."""
        path = self.folder / "plain.raw"
        self.plain.tofile(path)
        sync(path)

    def read_plain(self) -> None:
        """Read those bytes into memory that is there already, to a place of their own each."""
        with (self.folder / "plain.raw").open("rb", buffering=0) as file:
            done = 0
            while n := file.readinto(self.room[done : done + READ_BYTES]):
                done += n

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk of our stores of this type."""
        n: int = self.stores[self.name(None)].manifest["chunk_rows"]
        return n


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def chunks_table(given: dict[Dtype, NDArray[Any]]) -> None:
    """Print what some chunks of a megabyte give in each codec on one thread: the choice behind `CODECS`."""
    print("  chunks of 1 MB, one thread: size, then GB/s made and opened; * is what stores have")
    print(f"  {'':<16}" + "".join(f"{f'{c} {level}, {shuffle}':>22}" for c, level, shuffle in alternatives()))
    blosc.use_threads, threads = False, blosc.use_threads
    for dtype, rows in given.items():
        stored = quantize(rows, choose_factors(rows[:1024]))[0] if dtype == "int8" else rows
        chunk_rows = max(1, (1 << 20) // stored[0].nbytes)
        starts = np.linspace(0, max(0, len(stored) - chunk_rows), CHUNKS_LOOKED_AT).astype(int)
        chunks = [np.ascontiguousarray(stored[start : start + chunk_rows]) for start in starts]
        line = f"  {dtype:<16}"
        for name, level, shuffle in alternatives():
            ours = (CODECS[name].level, CODECS[name].shuffle) == (level, SHUFFLES[shuffle])
            line += f"{chunk_figures(chunks, name, level, SHUFFLES[shuffle]) + ' *' * ours:>22}"
        print(line, flush=True)
    blosc.use_threads = threads


def alternatives() -> list[tuple[str, int, str]]:
    """Return codecs that stores might have."""
    return [(name, level, shuffle) for name, level in ALTERNATIVES for shuffle in SHUFFLES]


def chunk_figures(chunks: list[NDArray[Any]], name: str, level: int, shuffle: int) -> str:
    """Return size, and rates of compressing and opening, best of three."""
    made, opened, n_bytes = [], [], sum(chunk.nbytes for chunk in chunks)
    for _ in range(3):
        start = time.perf_counter()
        payloads = [blosc.compress(chunk, name.encode(), level, shuffle) for chunk in chunks]
        made.append(time.perf_counter() - start)
        outs = [np.empty_like(chunk) for chunk in chunks]
        for out in outs:
            out.fill(0)  # memory that is there
        start = time.perf_counter()
        for payload, out in zip(payloads, outs, strict=True):
            blosc.decompress(payload, out)
        opened.append(time.perf_counter() - start)
    for chunk, out in zip(chunks, outs, strict=True):
        assert chunk.tobytes() == out.tobytes(), name
    size = sum(len(payload) for payload in payloads) / n_bytes
    return f"{size:.2f} {n_bytes / min(made) / 1e9:.2f} {n_bytes / min(opened) / 1e9:.1f}"
