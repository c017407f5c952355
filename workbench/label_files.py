"""Label files: labels added to a store that is there already, from CSV or JSON lines.

A CSV file has a line of headers. The first one says what its lines are about: ``document`` (names), ``sequence`` or
``row`` (numbers from 0); every other column is a label. A JSON lines file has ``{"document": NAME, "labels": {...}}``
on each line, labels written as in a JSON lines dataset; spans count characters of the document's text, so the dataset
that the store was captured from must be at hand.

Labels whose name names no group (``GROUP/NAME``) are in a group called after the file. A group is replaced whole.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import get_args

from workbench.cache import Store
from workbench.datasets.files import JSON_LINES_SUFFIXES
from workbench.datasets.json_labels import JsonLabels
from workbench.datasets.jsonl import read_lines
from workbench.datasets.label_csv import read_csv, read_label_csv
from workbench.datasets.loading import load_dataset
from workbench.datasets.protocol import Dataset, Document, LabelSpec, Level
from workbench.errors import UserError, nearest
from workbench.labelling import LabelTable
from workbench.provenance import dataset_address, recorded_dataset

log = logging.getLogger("workbench")


def label_from_file(store: Store, file: str | Path) -> list[LabelSpec]:
    """Add the labels of a file to a store, replacing the groups that they are in.

    Parameters
    ----------
    store : Store
        Need not be finished.
    file : path
        ``.csv``, ``.jsonl`` or ``.ndjson``.

    Returns
    -------
    list of LabelSpec
        The labels.

    Raises
    ------
    UserError
        If the file cannot be read (the message names the line), none of its documents is in the store, or spans are
        given and the store's dataset is not at hand.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; a label file ends in .csv, .jsonl or .ndjson")
    if not path.is_file():
        raise UserError(f"{path}: there is no such label file")
    group = re.sub(r"[^\w.-]|^[.-]", "_", path.stem)
    if path.suffix.lower() in JSON_LINES_SUFFIXES:
        table = from_json_lines(store, path, group)
    elif path.suffix.lower() == ".csv":
        table = from_csv(store, path, group)
    else:
        raise UserError(f"{path}: a label file ends in .csv, .jsonl or .ndjson")
    table.store(store)
    return list(table.specs.values())


def from_csv(store: Store, file: Path, group: str) -> LabelTable:
    """Read a CSV file of labels of documents, sequences or rows."""
    titles, _ = read_csv(file)
    level: Level | None = next((known for known in get_args(Level) if known == titles[0]), None)
    if level is None:
        raise UserError(f"{file}, line 1: the first column is {titles[0]!r}; it must be document, sequence or row")
    read = read_label_csv(file, level, group)
    table = LabelTable(store.examples, [spec for spec, _ in read.columns])
    names = {name: place for place, name in enumerate(store.documents)}
    n = {"row": store.examples.n_rows, "sequence": store.examples.n_sequences, "document": len(names)}[level]
    places: list[int | None] = []
    for line, key in zip(read.lines, read.keys, strict=True):
        if level == "document":
            places.append(names.get(key))
        elif key.isdecimal() and int(key) < n:
            places.append(int(key))
        else:
            raise UserError(f"{file}, line {line}: {level} {key!r}: the store has {level}s 0 to {n - 1}")
    require_some(store, file, [key for key, place in zip(read.keys, places, strict=True) if place is None], len(places))
    for spec, column in read.columns:
        values, defined = table.columns[spec.name]
        for place, value in zip(places, column, strict=True):
            if place is not None and value is not None:
                values[place], defined[place] = value, True
    return table


def from_json_lines(store: Store, file: Path, group: str) -> LabelTable:
    """Read a JSON lines file of labels of documents."""
    labels = JsonLabels(group)
    records: dict[str, tuple[str, dict[str, object]]] = {}
    for line, record in read_lines(file):
        name = record.get("document")
        if not isinstance(name, str):
            raise UserError(f"{line}: 'document' is {name!r}, where the name of a document is wanted")
        if name in records:
            raise UserError(f"{line}: {name!r} was labelled in {records[name][0]}")
        labels.see(record.get("labels"), None, str(line))
        records[name] = str(line), record.get("labels") or {}
    table = LabelTable(store.examples, labels.finish())
    names = {name: place for place, name in enumerate(store.documents)}
    require_some(store, file, [name for name in records if name not in names], len(records))
    has_spans = any(spec.level == "row" for spec in table.specs.values())
    texts = texts_of(store, records.keys() & names.keys()) if has_spans else {}
    for name, (_, written) in records.items():
        if name in names:
            table.fill(names[name], texts.get(name, Document(name)), labels.read(written))
    return table


def require_some(store: Store, file: Path, absent: list[str], n_entries: int) -> None:
    """Refuse a file of which no document is in the store; say how many are not."""
    if not n_entries:
        raise UserError(f"{file}: there is no label in it")
    if len(absent) == n_entries:
        near = nearest(absent[0], store.documents)
        raise UserError(f"{file}: no document of it is in {store.folder}; nearest to {absent[0]!r}: {near}")
    if absent:
        log.info(
            "%s: %d of %d documents are not in the store, the first is %r", file, len(absent), n_entries, absent[0]
        )


def texts_of(store: Store, names: set[str]) -> dict[str, Document]:
    """Read documents from the dataset that a store was captured from."""
    dataset = dataset_of(store)
    found = (dataset.document(place) for place in range(len(dataset)))
    return {document.name: document for document in found if document.name in names}


def dataset_of(store: Store) -> Dataset:
    """Open the dataset that a store was captured from; another one at its address is refused."""
    try:
        dataset = load_dataset(dataset_address(store))
    except UserError as error:
        raise UserError(
            f"spans are counted in the text, and the dataset of {store.folder} is not at hand: {error}"
        ) from None
    if dataset.fingerprint() != recorded_dataset(store).fingerprint:
        raise UserError(f"{dataset.address} has changed since {store.folder} was captured: capture again")
    return dataset
