"""Capture: run a subject model over a dataset once and keep the activations of some hook points in a store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from workbench.cache import ActivationSpec, Store, StoreWriter, open_store
from workbench.cache.files import as_folder
from workbench.cache.folders import CHECKSUMS, check_folder, put_folder
from workbench.capture_passes import forward
from workbench.capture_plan import Plan, Planner
from workbench.capture_rows import activation_spec, row_axis
from workbench.datasets.loading import load_dataset
from workbench.datasets.protocol import Dataset
from workbench.datasets.text import TextList
from workbench.errors import UserError
from workbench.labelling import labels_of_dataset
from workbench.subjects.protocol import HookPoint, Subject
from workbench.subjects.sources import load_subject

log = logging.getLogger("workbench")


def capture(
    model: str | Subject,
    *,
    data: str | Path | Dataset | Sequence[str],
    hooks: str | Sequence[str],
    out: str | Path,
    rows: int | None = None,
    positions: str = "all",
    store_dtype: str | None = None,
    compression: str | None = None,
    batch_size: int | None = None,
    context_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str | None = None,
    device_map: str | None = None,
    labels: bool = True,
) -> Store:
    """Run a subject model over a dataset and keep the activations of some hook points, with the dataset's labels.

    The same call goes on with a store that it left unfinished, and does nothing to a finished one. However often it was
    stopped, the store ends with the same bytes, as long as `batch_size` is the same; but for ``index.h5``, which is
    derived from the rest: HDF5 puts times into it.

    Parameters
    ----------
    model : str or Subject
        An address (``zoo:pycode``), or a subject model.
    data : str, Path, Dataset or sequence of str
        An address (``python-stdlib``, ``corpus.jsonl``, ``photos/``), a dataset, or texts.
    hooks : str or sequence of str
        Hook points, or patterns: ``blocks.*.hook_resid_post``.
    out : path
        Folder of the store.
    rows : int, optional
        How many rows, from a seeded sample of the documents (see `workbench.capture_plan.Planner.plan`); all if not
        given.
    positions : str
        Which positions become rows: ``all``, ``last``, ``class``, ``label:NAME``, ``share:0.1`` (see
        `workbench.capture_positions.parse_positions`). Special tokens are among ``all``, flagged.
    store_dtype : str, optional
        ``float32``, ``float16``, ``bfloat16`` or ``int8`` (with a scale per row; see ``docs/store.md`` for what that
        costs), of the stored values; the subject's own if not given.
    compression : str, optional
        ``lz4`` or ``zstd``: compress chunks, without loss. Worth it for attention patterns and sparse activations; a
        residual stream hardly gets smaller (``docs/store.md`` has numbers).
    batch_size : int, optional
        Sequences or images in a forward pass; if not given, as many as have 8192 positions.
    context_length : int, optional
        Longest sequence in tokens, special ones included; the subject's own if not given.
    seed : int
        Of the sample, and of positions that are a share; 0 to 2**63 - 1.
    device, dtype, device_map : str, optional
        How a subject given by its address is loaded; see `load_subject`.
    labels : bool
        Whether the dataset's labels are stored.

    Returns
    -------
    Store
        Finished.

    Raises
    ------
    UserError
        For wrong input, and where a value overflows; the message names what is wrong and what would be right.
    workbench.cache.StoreError
        If the folder holds another store or something else, or cannot be written.
    """
    folder = as_folder(out)
    subject = (
        load_subject(model, device=device, dtype=dtype, device_map=device_map) if isinstance(model, str) else model
    )
    dataset = as_dataset(data)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    points = [subject.hook_points[name] for name in subject.expand([hooks] if isinstance(hooks, str) else hooks)]
    longest = subject.n_context if context_length is None else context_length
    specs = {point.name: activation_spec(point, subject, longest, store_dtype, compression) for point in points}
    plan = Planner(subject, dataset, positions, context_length, seed).plan(rows)
    require_positions(points, plan)
    if rows is not None and plan.examples.n_rows < rows:
        log.info("%s has %d rows of the %d asked for", dataset.address, plan.examples.n_rows, rows)
    manifest = describe(subject, dataset, plan, hooks, positions, rows, context_length, seed, batch_size)
    return write_planned(subject, dataset, plan, specs, manifest, folder, batch_size=batch_size, labels=labels)


def write_planned(
    subject: Subject,
    dataset: Dataset,
    plan: Plan,
    specs: Mapping[str, ActivationSpec],
    manifest: Mapping[str, Any],
    folder: Path,
    *,
    batch_size: int | None,
    labels: bool = True,
) -> Store:
    """Carry out a plan, or what is left of it, and return the finished store; parameters as for `capture`.

    Parameters
    ----------
    subject, dataset, plan
        What is run, and on what.
    specs : mapping of str to ActivationSpec
        What is kept of each hook point.
    manifest : mapping
        From `describe`.
    folder : Path
        Of the store.
    batch_size, labels
        See `capture`.
    """
    there = set(open_store(folder).labels) if (folder / "manifest.json").is_file() else set()
    is_labelled = there >= {spec.name for spec in dataset.label_specs}
    table = labels_of_dataset(plan.examples, dataset, plan.documents) if labels and not is_labelled else None
    with StoreWriter(folder, specs, plan.examples, manifest) as writer:
        if type(subject).save_tokenizer is not Subject.save_tokenizer:
            keep_tokenizer(subject, folder / "tokenizer", anew=not writer.finished)
        if table is not None:
            table.store(open_store(folder))
        if writer.finished:
            log.info("%s is finished: %d rows", folder, writer.n_rows)
            return open_store(folder)
        if writer.next_row:
            log.info("%s: going on from row %d of %d", folder, writer.next_row, writer.n_rows)
        forward(subject, dataset, plan, specs, writer, batch_size)
    return open_store(folder)


def keep_tokenizer(subject: Subject, folder: Path, *, anew: bool) -> None:
    """Write the subject's tokenizer if what is there is damaged, or if there is none and it is wanted `anew`."""
    if any(check_folder(folder)) or (anew and not (folder / CHECKSUMS).is_file()):
        put_folder(folder, subject.save_tokenizer)


def as_dataset(data: str | Path | Dataset | Sequence[str]) -> Dataset:
    """Open a dataset by its address, or make one of texts."""
    if isinstance(data, str | Path):
        return load_dataset(str(data))
    return data if isinstance(data, Dataset) else TextList(data)


def require_positions(points: list[HookPoint], plan: Plan) -> None:
    """Refuse a hook point with one value per sequence if sequences have several rows."""
    for point in points:
        if row_axis(point) is None and (np.diff(plan.examples.first_rows) != 1).any():
            raise UserError(
                f"{point.name} has one value per example and none per position: give positions class or last, or "
                "capture it alone"
            )


def describe(
    subject: Subject,
    dataset: Dataset,
    plan: Plan,
    hooks: str | Sequence[str],
    positions: str,
    rows: int | None,
    context_length: int | None,
    seed: int,
    batch_size: int | None,
) -> dict[str, Any]:
    """Return what the manifest says of a capture; only the fingerprints are held against those of a later call."""
    prints = {
        "model": subject.fingerprint(),
        "dataset": dataset.fingerprint(),
        "tokenizer": subject.tokenizer_fingerprint(),
    }
    dtype = str(subject.dtype).removeprefix("torch.")
    return {
        "fingerprints": {**prints, "model_dtype": dtype},
        "model": {"address": subject.address, "fingerprint": prints["model"], "dtype": dtype},
        "dataset": {"address": dataset.address, "fingerprint": prints["dataset"], "folder": plan.root},
        "tokenizer": {"fingerprint": prints["tokenizer"]},
        "capture": {
            "hooks": [hooks] if isinstance(hooks, str) else list(hooks),
            "positions": positions,
            "rows": rows,
            "context_length": context_length,
            "seed": seed,
            "device": str(subject.device),
            "batch_size": plan.batch_size(batch_size),  # with which bits come out again
        },
        "software": software(),
    }


def software() -> dict[str, str]:
    """Return versions of what computes the values; a checkout that was not installed has none."""
    found = {}
    for name in ("interp-workbench", "torch", "transformers", "transformer-lens"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
