"""A store of reconstructions: what a dictionary makes of another store's rows, to be read in its place."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.cache import Codes, StoreWriter, open_store
from workbench.encoding import (
    BATCH_ROWS,
    batches,
    check_dictionary,
    codes_of,
    loaded,
    opened,
    require_finite,
    require_whole,
)
from workbench.progress import progress
from workbench.runs import sync_folder

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.dictionary import Dictionary

PASSED_ON = ("model", "dataset", "tokenizer", "capture")  # parts of the manifest
log = logging.getLogger("workbench")


def reconstruct(
    store: Store | str | Path,
    dictionary: Dictionary | str | Path,
    *,
    out: str | Path,
    batch_rows: int = BATCH_ROWS,
    device: str = "auto",
) -> Store:
    """Write a store that holds, row by row, what a dictionary reconstructs of another store's rows.

    It has the same rows, origins, labels and subject, and the hook points that the dictionary reconstructs, so that a
    plugin reads it as it reads the other. Codes beside the store are decoded, if there are some; else rows are encoded.
    The same call goes on with a store that it left unfinished, and does nothing to a finished one.

    Parameters
    ----------
    store : Store or path
        Finished.
    dictionary : Dictionary or str
        Of the store's subject; or its address.
    out : path
        Folder of the new store.
    batch_rows : int
        Rows at a time.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.

    Raises
    ------
    UserError
        If dictionary and store do not belong together, or the store is unfinished.
    StoreError
        If `out` is something else, or a value does not fit the type in which the store holds the hook point.
    """
    from workbench.subjects.sources import resolve_device

    store, dictionary = opened(store), loaded(dictionary)
    check_dictionary(store, dictionary)
    require_whole(store, batch_rows)
    target = torch.device(resolve_device(device))
    specs = {name: store.hook_points[name] for name in dictionary.hooks_out}
    manifest = store.manifest
    fingerprints = {
        **manifest["fingerprints"],
        "reconstructed": store.fingerprint(),
        "dictionary": dictionary.fingerprint(),
    }
    passed_on = {name: manifest[name] for name in PASSED_ON if name in manifest}
    record = {"store": str(store.folder), "dictionary": {"address": dictionary.address, **dictionary.config()}}
    given: dict[str, Any] = {"fingerprints": fingerprints, "reconstruction": record, **passed_on}
    codes = codes_of(store, dictionary)
    if codes is not None:
        log.info("codes are read from codes/%s", codes.name)
    with StoreWriter(out, specs, store.examples, given) as writer:
        first = writer.next_row
        shard_rows = open_store(out).manifest["rows_per_shard"]
        with progress(store.n_rows, "rows", "reconstructing", log, first) as ticker:
            for rows in ahead(reconstructions(store, dictionary.to(target), codes, first, batch_rows, shard_rows)):
                writer.append(parted(rows.float().cpu(), specs))
                ticker.advance(len(rows))
    for folder in ("labels", "tokenizer"):
        _copy(store.folder / folder, Path(out) / folder)
    return open_store(out)


@torch.no_grad()
def reconstructions(
    store: Store, dictionary: Dictionary, codes: Codes | None, first: int, batch_rows: int, shard_rows: int
) -> Iterator[Tensor]:
    """Give the reconstructions of the store's rows from `first` on, [rows, width written] each.

    A batch may decide the last bits of its rows, so each shard of `shard_rows` begins with a batch of its own: the same
    batches, after whichever shard the writer was stopped.
    """
    device = dictionary.W_dec.device
    n_batches = -(-shard_rows // batch_rows)
    step = -(-shard_rows // n_batches)  # none much smaller than the others: small ones are slow
    if codes is not None and dictionary.normalisation == "none":
        for start in range(first, store.n_rows, shard_rows):
            end = min(start + shard_rows, store.n_rows)
            for at in range(start, end, step):
                yield dictionary.decode(*padded(codes, at, min(at + step, end), dictionary))
        return
    for rows in batches(store, dictionary.hooks_in, first, step, shard_rows, device):
        x = dictionary.rows_in(rows)
        require_finite(store, first, x)
        first += len(x)
        yield dictionary.reconstruct(x)


def ahead(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """Give parts, each made on a thread while the one before it is used: what writes them rounds on one processor."""
    with ThreadPoolExecutor(1, "reconstruct") as thread:
        pending = thread.submit(next, parts, None)
        while (part := pending.result()) is not None:
            pending = thread.submit(next, parts, None)
            yield part


def padded(codes: Codes, first: int, end: int, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """Return values and latents [rows, n] of some rows, as `Dictionary.encode` gives them, zeros at the end."""
    bounds, latents, values = codes.read(slice(first, end))
    counts = np.diff(bounds)
    width = max(1, int(counts.max(initial=1)))
    row = np.repeat(np.arange(end - first), counts)
    column = np.arange(len(latents)) - np.repeat(bounds[:-1], counts)
    full_values = np.zeros((end - first, width), values.dtype)
    full_latents = np.zeros((end - first, width), np.int64)
    full_values[row, column], full_latents[row, column] = values, latents
    to = dictionary.W_dec
    return torch.from_numpy(full_values).to(to.device, to.dtype), torch.from_numpy(full_latents).to(to.device)


def parted(rows: Tensor, specs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Part rows [rows, sum of widths] into float32 arrays [rows, ...] of each hook point."""
    widths = [int(np.prod(spec.shape)) for spec in specs.values()]
    parts = torch.split(rows, widths, dim=1)
    return {
        name: part.reshape(len(rows), *spec.shape).numpy()
        for (name, spec), part in zip(specs.items(), parts, strict=True)
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a folder as a whole, if there is one: beside, then renamed."""
    if not source.is_dir() or target.exists():
        return
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns("*.lock", ".lock", "*.part"))
    part.rename(target)
    sync_folder(target.parent)
