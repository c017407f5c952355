"""How fast stores are exported to and imported from other programs' formats, beside plain copies of the same bytes.

    python benchmarks/store_formats.py [--rows 200000] [--width 768] [--repeats 3] [--folder DIR]

Peers are the libraries' own ways, with all rows in memory: `np.save`, `safetensors.torch.save_file` and
`Dataset.from_dict(...).save_to_disk`. Needs ten times the rows' bytes on the disk (3.1 GB); removes what it made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, disable_progress_bars, load_from_disk
from measuring import in_turns, machine, print_rates
from safetensors.torch import save_file
from store_data import CONTEXT, HOOK_POINT, DataSet

from workbench.cache import Store, StoreWriter, open_store
from workbench.store_formats.exporting import export_store
from workbench.store_formats.importing import import_store

FORMATS = ("npy", "safetensors", "saelens")
FOLDERS = {"export": "", "import": "back-"}  # what a way writes is called so, and after its format


def write_store(data: DataSet) -> Store:
    """Write the rows into a store."""
    folder = data.folder / "acts"
    with StoreWriter(folder, {HOOK_POINT: data.spec}, data.plan(), {}) as writer:
        for first in range(0, data.n_rows, 8192):
            writer.append({HOOK_POINT: data.values[first : first + 8192]})
    return open_store(folder)


def write_peers(data: DataSet) -> dict[str, Callable[[], object]]:
    """Return the libraries' own ways of writing the rows, synced as ours are."""
    windows = data.values.reshape(-1, CONTEXT, data.width)
    features = Features({HOOK_POINT: Array2D((CONTEXT, data.width), "float16")})

    def synced(path: Path, write: Callable[[Path], object]) -> None:
        write(path)
        for file in [path] if path.is_file() else path.iterdir():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())

    tensor = torch.from_numpy(data.values)
    return {
        "np.save": lambda: synced(data.folder / "peer.npy", lambda path: np.save(path, data.values)),
        "safetensors save_file": lambda: synced(
            data.folder / "peer.safetensors", lambda path: save_file({"x": tensor}, path)
        ),
        "datasets save_to_disk": lambda: synced(
            data.folder / "peer", lambda path: Dataset.from_dict({HOOK_POINT: windows}, features).save_to_disk(path)
        ),
    }


def require_equal(data: DataSet, store: Store) -> None:
    """Hold what was exported and imported against the rows."""
    x = np.load(data.folder / "npy" / f"{HOOK_POINT}.npy", mmap_mode="r")
    windows = load_from_disk(str(data.folder / "saelens")).with_format("numpy", dtype=np.float16)
    for first in range(0, data.n_rows, 64 * CONTEXT):
        want = data.values[first : first + 64 * CONTEXT]
        assert x[first : first + 64 * CONTEXT].tobytes() == want.tobytes()
        found = windows[first // CONTEXT : first // CONTEXT + 64][HOOK_POINT]
        assert np.asarray(found).tobytes() == want.tobytes()
    for to in FORMATS:
        assert open_store(data.folder / f"back-{to}").read(HOOK_POINT).tobytes() == data.values.tobytes()
        assert (open_store(data.folder / f"back-{to}").origins == store.origins).all()


def main() -> None:
    """Make a store, move it both ways, check that every bit is there, and tell the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help=f"a multiple of {CONTEXT}")
    parser.add_argument("--width", type=int, default=768, help="float16 entries of a row, even")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    asked = parser.parse_args()
    if asked.rows < CONTEXT or asked.rows % CONTEXT or asked.width % 2 or asked.width < 2 or asked.repeats < 1:
        parser.error(f"--rows must be a multiple of {CONTEXT}, --width even, --repeats at least 1")
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="store-formats-", dir=asked.folder) as name:
        data = DataSet(Path(name), asked.rows, asked.width)
        store = write_store(data)
        print(f"{data.n_rows:,} rows of {data.width} float16, {data.n_bytes / 1e9:.2f} GB, {asked.repeats} rounds")
        plain = data.folder / "plain"

        def copy() -> None:
            with plain.open("wb", buffering=0) as file:
                for first in range(0, data.n_rows, 8192):
                    file.write(data.values[first : first + 8192].data)
                os.fsync(file.fileno())

        places = {f"{way} {to}": data.folder / f"{folder}{to}" for way, folder in FOLDERS.items() for to in FORMATS}
        ways: dict[str, Callable[[], object]] = {"tofile + fsync": copy, **write_peers(data)}
        ways |= {f"export {to}": partial(export_store, store, to=to, out=data.folder / to) for to in FORMATS}
        ways |= {f"import {to}": partial(import_store, data.folder / to, out=places[f"import {to}"]) for to in FORMATS}

        def clear(way: str) -> None:
            if way in places:
                shutil.rmtree(places[way], ignore_errors=True)

        seconds = in_turns(ways, asked.repeats, before=clear)
        require_equal(data, store)
        peers = dict(zip([f"export {to}" for to in FORMATS], list(ways)[1:4], strict=True))
        print_rates("written from the store, and into one", seconds, data.n_bytes, floor="tofile + fsync", peers=peers)
    print(f"\n{machine()}; torch {torch.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
