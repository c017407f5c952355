"""Hugging Face dataset folders: saved with ``save_to_disk``, or Parquet and Arrow files; read with pyarrow alone."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.datasets.files import TABLE_SUFFIXES, hash_files, split_options, visible_files
from workbench.datasets.kinds import LabelValues, encode
from workbench.datasets.protocol import Dataset, Document, LabelSpec
from workbench.errors import UserError, nearest

SPLITS = ("train", "validation", "valid", "dev", "test")
LABEL_COLUMNS = ("label", "labels")


class HuggingFaceFolder(Dataset):
    """One document per row of a table of Arrow or Parquet files.

    A column of the type ClassLabel, and a plain one called ``label`` or ``labels``, is a label of the document (and a
    field); other plain columns are fields; lists, structures and binary columns are passed over.

    Parameters
    ----------
    path : Path
        A folder written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``, a folder of Arrow or Parquet
        files, or one such file.
    text_field : str
        The column of the text.
    name_field : str, optional
        The column of the name; ``name``, else ``id``, if not given and there; ``SPLIT/ROW`` otherwise.
    split : str, optional
        Which split; may be left out where there is one.
    labels : sequence of str
        Further columns to be taken as labels.
    address : str, optional
        How the dataset was named.

    Raises
    ------
    UserError
        For a missing column or split, a name used twice, or a file that cannot be read; the message names it.
    """

    modality = "text"

    def __init__(
        self,
        path: Path,
        text_field: str = "text",
        name_field: str | None = None,
        split: str | None = None,
        labels: Iterable[str] = (),
        address: str | None = None,
    ) -> None:
        self.address = address or str(path)
        self.path, self.text_field = path, text_field
        splits = find_splits(path)
        if split is None and len(splits) > 1:
            raise UserError(
                f"{path} has the splits {', '.join(splits)}: say which, hf:{path}?split={next(iter(splits))}"
            )
        if split is not None and split not in splits:
            raise UserError(f"{path} has no split {split!r}; nearest: {nearest(split, splits)}")
        self.split, files = (split, splits[split]) if split is not None else next(iter(splits.items()))
        self.files = [(file.name if file == path else file.relative_to(path).as_posix(), file) for file in files]
        self._parts = [part for _, file in self.files for part in open_parts(file)]
        self._ends = list(running_sum(n for n, _ in self._parts))
        if not self._ends or not self._ends[-1]:
            raise UserError(f"{path}: there is no document in it")
        self._read = lru_cache(maxsize=4)(lambda part: self._parts[part][1]())
        self.schema: pa.Schema = self._read(0).schema
        self._require_text()
        given = [name_field] if name_field is not None else [n for n in ("name", "id") if n in self.schema.names][:1]
        self.name_field = given[0] if given else None
        self.label_columns = [*self._default_labels(), *labels]
        for column in [*given, *labels]:
            self._require(column)
        self._names = self._read_names()
        self._specs = {column: self._label_spec(column) for column in dict.fromkeys(self.label_columns)}
        self.label_specs = tuple(self._specs.values())

    def _require(self, column: str) -> None:
        if column not in self.schema.names:
            has = ", ".join(self.schema.names)
            raise UserError(f"{self.path} has no column {column!r} of numbers, truth values or text; it has {has}")

    def _require_text(self) -> None:
        if self.text_field not in self.schema.names:
            has = ", ".join(self.schema.names)
            raise UserError(f"{self.path} has no column {self.text_field!r} (it has {has}); hf:{self.path}?text=COLUMN")
        kind = self.schema.field(self.text_field).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{self.path}: column {self.text_field!r} holds {kind}, where text is wanted")

    def _column(self, name: str) -> list[Any]:
        return [value for part in range(len(self._parts)) for value in self._read(part).column(name).to_pylist()]

    def _read_names(self) -> list[str]:
        if self.name_field is None:
            return [f"{self.split}/{row}" for row in range(len(self))]
        names = [str(name) for name in self._column(self.name_field)]
        seen: dict[str, int] = {}
        for row, name in enumerate(names):
            if seen.setdefault(name, row) != row:
                where = f"{self.path}, column {self.name_field!r}"
                raise UserError(f"{where}: rows {seen[name]} and {row} are both {name!r}; names must be unique")
        return names

    @cached_property
    def _features(self) -> dict[str, Any]:
        """What the ``datasets`` library wrote about the columns; nothing if another program made the file."""
        about = json.loads((self.schema.metadata or {}).get(b"huggingface", b"{}"))
        features: dict[str, Any] = about.get("info", {}).get("features", {})
        return features

    def _classes(self, column: str) -> tuple[str, ...]:
        feature = self._features.get(column)
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
            return ()
        return tuple(feature["names"])

    def _default_labels(self) -> list[str]:
        plain = [name for name in LABEL_COLUMNS if name in self.schema.names and is_plain(self.schema.field(name).type)]
        classes = [name for name in self.schema.names if self._classes(name)]
        return [name for name in dict.fromkeys([*classes, *plain]) if name != self.text_field]

    def _label_spec(self, column: str) -> LabelSpec:
        if classes := self._classes(column):
            return LabelSpec(column, "labels", "document", "categories", classes)
        values = LabelValues(column, "document", "labels", str(self.path))
        for row, value in enumerate(self._column(column)):
            if value is not None:
                values.see(value, f"{self.path}, row {row}")
        return values.spec()

    def __len__(self) -> int:
        """See `Dataset`."""
        return self._ends[-1]

    def _row(self, index: int) -> dict[str, Any]:
        part = bisect_right(self._ends, index)
        table = self._read(part)
        row = index - (self._ends[part - 1] if part else 0)
        return {name: table.column(name)[row].as_py() for name in table.column_names}

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        row = self._row(index)
        text = row.pop(self.text_field)
        if text is None:
            raise UserError(f"{self.path}, row {index}: column {self.text_field!r} is empty")
        fields = {name: value for name, value in row.items() if value is not None and name != self.name_field}
        return Document(self._names[index], text, fields=fields)

    def labels(self, document: Document) -> Mapping[str, float | None]:
        """See `Dataset.labels`."""
        found = {}
        for column, spec in self._specs.items():
            value = document.fields.get(column)
            # -1 is the library's mark for an example without a class
            missing = value is None or (value == -1 and bool(self._classes(column)))
            found[spec.name] = None if missing or value is None else encode(spec, value)
        return found

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: contents of the files, and which columns are used."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        use = {"text": self.text_field, "name": self.name_field, "split": self.split, "labels": list(self._specs)}
        return hash_files(self.files, {"kind": "hf", **use})


def is_plain(kind: pa.DataType) -> bool:
    """True for columns of numbers, truth values and text."""
    checks = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_string,
        pa.types.is_large_string,
    )
    return any(check(kind) for check in checks)


def running_sum(numbers: Iterable[int]) -> Iterable[int]:
    """Go through the sums of the first one, two, ... numbers."""
    total = 0
    for number in numbers:
        total += number
        yield total


def find_splits(path: Path) -> dict[str, list[Path]]:
    """Find the files of each split, in the order in which the library wrote them."""
    if path.is_file():
        return {split_name(path): [path]}
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return {name: saved_files(path / name) for name in names}
    if (path / "state.json").is_file():
        return {saved_split(path): saved_files(path)}
    splits: dict[str, list[Path]] = {}
    for file in visible_files(path):
        if file.suffix.lower() in TABLE_SUFFIXES:
            splits.setdefault(split_name(file), []).append(file)
    if not splits:
        raise UserError(f"{path}: there is no Arrow or Parquet file in it")
    return splits


def split_name(file: Path) -> str:
    """Read a split off a file name: ``train-00000-of-00002.parquet``, ``test.arrow``; ``all`` if it names none."""
    sharded = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", file.stem)
    stem = sharded[1] if sharded else file.stem
    return stem if stem in SPLITS else "all"


def saved_files(folder: Path) -> list[Path]:
    """List the data files of a folder that ``save_to_disk`` wrote."""
    state = read_state(folder)
    files = [folder / Path(str(entry["filename"])).name for entry in state.get("_data_files", [])]
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder / 'state.json'} names {file.name}, which is not there")
    return files


def saved_split(folder: Path) -> str:
    """Return the split's name that ``save_to_disk`` noted."""
    return str(read_state(folder).get("_split") or "all")


def read_state(folder: Path) -> dict[str, Any]:
    """Read ``state.json`` of a saved dataset."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'state.json'}: not readable as a saved dataset ({error})") from None
    return state


def open_parts(file: Path) -> list[tuple[int, Callable[[], pa.Table]]]:
    """Return the parts of a file, each with its number of rows and a function that reads it.

    A Parquet file's parts are its row groups; an Arrow file is mapped into memory, whole.
    """
    try:
        if file.suffix.lower() == ".parquet":
            parquet = pq.ParquetFile(file, memory_map=True)
            wanted = [name for name in parquet.schema_arrow.names if is_plain(parquet.schema_arrow.field(name).type)]
            return [
                (parquet.metadata.row_group(group).num_rows, reader_of(parquet, group, wanted))
                for group in range(parquet.num_row_groups)
            ]
        mapped = pa.memory_map(str(file))
        is_file_format = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        opened = pa.ipc.open_file(mapped) if is_file_format else pa.ipc.open_stream(mapped)
        table = opened.read_all()
        table = table.select([field.name for field in table.schema if is_plain(field.type)])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a readable {file.suffix[1:]} file ({error})") from None
    return [(table.num_rows, lambda: table)]


def reader_of(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Callable[[], pa.Table]:
    """Return a function that reads one row group."""
    return lambda: parquet.read_row_group(group, columns=columns)


def load_hugging_face(rest: str) -> HuggingFaceFolder:
    """Open ``FOLDER``, ``FOLDER?split=train&text=body&name=key&labels=a,b``."""
    path, options = split_options(rest, ["text", "name", "split", "labels"])
    labels = [label for label in options.get("labels", "").split(",") if label]
    return HuggingFaceFolder(
        path, options.get("text", "text"), options.get("name"), options.get("split"), labels, address=rest
    )
