"""What a format has to do so that an export in it can be interrupted and continued."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.store_formats.export_folder import FileRecord
from workbench.store_formats.export_rows import BATCH_BYTES, Taken


@dataclass(frozen=True)
class Extent:
    """How much is exported, and in what portions.

    Attributes
    ----------
    n_rows : int
        Rows in all.
    origins : numpy dtype
        Record type of their origins.
    window_rows : int
        Rows that must not be parted, 1 where any may be.
    file_bytes : int
        Largest size wanted for a file, where the format has several.
    """

    n_rows: int
    origins: np.dtype[Any]
    window_rows: int
    file_bytes: int


class ExportFormat(ABC):
    """Writes rows in a format, piece by piece; a piece is durable as a whole.

    Rows come in order, `batch_rows` at a time (fewer at the very end), and `piece_rows` to a piece: `begin`, `append`
    for each batch, `commit`. After an interruption the export goes on with `begin` of the first piece that was not
    committed; `finish` follows the last.

    Parameters
    ----------
    folder : Path
        Where to write.
    taken : sequence of Taken
        Hook points.
    extent : Extent
        Rows.

    Attributes
    ----------
    batch_rows, piece_rows : int
        See above; `piece_rows` is a multiple of `batch_rows`, and that of ``extent.window_rows``.
    """

    name: ClassVar[str]
    has_windows: ClassVar[bool] = False
    """Whether rows come in windows of one size."""

    def __init__(self, folder: Path, taken: Sequence[Taken], extent: Extent) -> None:
        self.folder = folder
        self.taken = taken
        self.extent = extent
        self.row_bytes = sum(point.row_bytes for point in taken)
        n = max(1, extent.file_bytes // (self.row_bytes * extent.window_rows))  # windows of a piece
        n_batches = -(-n // max(1, BATCH_BYTES // (self.row_bytes * extent.window_rows)))
        self.batch_rows = n // n_batches * extent.window_rows
        self.piece_rows = n_batches * self.batch_rows

    @classmethod
    def fit(cls, point: Taken, asked: str | None) -> Taken:
        """Return how the format takes a hook point, if no type (or one that it knows) was asked for.

        Raises
        ------
        UserError
            If the format cannot hold it.
        """
        return point

    @classmethod
    def remarks(
        cls, store: Store, taken: Sequence[Taken], *, n_wanted: int, n_rows: int, window_rows: int, pack: bool
    ) -> list[str]:
        """Return a sentence for each thing that the format does not express, or not in the store's own way.

        Parameters
        ----------
        store, taken
            What is exported.
        n_wanted, n_rows : int
            Rows that were to be exported, and those that are.
        window_rows, pack
            See `workbench.store_formats.export_rows.whole_windows`.
        """
        changed = [point for point in taken if point.dtype != point.spec.dtype]
        return [f"{each.name} is written as {each.dtype}; the store has {each.spec.dtype}." for each in changed]

    @property
    def n_pieces(self) -> int:
        """Number of pieces."""
        return -(-self.extent.n_rows // self.piece_rows)

    @abstractmethod
    def begin(self, first_row: int) -> None:
        """Begin the piece that starts with a row, anew if some of it is there."""

    @abstractmethod
    def append(self, values: Mapping[str, NDArray[Any]], origins: NDArray[Any]) -> None:
        """Write the next rows: arrays [rows, ...] by hook point, and records [rows]."""

    @abstractmethod
    def commit(self) -> dict[str, FileRecord]:
        """Make the piece durable and return the files that it finished."""

    @abstractmethod
    def finish(self, files: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        """Write what belongs to no piece, given the files of all pieces; returns the files that are finished now."""

    @abstractmethod
    def describe(self, point: Taken) -> dict[str, Any]:
        """Return where a hook point's values are and how they are written, for ``metadata.json``."""

    @abstractmethod
    def close(self) -> None:
        """Let go of open files; safe to repeat."""
