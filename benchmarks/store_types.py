"""What each stored type and each compression costs: quality of a sparse autoencoder, rounding, room, and time.

    python benchmarks/store_types.py [types] [rounding] [compression] [--activations stream,mlp,pattern,outliers]
        [--rows 100000] [--seeds 5] [--training-rows 80000] [--latents 1024] [--repeats 5] [--folder DIR]

`types`: explained variance lost at equal steps, on residual streams; half an hour on two cores. `rounding`: error of
int8 and of forms that it might have had. `compression`: room taken, rates of writing and reading with the page cache
warm, beside h5py with hdf5plugin. Captures of zoo:pycode and, where the package that ships it is installed, MiniLM;
captures and trained dictionaries are kept in --folder if one is given, and taken from there the next time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # some network disks have no locks

import h5py
import hdf5plugin
import numcodecs
import numpy as np
import store_types_compression
import store_types_rounding
import store_types_training
import torch
from measuring import Others, machine
from store_types_data import kinds

PARTS = {
    "types": ("stream", "outliers"),
    "rounding": ("stream", "mlp", "outliers"),
    "compression": ("stream", "mlp", "pattern", "outliers"),
}
"""By part: the activations that it is for."""


def main() -> None:
    """Run the parts asked for and tell the machine."""
    known = kinds()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--activations", default=",".join(known), help=f"of {', '.join(known)}; by default all")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the residual stream; others have fewer")
    parser.add_argument("--seeds", type=int, default=5, help="autoencoders of each type")
    parser.add_argument("--training-rows", type=int, default=80_000, help="rows shown to each autoencoder")
    parser.add_argument("--latents", type=int, default=1024, help="of each autoencoder")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing")
    parser.add_argument("--folder", type=Path, help="where captures are kept; by default a temporary folder")
    asked = parser.parse_args()
    wanted = asked.activations.split(",")
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    if unknown := set(wanted) - known.keys():
        parser.error(f"--activations {', '.join(sorted(unknown))}: must be of {', '.join(known)}")
    if min(asked.rows // 2000, asked.repeats, asked.training_rows // 1000, asked.seeds) < 1 or asked.latents < 32:
        parser.error("--rows must be at least 2000, --training-rows 1000, --latents 32, the others 1")
    others = Others()
    with tempfile.TemporaryDirectory(prefix="store-types-") as temporary:
        folder = asked.folder or Path(temporary)
        for part in asked.parts or PARTS:
            chosen = [known[word] for word in wanted if word in PARTS[part]]
            if part == "rounding":
                store_types_rounding.run(chosen, folder, asked.rows)
            for kind in chosen:
                if part == "types":
                    sizes = {"training_rows": asked.training_rows, "latents": asked.latents, "seeds": asked.seeds}
                    store_types_training.run(kind, folder, asked.rows, **sizes)
                elif part == "compression":
                    store_types_compression.run(kind, folder, asked.rows, repeats=asked.repeats)
    versions = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5plugin": hdf5plugin.version,
        "numcodecs": numcodecs.__version__,
    }
    print(f"\n{machine()}; {', '.join(f'{name} {version}' for name, version in versions.items())}")
    print(f"{datetime.now(UTC):%Y-%m-%d}, {torch.get_num_threads()} threads of torch; ", end="")
    print(f"other processes took {100 * others.share():.0f} % of the cores meanwhile")


if __name__ == "__main__":
    main()
