"""Exporting a store: its activations and origins in a format that other programs read."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store, open_store
from workbench.cache.files import as_folder
from workbench.errors import UserError, nearest
from workbench.progress import progress
from workbench.store_formats.export_folder import PROGRESS, ExportFolder
from workbench.store_formats.export_format import ExportFormat, Extent
from workbench.store_formats.export_rows import Taken, take_hook_points, take_rows, whole_windows
from workbench.store_formats.records import describe_export, exported_plan, finished_export, write_companions

if TYPE_CHECKING:
    from workbench.cache.loader import Sequential

FILE_BYTES = 1 << 30
FORMATS = {
    "npy": ("workbench.store_formats.npy", "NpyExport"),
    "safetensors": ("workbench.store_formats.safetensors", "SafetensorsExport"),
    "saelens": ("workbench.store_formats.saelens", "SaelensExport"),
}

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes
    ----------
    folder : Path
        Where it is.
    n_rows : int
        Rows that were exported.
    n_left_out : int
        Rows of the store that were not.
    n_bytes : int
        Bytes of all files.
    remarks : tuple of str
        What the format does not express, each a sentence.
    """

    folder: Path
    n_rows: int
    n_left_out: int
    n_bytes: int
    remarks: tuple[str, ...]


def export_store(
    store: Store | str | Path,
    *,
    to: str,
    out: str | Path,
    hooks: str | Sequence[str] | None = None,
    dtype: str | None = None,
    special: bool = True,
    context_size: int | None = None,
    pack: bool = False,
    file_bytes: int = FILE_BYTES,
) -> Export:
    """Write a store's activations into a folder of another format, with their origins, labels and tokenizer.

    Rows are read with every checksum verified, and in the store's order. The folder is made beside as ``OUT.part`` and
    renamed when it is whole; the same call goes on with one that was interrupted, and does nothing to a finished one.

    Parameters
    ----------
    store : Store or path
        If unfinished, the rows that are committed are exported.
    to : "npy", "safetensors" or "saelens"
        The format; `docs/store.md` describes each.
    out : path
        The folder; must not exist.
    hooks : str or sequence of str, optional
        Hook points or patterns; all if not given.
    dtype : "float32", "float16" or "bfloat16", optional
        Round values to this type; by default each keeps the store's, bit for bit, where the format has it.
    special : bool
        Whether rows of special tokens are among them.
    context_size : int, optional
        For "saelens": rows of a window; by default those of the longest.
    pack : bool
        For "saelens": lay rows end to end and cut them into windows, whatever sequence they are of.
    file_bytes : int
        Largest size of a file where the format has several, > 0; a file has one row at least.

    Returns
    -------
    Export
        What was written, and what the format could not express.

    Raises
    ------
    UserError
        For wrong input, and a folder that exists.
    workbench.cache.DamageError
        If the store is damaged; the message names shard, dataset and chunk.
    """
    store = store if isinstance(store, Store) else open_store(store)
    kind = format_of(to)
    if file_bytes < 1:
        raise UserError(f"file_bytes={file_bytes}: must be above 0")
    if not kind.has_windows and (context_size is not None or pack):
        raise UserError(f"context size and pack are for saelens; {to} has no windows: leave them out")
    taken = [kind.fit(point, dtype) for point in take_hook_points(store, hooks, dtype)]
    mask = take_rows(store, special)
    n_wanted, window_rows = int(mask.sum()), 1
    if kind.has_windows:
        window_rows, mask = whole_windows(store.origins, mask, context_size, pack=pack)
    n_rows = int(mask.sum())
    extent = Extent(n_rows, store.origins.dtype, window_rows, file_bytes)
    identity = {
        "to": to,
        "store": store.fingerprint(),
        "labels": store.labels_fingerprint(),
        "hook_points": {point.name: point.dtype for point in taken},
        "special": special,
        "window_rows": window_rows,
        "pack": pack,
        "file_bytes": file_bytes,
    }
    folder = as_folder(out)
    remarks = kind.remarks(store, taken, n_wanted=n_wanted, n_rows=n_rows, window_rows=window_rows, pack=pack)
    if not finished_export(folder, identity):
        if not store.finished:
            log.warning("%s is unfinished: %d of %d rows are exported", store.folder, n_rows, store.n_rows_planned)
        plan = exported_plan(store, mask)
        with ExportFolder(folder, identity) as made, closing(kind(made.part, taken, extent)) as writer:
            # first, for if they are damaged, it is told before hours of work
            made.note(made.rows_done, write_companions(store, plan, made.part, mask))
            write_rows(store, taken, mask, writer, made)
            made.note(n_rows, writer.finish(made.files))
            writer.close()
            made.finish(describe_export(store, plan, writer, remarks, n_left_out=store.n_rows - n_rows))
    else:
        (folder / PROGRESS).unlink(missing_ok=True)  # left by a kill just after the rename
        log.info("%s is done already", folder)
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Export(folder, n_rows, store.n_rows - n_rows, n_bytes, tuple(remarks))


def format_of(name: str) -> type[ExportFormat]:
    """Return the class that writes a format."""
    if name not in FORMATS:
        raise UserError(
            f"format {name!r}: a store is exported to {', '.join(FORMATS)}; nearest: {nearest(name, FORMATS, 1)}"
        )
    module, attribute = FORMATS[name]
    found: type[ExportFormat] = getattr(importlib.import_module(module), attribute)
    return found


def write_rows(
    store: Store, taken: Sequence[Taken], mask: NDArray[np.bool_], writer: ExportFormat, made: ExportFolder
) -> None:
    """Write the pieces that are still wanting."""
    n_rows, done = writer.extent.n_rows, made.rows_done
    if done == n_rows:
        return
    left = mask.copy()
    if done:
        left[: np.flatnonzero(mask)[done]] = False
    passing = store.sequential([point.name for point in taken], batch_rows=writer.batch_rows, rows=left)
    with progress(n_rows, "rows", "export", log, done=done) as ticker, closing(passing):
        for origins, values in batches(store, taken, passing):
            if done % writer.piece_rows == 0:
                writer.begin(done)
            writer.append(values, origins)
            done += len(origins)
            if done % writer.piece_rows == 0 or done == n_rows:
                made.note(done, writer.commit())
            ticker.advance(len(origins))


def batches(
    store: Store, taken: Sequence[Taken], passing: Sequential
) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
    """Yield origins and exported values of the rows that a pass gives."""
    for rows, batch in passing:
        assert isinstance(batch, dict)
        first = int(rows.start if isinstance(rows, slice) else rows[0])
        yield store.origins[rows], {point.name: point.values(batch[point.name], first) for point in taken}
