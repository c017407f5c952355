"""Reading SAELens's folders of cached activations."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workbench.errors import UserError
from workbench.store_formats.saelens import INFO, STATE, TOKEN_IDS

CFG = "cache_activations_runner_cfg.json"
"""SAELens's own record of a run; it is written only where the folder was pushed to a hub."""


@dataclass(frozen=True)
class CachedActivations:
    """A folder of cached activations.

    Attributes
    ----------
    hook_points : dict of str to WindowRows
        Columns of activations.
    tokens : int array [rows], optional
        Token ids.
    window_rows, n_windows : int
        Size and number of the windows.
    files : tuple of Path
        What was read.
    unused : tuple of str
        Columns that are neither activations nor token ids.
    config : dict
        SAELens's record of the run; empty where there is none.
    """

    hook_points: dict[str, WindowRows]
    tokens: NDArray[Any] | None
    window_rows: int
    n_windows: int
    files: tuple[Path, ...]
    unused: tuple[str, ...]
    config: dict[str, Any]


class ArrowFiles:
    """Arrow streams that follow each other, one of them mapped into memory at a time.

    Parameters
    ----------
    paths : list of Path
        The files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: tuple[Path, mmap.mmap, Any] | None = None
        self.n_entries = [self._table(path).num_rows for path in paths]

    def read(self, name: str, first: int, end: int) -> Any:
        """Yield the stretches of a column's entries `first` to `end` (excluded), as Arrow arrays."""
        start = 0
        for path, n in zip(self._paths, self.n_entries, strict=True):
            low, high = max(first, start) - start, min(end, start + n) - start
            if low < high:
                for chunk in self._table(path).column(name).slice(low, high - low).chunks:
                    yield chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
                self._give_back()
            start += n

    def _table(self, path: Path) -> Any:
        if self._open is None or self._open[0] != path:
            try:
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._open = path, mapped, pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
            except (OSError, ValueError, pa.ArrowException) as error:
                raise UserError(f"{path} cannot be read as an Arrow stream: {error}") from error
        return self._open[2]

    def _give_back(self) -> None:
        """Let pages that were read count as memory no longer; they come back from the disk if need be."""
        if self._open is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._open[1].madvise(mmap.MADV_DONTNEED)


class WindowRows:
    """Rows of a column of windows [window, width].

    Attributes
    ----------
    shape, dtype, n_rows
        Of a row, of the values; how many rows.
    """

    def __init__(self, files: ArrowFiles, name: str, window_rows: int, n_wide: int, dtype: str) -> None:
        self.shape: tuple[int, ...] = (n_wide,)
        self.dtype = dtype
        self.n_rows = sum(files.n_entries) * window_rows
        self._files = files
        self._name = name
        self._window_rows = window_rows

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Return rows `first` to `end` (excluded), [rows, width]."""
        low, high = first // self._window_rows, -(-end // self._window_rows)
        parts = []
        for chunk in self._files.read(self._name, low, high):
            lists = chunk.flatten()
            values = lists.flatten()
            n_wanted = len(chunk) * self._window_rows * self.shape[0]
            if chunk.null_count or lists.null_count or values.null_count or len(values) != n_wanted:
                raise UserError(
                    f"column {self._name!r} has windows that are not [{self._window_rows}, {self.shape[0]}]"
                )
            parts.append(np.array(values.to_numpy(zero_copy_only=True)).reshape(-1, *self.shape))
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return rows[first - low * self._window_rows :][: end - first]


def is_cached_activations(folder: Path) -> bool:
    """True if a folder is a dataset as `datasets` saves them."""
    return (folder / INFO).is_file() and (folder / STATE).is_file()


def open_saelens(folder: Path) -> CachedActivations:
    """Open a folder of cached activations.

    Raises
    ------
    UserError
        If it is none, or is damaged.
    """
    info, state = read_json(folder / INFO), read_json(folder / STATE)
    config = read_json(folder / CFG) if (folder / CFG).is_file() else {}
    try:
        features = dict(info["features"])
        paths = [folder / entry["filename"] for entry in state["_data_files"]]
        arrays = {name: tuple(entry["shape"]) for name, entry in features.items() if entry.get("_type") == "Array2D"}
        dtypes = {name: str(features[name]["dtype"]) for name in arrays}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no dataset as `datasets` saves them: {error!r}") from error
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} is shuffled by a list of indices: save it anew, ds.flatten_indices().save_to_disk()")
    if not arrays:
        raise UserError(f"{folder} has no column of type Array2D, which activations are: it has {', '.join(features)}")
    window_sizes = {shape[0] for shape in arrays.values()}
    if len(window_sizes) > 1 or None in window_sizes:
        raise UserError(f"{folder}: windows of {arrays} rows differ between columns, or in one")
    window_rows = int(window_sizes.pop())
    files = ArrowFiles(paths)
    hook_points = {
        name: WindowRows(files, name, window_rows, int(shape[1]), dtypes[name]) for name, shape in arrays.items()
    }
    n_windows = sum(files.n_entries)
    tokens = read_tokens(files, n_windows, window_rows) if TOKEN_IDS in features else None
    unused = tuple(name for name in features if name not in {*arrays, TOKEN_IDS})
    used = (folder / INFO, folder / STATE, *([folder / CFG] if config else []), *paths)
    return CachedActivations(hook_points, tokens, window_rows, n_windows, used, unused, config)


def read_tokens(files: ArrowFiles, n_windows: int, window_rows: int) -> NDArray[Any]:
    """Return all token ids, [rows]."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in files.read(TOKEN_IDS, 0, n_windows)]
    tokens = np.concatenate([np.empty(0, np.int32), *parts])
    if len(tokens) != n_windows * window_rows or tokens.dtype.kind not in "iu":
        raise UserError(f"column {TOKEN_IDS!r} has {len(tokens)} ids in {n_windows} windows of {window_rows} rows")
    return tokens


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found
