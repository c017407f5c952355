"""JSON lines: one document per line, with labels on the document or on spans of its characters.

```json
{"text": "Anna saw Rome.", "name": "a1", "year": 1998,
 "labels": {"sentiment": "good", "place": [[9, 13]], "entity": [[0, 4, "person"], [9, 13, "city"]]}}
```

``text`` is required (the option ``text`` gives it another name), ``name`` or ``id`` is optional (``FILE:LINE``
otherwise), other plain values become fields of the document. `workbench.datasets.json_labels` says how labels are
written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from workbench.datasets.files import JSON_LINES_SUFFIXES, hash_files, split_options, visible_files
from workbench.datasets.json_labels import JsonLabels
from workbench.datasets.kinds import Scalar
from workbench.datasets.protocol import Dataset, Document, SpanLabel
from workbench.errors import UserError


class Line(NamedTuple):
    """Where a record lies: its byte offset in a file, and the line's number for messages."""

    file: Path
    number: int
    offset: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


class JsonLines(Dataset):
    """One document per line of one file, or of all ``.jsonl`` files of a folder.

    All lines are read and checked once, when the dataset is opened; after that, each document when it is asked for.

    Parameters
    ----------
    path : Path
        A file or a folder.
    text_field : str
        Key of the text.
    name_field : str, optional
        Key of the name; ``name``, else ``id``, if not given.
    address : str, optional
        How the dataset was named.

    Raises
    ------
    UserError
        For a line that is not JSON, lacks the text, repeats a name, or has a label that cannot be read; the message
        names file and line.
    """

    modality = "text"

    def __init__(
        self, path: Path, text_field: str = "text", name_field: str | None = None, address: str | None = None
    ) -> None:
        self.address = address or str(path)
        self.text_field = text_field
        self.name_fields = ("name", "id") if name_field is None else (name_field,)
        self.files = [(path.name, path)]
        if path.is_dir():
            files = [file for file in visible_files(path) if file.suffix.lower() in JSON_LINES_SUFFIXES]
            self.files = [(file.relative_to(path).as_posix(), file) for file in files]
        self._lines: list[Line] = []
        self._index: dict[str, int] = {}
        self._labels = JsonLabels("labels")
        for short, file in self.files:
            for line, record in read_lines(file):
                name = self._check(record, line) or f"{short}:{line.number}"
                if name in self._index:
                    first = self._lines[self._index[name]]
                    raise UserError(f"{line}: the name {name!r} was used in {first}; names must be unique")
                self._labels.see(record.get("labels"), len(record[text_field]), str(line))
                self._index[name] = len(self._lines)
                self._lines.append(line)
        if not self._lines:
            raise UserError(f"{path}: there is no document in it")
        self._names = list(self._index)
        self.label_specs = self._labels.finish()

    def _check(self, record: dict[str, Any], line: Line) -> str | None:
        """Return a document's name if it has one, refusing a record without text."""
        text, key = record.get(self.text_field), self.text_field
        if key not in record:
            has = ", ".join(record) or "nothing"
            raise UserError(f"{line}: no field {key!r} (it has {has}); another name: jsonl:{line.file}?text=FIELD")
        if not isinstance(text, str):
            raise UserError(f"{line}: field {key!r} is {text!r}, where text is wanted")
        for key in self.name_fields:
            value = record.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise UserError(f"{line}: field {key!r} is {value!r}, where a name (text or a whole number) is wanted")
            return str(value)
        return None

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self._lines)

    def _record(self, index: int) -> dict[str, Any]:
        line = self._lines[index]
        with line.file.open("rb") as file:
            file.seek(line.offset)
            return parse(file.readline(), line)

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        record = self._record(index)
        special = {self.text_field, "labels", *self.name_fields}
        fields = {key: value for key, value in record.items() if key not in special and isinstance(value, Scalar)}
        return Document(self._names[index], record[self.text_field], fields=fields)

    def labels(self, document: Document) -> Mapping[str, SpanLabel | float | None]:
        """See `Dataset.labels`."""
        if not self.label_specs:
            return {}
        return self._labels.read(self._record(self._index[document.name]).get("labels") or {})

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: contents of the files, and which fields are text and name."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_files(self.files, {"kind": "jsonl", "text": self.text_field, "name": self.name_fields})


def read_lines(file: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Go through the records of a file; empty lines are passed over."""
    offset = 0
    with file.open("rb") as lines:
        for number, content in enumerate(lines, start=1):
            if content.strip():
                line = Line(file, number, offset)
                yield line, parse(content, line)
            offset += len(content)


def parse(content: bytes, line: Line) -> dict[str, Any]:
    """Read one line as a JSON object."""

    def refuse(constant: str) -> NoReturn:
        raise UserError(f"{line}: {constant} is not JSON; leave a value out where it is undefined")

    try:
        record = json.loads(content.decode("utf-8-sig"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise UserError(f"{line}: not UTF-8 (byte {error.start} is {content[error.start]:#04x})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{line}: not JSON: {error.msg} at character {error.colno}") from None
    if not isinstance(record, dict):
        raise UserError(f'{line}: {type(record).__name__} where an object {{"text": …}} is wanted')
    return record


def load_jsonl(rest: str) -> JsonLines:
    """Open ``FILE-OR-FOLDER`` or ``FILE?text=body&name=key``."""
    path, options = split_options(rest, ["text", "name"])
    return JsonLines(path, options.get("text", "text"), options.get("name"), address=rest)
