"""A small store that the fault injectors write and repair again and again: three shards, labels, every form."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  # with it, h5py reads compressed chunks
import numpy as np
from numcodecs import blosc

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, Store, StoreWriter, int8, open_store, schema
from workbench.cache.index import write_index
from workbench.cache.lock import WriterLock
from workbench.cache.manifest import Manifest
from workbench.cache.repair import finish_interrupted, repair_shard

N_ROWS, BATCH_ROWS, ROWS_PER_SHARD = 150, 40, 64
SPECS = {
    "resid": ActivationSpec(("d_model",), (64,), "float32"),
    "pattern": ActivationSpec(("head", "key"), (4, 8), "bfloat16"),
    "mlp": ActivationSpec(("d_mlp",), (24,), "int8"),  # its factors are chosen while rows are held back
    "sparse": ActivationSpec(("d_mlp",), (40,), "float16", compression="zstd"),
}
PARITY = LabelInfo("odd", "parity", "row", "binary")
schema.MAX_CHUNK_ROWS = 16
blosc.use_threads = False  # who forks must have no threads


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
    if spec.dtype != "int8"
}
VALUES["sparse"] = np.maximum(RNG.standard_normal((N_ROWS, 40), np.float32), 0).astype(np.float16)
VALUES["mlp"] = RNG.standard_normal((N_ROWS, 24), np.float32)
NUMBERS, SCALES = int8.quantize(VALUES["mlp"], int8.choose_factors(VALUES["mlp"][:16]), hook_point="mlp", first_row=0)
STORED = {**VALUES, "mlp": NUMBERS, "scales/mlp": SCALES}


def write(folder: Path) -> None:
    """Write the store, or what is wanting of it, in the order of a capture: plan, labels, rows."""
    fingerprints = {"fingerprints": {"model": "m"}}
    with StoreWriter(folder, SPECS, EXAMPLES, fingerprints, rows_per_shard=ROWS_PER_SHARD) as writer:
        store = open_store(folder)
        if "odd" not in store.labels:
            add_labels(store)
        while writer.next_row < N_ROWS:
            rows = slice(writer.next_row, min(writer.next_row + BATCH_ROWS, N_ROWS))
            writer.append({name: values[rows] for name, values in VALUES.items()})


def add_labels(store: Store) -> None:
    """Write labels whose values are known."""
    store.add_labels("parity", {"odd": (PARITY, np.arange(N_ROWS) % 2, None)})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks and the index; of the index, what plain h5py reads."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {".lock", "index.h5"})
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    with h5py.File(folder / "index.h5") as index:
        for name in [*(f"activations/{hook}" for hook in SPECS), "rows"]:
            found[f"index.h5:{name}"] = index[name][()].tobytes()
    return found


def check_what_is_left(folder: Path) -> int:
    """Hold what a reader sees between two writers against the truth; returns how many rows there are."""
    if not (folder / "manifest.json").exists():
        return 0
    store = open_store(folder)
    assert store.verify() == [], store.verify()
    for name, want in STORED.items() if store.n_rows else ():
        stored = store._reader.read_rows(name, np.arange(store.n_rows), verify=True)
        assert stored.dtype == want.dtype
        assert stored.tobytes() == want[: store.n_rows].tobytes()
    if "odd" in store.labels:
        assert store.label("odd")[0].tolist() == [row % 2 for row in range(store.n_rows)]
    return store.n_rows


def harm(folder: Path) -> None:
    """Damage every shard: a value of each form, a checksum, and one shard is cut off."""
    for name, datasets in {
        "000000.h5": ["activations/resid", "activations/mlp"],
        "000002.h5": ["checksums/resid"],
    }.items():
        path = folder / "shards" / name
        with h5py.File(path) as file:
            places = [file[dataset].id.get_offset() + file[dataset].nbytes // 2 for dataset in datasets]
            chunk = file["activations/sparse"].id.get_chunk_info(0)
        data = bytearray(path.read_bytes())
        for place in [*places, chunk.byte_offset + chunk.size // 2]:
            data[place] ^= 1
        path.write_bytes(data)
    path = folder / "shards/000001.h5"
    path.write_bytes(path.read_bytes()[:9000])
    (folder / "index.h5").write_bytes(b"gone")


def repair(folder: Path, *, other_bits: bool = False) -> None:
    """Repair it as `wb.repair_store` does, the values from here; with other bits, they are accepted."""
    lock = WriterLock(folder / ".lock")
    try:
        manifest = finish_interrupted(folder, Manifest.read(folder))
        damaged = {each.file for each in open_store(folder).verify()}

        def values(first: int, end: int) -> dict[str, np.ndarray]:
            rows = {name: array[first:end] for name, array in VALUES.items()}
            return {name: -array if other_bits else array for name, array in rows.items()}

        for entry in manifest.shards:
            if f"shards/{entry.name}" in damaged:
                done, manifest = repair_shard(folder, manifest, entry, EXAMPLES, values, accept_different=other_bits)
                assert done.repaired, done
        if "index.h5" in damaged:
            write_index(folder, manifest)
    finally:
        lock.release()
