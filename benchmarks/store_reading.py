"""Reading: our shuffled epoch beside plain reads, memory maps, h5py and SAELens's reader."""

from __future__ import annotations

from store_data import DataSet


def run(data: DataSet, repeats: int) -> None:
    """Print how fast each way reads all rows."""
