"""What travels beside exported activations: a description, the plan, labels, the tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Examples, LabelInfo, Store
from workbench.cache import examples as examples_file
from workbench.cache import labels as label_files
from workbench.cache.files import cannot_write, file_digest
from workbench.cache.manifest import RESERVED
from workbench.errors import UserError
from workbench.store_formats.export_folder import METADATA, FileRecord
from workbench.store_formats.export_format import ExportFormat

FORMAT = "workbench export"
SCHEMA = 1
TOKENIZER = "tokenizer"


def write_companions(store: Store, plan: Examples, folder: Path, mask: NDArray[np.bool_]) -> dict[str, FileRecord]:
    """Write the plan, with the exported rows alone selected, the labels of these rows, and the tokenizer.

    Parameters
    ----------
    store : Store
        That is exported.
    plan : Examples
        From `exported_plan`.
    folder : Path
        Of the export.
    mask : bool [rows]
        Which rows are.

    Returns
    -------
    dict of str to FileRecord
        Files, by path in the folder.
    """
    plan.write(folder)
    for group, labels in exported_labels(store, mask).items():
        label_files.write_group(folder, group, labels, plan)
    (folder / label_files.FOLDER / ".lock").unlink(missing_ok=True)
    if (store.folder / TOKENIZER).is_dir():
        try:
            shutil.copytree(store.folder / TOKENIZER, folder / TOKENIZER, dirs_exist_ok=True)
        except OSError as error:
            raise cannot_write(folder / TOKENIZER, error) from error
    written = [folder / examples_file.FILE, *label_files.group_files(folder), *(folder / TOKENIZER).glob("*")]
    return {path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, file_digest(path)) for path in written}


def exported_plan(store: Store, mask: NDArray[np.bool_]) -> Examples:
    """Return the plan of a store with some of its committed rows selected, and no others."""
    examples = store.examples
    selected = np.zeros(len(examples.selected), np.bool_)
    selected[examples.selected] = np.append(mask, np.zeros(examples.n_rows - store.n_rows, np.bool_))
    return replace(examples, selected=selected)


def exported_labels(
    store: Store, mask: NDArray[np.bool_]
) -> dict[str, dict[str, tuple[LabelInfo, NDArray[Any], NDArray[np.bool_]]]]:
    """Return labels by group and name, those of rows for some of the committed rows alone."""
    groups: dict[str, dict[str, tuple[LabelInfo, NDArray[Any], NDArray[np.bool_]]]] = {}
    for name, stored in label_files.read_infos(store.folder).items():
        values, defined = label_files.read_values(store.folder, stored)
        if stored.info.level == "row":
            values, defined = values[: store.n_rows][mask], defined[: store.n_rows][mask]
        groups.setdefault(stored.info.group, {})[name] = stored.info, values, defined
    return groups


def describe_export(
    store: Store, plan: Examples, writer: ExportFormat, remarks: Sequence[str], *, n_left_out: int
) -> dict[str, Any]:
    """Return what ``metadata.json`` says, but for the files."""
    manifest = store.manifest
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "to": writer.name,
        "examples": plan.digest(),
        "n_rows": writer.extent.n_rows,
        "rows_left_out": n_left_out,
        "window_rows": writer.extent.window_rows,
        "remarks": list(remarks),
        "activations": {
            point.name: {**point.spec.to_json(), "exported": writer.describe(point)} for point in writer.taken
        },
        "store": {
            "fingerprint": store.fingerprint(),
            "fingerprints": manifest["fingerprints"],
            **{name: value for name, value in manifest.items() if name not in RESERVED},
        },
        "software": software(),
    }


def software() -> dict[str, str]:
    """Return our version; a checkout that was not installed has none."""
    with suppress(PackageNotFoundError):
        return {"interp-workbench": version("interp-workbench")}
    return {}


def finished_export(folder: Path, identity: Mapping[str, Any]) -> bool:
    """True if a folder is a finished export of the same store with the same options."""
    with suppress(UserError):
        found = read_metadata(folder)
        return found is not None and found.get("identity") == json.loads(json.dumps(identity))
    return False


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return what an export says of itself; None for a folder that is none of ours.

    Raises
    ------
    UserError
        If the file is damaged, or a newer version wrote it.
    """
    path = folder / METADATA
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    schema = found.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(f"{path} is of schema {schema}; this version reads up to {SCHEMA}: upgrade interp-workbench")
    return found
