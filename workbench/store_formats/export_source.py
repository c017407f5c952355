"""Importing what was exported from a store: it comes back as the store it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.cache import ActivationSpec, Examples, StoreError
from workbench.errors import UserError
from workbench.store_formats.arrays import ForeignArray, Joined
from workbench.store_formats.choice import named
from workbench.store_formats.columns import Column, Rows, converted, stored_type
from workbench.store_formats.source import Options, Source, opener, same_length


def source_of_export(path: Path, metadata: Mapping[str, Any], options: Options) -> Source:
    """Understand a folder that `export_store` wrote.

    Raises
    ------
    UserError
        If options are given that the folder itself answers, or it is damaged.
    """
    if options.layout is not None or options.tokens or options.documents or options.special_tokens:
        raise UserError(
            f"{path} is an export of a store and tells tokens and documents itself: leave these options out"
        )
    try:
        entries = {name: dict(entry) for name, entry in metadata["activations"].items()}
        wanted = named(entries, options.hooks, str(path))
        specs = {name: ActivationSpec.from_json(entries[name]) for name in wanted}
        exported = {name: dict(entries[name]["exported"]) for name in wanted}
        dtypes = {name: str(exported[name]["dtype"]) for name in wanted}
        digests = {path / name: str(record["xxh3_128"]) for name, record in metadata["files"].items()}
        about = dict(metadata["store"])
        fingerprints = {name: str(value) for name, value in about.pop("fingerprints").items()}
        kind, plan = str(metadata["to"]), str(metadata["examples"])
    except (KeyError, TypeError, AttributeError, ValueError, StoreError) as error:
        raise UserError(f"{path}: its metadata.json is damaged: {error!r}") from error
    rows = rows_of(path, kind, exported)
    columns = same_length(
        {name: restored(name, rows[name], dtypes[name], spec, options.dtype) for name, spec in specs.items()}
    )
    examples = Examples.read(path, plan)
    if examples.n_rows != next(iter(columns.values())).rows.n_rows:
        raise UserError(f"{path} is damaged: its plan has {examples.n_rows} rows, its arrays another number")
    about["exported_from"] = about.pop("fingerprint", None)
    return Source(
        kind=kind,
        path=path,
        columns=columns,
        examples=examples,
        files=tuple(digests),
        arrays=wanted,
        digests=digests,
        fingerprints=fingerprints,
        provenance=about,
        companions=path,
    )


def rows_of(path: Path, kind: str, exported: Mapping[str, Mapping[str, Any]]) -> dict[str, Rows]:
    """Return where the rows of hook points are, by name."""
    try:
        if kind == "npy":
            arrays = {name: opener(kind)(path / entry["file"]) for name, entry in exported.items()}
            return {name: joined(found, exported[name]["dtype"]) for name, found in arrays.items()}
        if kind == "safetensors":
            tensors = {
                tensor.key: tensor for file in sorted(path.glob("*.safetensors")) for tensor in opener(kind)(file)
            }
            return {
                name: joined([tensors[key] for key in entry["tensors"]], entry["dtype"])
                for name, entry in exported.items()
            }
        if kind == "saelens":
            from workbench.store_formats.saelens_arrays import open_saelens

            columns = open_saelens(path).hook_points
            return {name: columns[entry["column"]] for name, entry in exported.items()}
    except KeyError as error:
        raise UserError(f"{path} is damaged: {error.args[0]!r} is missing") from error
    raise UserError(f"{path} was exported to {kind!r}, which this version does not read: upgrade interp-workbench")


def joined(arrays: list[ForeignArray], dtype: str) -> Joined:
    """Join arrays, told what their bits are: NumPy's files know no bfloat16."""
    return Joined([replace(array, dtype=dtype) for array in arrays], "rows")


def restored(name: str, rows: Rows, dtype: str, spec: ActivationSpec, asked: str | None) -> Column:
    """Return a hook point in the type and shape that it had in the store, of int8 as float32, or as asked for."""
    stored = stored_type(name, "float32" if spec.dtype == "int8" else spec.dtype, asked)
    return Column(
        replace(spec, dtype=stored), rows, lambda values, first: converted(name, values, dtype, stored, first)
    )
