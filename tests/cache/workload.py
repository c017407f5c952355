"""A small store that is written again and again by the fault injectors: three shards, two hook points, labels."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, Store, StoreWriter, int8, open_store, schema

N_ROWS, BATCH_ROWS, ROWS_PER_SHARD = 150, 40, 64
SPECS = {
    "resid": ActivationSpec(("d_model",), (64,), "float32"),
    "pattern": ActivationSpec(("head", "key"), (4, 8), "bfloat16"),
    "mlp": ActivationSpec(("d_mlp",), (24,), "int8"),  # its factors are chosen while rows are held back
}
PARITY = LabelInfo("odd", "parity", "row", "binary")
schema.MAX_CHUNK_ROWS = 16


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
