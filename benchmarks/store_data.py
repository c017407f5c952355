"""The rows that the benchmarks of the store read and write: made once, the same bytes for every way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import ActivationSpec, Examples, ExamplesBuilder

HOOK_POINT = "blocks.0.hook_resid_post"
CONTEXT = 250
"""Rows of a sequence; one million rows are whole sequences of it."""
BLOCK_ROWS = 8192


@dataclass(frozen=True)
class DataSet:
    """Rows of float16 that look like activations: no two alike, none compressible to nothing.

    Attributes
    ----------
    folder : Path
        Scratch space; each way keeps its files here.
    n_rows, width : int
        A multiple of `CONTEXT`; entries of a row.
    """

    folder: Path
    n_rows: int
    width: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows."""
        return self.n_rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 2 * self.width

    @property
    def spec(self) -> ActivationSpec:
        """What a row is."""
        return ActivationSpec(("d_model",), (self.width,), "float16")

    @cached_property
    def values(self) -> NDArray[np.float16]:
        """All rows in memory, float16 [rows, width]; the first four bytes of a row are its number."""
        rng = np.random.default_rng(0)
        values = np.empty((self.n_rows, self.width), np.float16)
        for first in range(0, self.n_rows, BLOCK_ROWS):
            block = values[first : first + BLOCK_ROWS]
            block[:] = rng.standard_normal(block.shape, np.float32)
        values.view(np.uint32)[:, 0] = np.arange(self.n_rows)
        return values

    def numbers(self, batch: NDArray[Any]) -> NDArray[np.uint32]:
        """Return the row numbers of a batch of rows."""
        return np.ascontiguousarray(batch[:, :2]).view(np.uint32)[:, 0]

    def plan(self) -> Examples:
        """Return the plan of a store: documents of four sequences, the first token of each sequence special."""
        builder = ExamplesBuilder()
        tokens, special = np.arange(CONTEXT), np.arange(CONTEXT) == 0
        for sequence in range(self.n_rows // CONTEXT):
            if sequence % 4 == 0:
                document = builder.document(f"{sequence // 4:07d}.txt")
            builder.sequence(document, tokens, special=special, window=sequence % 4)
        return builder.build()
