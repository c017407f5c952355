"""Writing: our writer beside plain files, h5py and SAELens's format."""

from __future__ import annotations

from store_data import DataSet


def run(data: DataSet, repeats: int) -> None:
    """Print how fast each way writes all rows."""
