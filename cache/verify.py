"""Holding a whole store against what it should be: every file's digest, every chunk's checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench.cache import labels
from workbench.cache.codes import check_codes
from workbench.cache.errors import Damage, DamageError
from workbench.cache.examples import Examples
from workbench.cache.files import file_digest
from workbench.cache.folders import check_folder
from workbench.cache.handles import OpenFiles
from workbench.cache.layout import SPECIAL, Column, columns
from workbench.cache.manifest import Manifest, ShardEntry
from workbench.cache.schema import ROWS
from workbench.cache.shard import Shard, content_digest


def verify(folder: Path, manifest: Manifest, progress: Callable[[int], object] | None = None) -> list[Damage]:
    """Check every committed shard, the plan, the labels, the codes and the tokenizer; shards in parallel.

    Parameters
    ----------
    folder, manifest
        The store.
    progress : callable, optional
        Called with the number of bytes that were checked since the last call, once per shard.

    Returns
    -------
    list of Damage
        In the order of the files; empty if all is well. A fault outside every chunk (in HDF5's own structure, an
        attribute, an alignment gap) names the shard alone.
    """
    wanted = columns(manifest)
    found = list(_check_plan(folder, manifest))

    def check(entry: ShardEntry) -> list[Damage]:
        return list(check_shard(folder, entry, wanted, manifest.chunk_rows))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for entry, damage in zip(manifest.shards, pool.map(check, manifest.shards), strict=True):
            found += damage
            if progress is not None:
                progress(entry.n_bytes)
    return [*found, *_check_labels(folder), *check_codes(folder), *check_folder(folder / "tokenizer")]


def check_shard(folder: Path, entry: ShardEntry, wanted: dict[str, Column], chunk_rows: int) -> Iterator[Damage]:
    """Yield the faults of one shard."""
    shard = Shard(folder, replace(entry, content=""), wanted, chunk_rows)  # so that a damaged checksum names its chunk
    try:
        shard.places()
        sound = file_digest(shard.path) == entry.digest
    except DamageError as error:
        yield error.damage
        return
    except OSError as error:
        rows = (entry.first_row, entry.end_row)
        yield Damage(shard.file, f"cannot be read ({error.strerror or error})", rows=rows)
        return
    n_before, counts = 0, None
    try:
        with OpenFiles() as files:
            counts = shard.special_counts(files)
    except DamageError as error:
        n_before += 1
        yield error.damage
    for column in wanted.values():
        for chunk in range(shard.cut.n_chunks):
            first, end = shard.cut.chunk(chunk)
            values = np.empty((end - first, *column.shape), column.dtype)
            try:
                shard.read(column.name, first, values, verify=True)
            except DamageError as error:
                n_before += 1
                yield error.damage
                continue
            if column.name == ROWS and counts is not None:
                n_special = np.count_nonzero(values["special"])
                if n_special != counts[chunk]:  # with a right checksum: whoever wrote it counted wrongly
                    n_before += 1
                    what = f"says {counts[chunk]} rows of special tokens, /{ROWS} has {n_special}"
                    yield shard.damage(what, SPECIAL, chunk).damage
    if n_before == 0 and not sound:
        rows = (entry.first_row, entry.end_row)
        yield Damage(shard.file, "differs from its digest in the manifest, though every chunk is right", rows=rows)
    elif n_before == 0 and content_digest(wanted, shard.checksums()) != entry.content:
        yield Damage(shard.file, "its checksums are not those that the manifest has")


def _check_plan(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    try:
        Examples.read(folder, manifest.examples)
    except DamageError as error:
        yield error.damage


def _check_labels(folder: Path) -> Iterator[Damage]:
    for path in labels.group_files(folder):
        try:
            for stored in labels.read_group(folder, path).values():
                labels.read_values(folder, stored)
        except DamageError as error:
            yield error.damage
