"""What is imported: hook points with their rows, the plan, and what is known of where they come from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Examples
from workbench.errors import UserError
from workbench.store_formats.arrays import ForeignArray, Joined, Layout, files_in
from workbench.store_formats.choice import Choice, choose, named
from workbench.store_formats.columns import Column, column
from workbench.store_formats.import_plan import EACH, plan_of_rows, plan_of_sequences

log = logging.getLogger("workbench")

SUFFIXES = {"npy": ".npy", "safetensors": ".safetensors", "pt": ".pt"}
KINDS = ("saelens", *SUFFIXES)


@dataclass(frozen=True)
class Options:
    """How a source is to be understood; see `workbench.store_formats.importing.import_store`."""

    hooks: tuple[str, ...] = ()
    layout: str | None = None
    tokens: str | None = None
    documents: str | None = None
    special_tokens: tuple[int, ...] = ()
    dtype: str | None = None


@dataclass(frozen=True)
class Source:
    """A foreign source, understood.

    Attributes
    ----------
    kind : str
        Format.
    path : Path
        File or folder.
    columns : dict of str to Column
        By hook point.
    examples : Examples
        The plan.
    files : tuple of Path
        That values are read from: what the source's fingerprint covers.
    arrays : object
        Which array of which file is what, as JSON values that hold wherever the source lies.
    digests : dict of Path to str
        What files must hash to, where the source says so.
    fingerprints, provenance : dict
        For the manifest.
    companions : Path, optional
        Folder with ``labels/`` and ``tokenizer/``.
    """

    kind: str
    path: Path
    columns: dict[str, Column]
    examples: Examples
    files: tuple[Path, ...]
    arrays: Any
    digests: dict[Path, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    companions: Path | None = None

    def read(self, first: int, end: int) -> dict[str, NDArray[Any]]:
        """Return rows `first` to `end` (excluded) of every hook point, as `StoreWriter.append` takes them."""
        return {name: column.read(first, end) for name, column in self.columns.items()}


def opener(kind: str) -> Callable[[Path], list[ForeignArray]]:
    """Return the function that opens a file of arrays."""
    if kind == "npy":
        from workbench.store_formats.npy_arrays import open_npy

        return open_npy
    if kind == "safetensors":
        from workbench.store_formats.safetensors_arrays import open_safetensors

        return open_safetensors
    from workbench.store_formats.torch_arrays import open_torch

    return open_torch


def source_of_arrays(path: Path, kind: str, options: Options) -> Source:
    """Understand a file or a folder of arrays.

    Raises
    ------
    UserError
        If it cannot be read, or it is not clear what is what.
    """
    layout = layout_of(options.layout)
    open_file = opener(kind)
    arrays = [array for file in files_in(path, SUFFIXES[kind]) for array in open_file(file)]
    documents = None if options.documents == EACH else options.documents
    chosen = choose(arrays, options.hooks, options.tokens, documents)
    if options.documents == EACH and layout == "sequences":
        raise UserError("documents 'rows' are for the layout rows; where there are sequences, each is a document")
    joined = {name: Joined(group, layout) for name, group in chosen.hook_points.items()}
    columns = same_length({name: column(name, rows, options.dtype) for name, rows in joined.items()})
    if chosen.unused:
        log.info("left alone: %s", ", ".join(array.address for array in chosen.unused))
    tokens = Joined(chosen.tokens, layout).read(0, n_rows_of(chosen.tokens, layout)) if chosen.tokens else None
    names = np.concatenate([array.whole() for array in chosen.documents]) if chosen.documents else None
    rows = next(iter(joined.values()))
    hint(options, chosen, joined)
    if layout == "rows":
        given = EACH if options.documents == EACH else names
        examples = plan_of_rows(rows.n_rows, path.resolve().stem, given, tokens, options.special_tokens)
    else:
        examples = plan_of_sequences(rows.lengths, names, tokens, options.special_tokens)
    used = [*(array for group in chosen.hook_points.values() for array in group), *chosen.tokens, *chosen.documents]
    files = tuple(dict.fromkeys(array.file for array in used))
    places = {file: place for place, file in enumerate(files)}
    described = {
        name: [[places[array.file], array.key] for array in group] for name, group in chosen.hook_points.items()
    }
    return Source(kind, path, columns, examples, files, [layout, described])


def layout_of(word: str | None) -> Layout:
    """Return the layout that is meant; rows if none is named."""
    for known in get_args(Layout):
        if known == (word or "rows"):
            found: Layout = known
            return found
    raise UserError(f"layout {word!r}: must be one of {', '.join(get_args(Layout))}")


def hint(options: Options, chosen: Choice, joined: dict[str, Joined]) -> None:
    """Say what was taken for granted, where it decides what rows mean."""
    name, rows = next(iter(joined.items()))
    if options.layout is None and len(rows.shape) > 1:
        log.info(
            "%s: %d rows of shape %s; if these are sequences of %d positions, say --layout sequences",
            name, rows.n_rows, list(rows.shape), rows.shape[0],
        )  # fmt: skip
    if options.layout != "sequences" and options.documents is None and not chosen.documents:
        log.info("all rows are of one document; --documents says which belong together, or that each is one")


def n_rows_of(arrays: Sequence[ForeignArray], layout: Layout) -> int:
    """Return how many rows arrays have together."""
    return Joined(arrays, layout).n_rows


def same_length(columns: dict[str, Column]) -> dict[str, Column]:
    """Refuse hook points with different numbers of rows, and none at all."""
    lengths = {name: each.rows.n_rows for name, each in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"hook points have different numbers of rows: {lengths}; all hook points of a store have the same rows"
        )
    if not next(iter(lengths.values())):
        raise UserError(f"hook point {next(iter(lengths))!r} has no rows")
    return columns


def source_of_saelens(path: Path, options: Options) -> Source:
    """Understand a folder of SAELens's cached activations.

    Every window is a sequence and a document: SAELens keeps no more of where its rows come from.
    """
    from workbench.store_formats.saelens_arrays import open_saelens

    if options.layout is not None or options.tokens or options.documents:
        raise UserError("layout, tokens and documents are told by SAELens's folder itself: leave them out")
    found = open_saelens(path)
    if found.unused:
        log.info("left alone: columns %s", ", ".join(found.unused))
    wanted = named(found.hook_points, options.hooks, str(path))
    columns = same_length({name: column(name, found.hook_points[name], options.dtype) for name in wanted})
    lengths = np.full(found.n_windows, found.window_rows, np.int64)
    examples = plan_of_sequences(lengths, None, found.tokens, options.special_tokens)
    provenance = {"saelens": found.config} if found.config else {}
    return Source("saelens", path, columns, examples, found.files, list(columns), provenance=provenance)
