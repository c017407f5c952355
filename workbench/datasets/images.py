"""Folders of images, with labels from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from workbench.datasets.files import IMAGE_SUFFIXES, hash_files, split_options, visible_files
from workbench.datasets.kinds import LabelValues, encode, parse_cells
from workbench.datasets.protocol import Dataset, Document, LabelSpec
from workbench.errors import UserError, nearest

LABELS_NAME = "labels.csv"


class ImageFolder(Dataset):
    """One document per image of a folder and the folders in it, named by its path inside: ``cats/1.jpg``.

    Where images lie in several folders, the label ``folder`` (group ``folders``) says in which.

    Parameters
    ----------
    path : Path
        The folder.
    labels : Path, optional
        A CSV file with a line of headers; its first column is the file name, each other column a label of the document
        (see `LabelValues` for headers and kinds; an empty cell is undefined). If not given, ``labels.csv`` in the
        folder or else beside it is taken where there is one.
    address : str, optional
        How the dataset was named.

    Raises
    ------
    UserError
        If there is no image, or the CSV file names an image that is not there, names one twice, or has a line of
        another length; the message names file and line.
    """

    modality = "vision"

    def __init__(self, path: Path, labels: Path | None = None, address: str | None = None) -> None:
        self.address = address or str(path)
        if not path.is_dir():
            raise UserError(f"{path}: not a folder; images are given as a folder of them")
        found = [file for file in visible_files(path) if file.suffix.lower() in IMAGE_SUFFIXES]
        self.files = [(file.relative_to(path).as_posix(), file) for file in found]
        if not self.files:
            raise UserError(f"{path}: no image in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
        beside = [place for place in (path / LABELS_NAME, path.parent / LABELS_NAME) if place.is_file()]
        self.labels_file = labels or (beside[0] if beside else None)
        self._labels: dict[str, dict[str, float | None]] = {name: {} for name, _ in self.files}
        specs = [] if self.labels_file is None else self._read_labels(self.labels_file)
        self.label_specs = (*specs, *self._folders(taken={spec.name for spec in specs}))

    def _read_labels(self, file: Path) -> list[LabelSpec]:
        header, lines = read_csv(file)
        names: dict[str, int] = {}
        for number, cells in lines:
            name = cells[0].strip()
            if name not in self._labels:
                near = nearest(name, self._labels)
                raise UserError(f"{file}, line {number}: there is no image {name!r} in the folder; nearest: {near}")
            if name in names:
                raise UserError(f"{file}, line {number}: {name!r} was labelled in line {names[name]}")
            names[name] = number
        specs: list[LabelSpec] = []
        for column, title in enumerate(header[1:], start=1):
            values = LabelValues(title, "document", "labels", f"{file}, line 1")
            parsed = parse_cells([cells[column] for _, cells in lines])
            for (number, _), value in zip(lines, parsed, strict=True):
                if value is not None:
                    values.see(value, f"{file}, line {number}")
            spec = values.spec()
            if spec.name in {other.name for other in specs}:
                raise UserError(f"{file}, line 1: two columns are called {spec.name!r}")
            for name, value in zip(names, parsed, strict=True):
                self._labels[name][spec.name] = None if value is None else encode(spec, value)
            specs.append(spec)
        return specs

    def _folders(self, taken: set[str]) -> list[LabelSpec]:
        parents = {name: Path(name).parent.as_posix() for name, _ in self.files}
        folders = sorted(set(parents.values()))
        if len(folders) < 2 or "folder" in taken:
            return []
        for name, parent in parents.items():
            self._labels[name]["folder"] = float(folders.index(parent))
        description = "the folder in which the image lies"
        return [LabelSpec("folder", "folders", "document", "categories", tuple(folders), description=description)]

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self.files)

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        name, file = self.files[index]
        return Document(name, image=file)

    def labels(self, document: Document) -> Mapping[str, float | None]:
        """See `Dataset.labels`."""
        found = self._labels[document.name]
        return {spec.name: found.get(spec.name) for spec in self.label_specs}

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: names and contents of the images, and the labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        labels = [] if self.labels_file is None else [(LABELS_NAME, self.labels_file)]
        return hash_files([*self.files, *labels], {"kind": "images"})


def image_size(file: Path) -> tuple[int, int]:
    """Return width and height of an image, in pixels; reads no more of the file than that takes."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{file}: not a readable image ({error})") from None


def read_csv(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file: its headers, and each further line with its number; lines of another length are an error."""
    with file.open(encoding="utf-8-sig", newline="") as content:
        reader = csv.reader(content)
        try:
            lines = [(reader.line_num, cells) for cells in reader if cells]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}, after line {reader.line_num}: not a CSV file in UTF-8: {error}") from None
    if not lines:
        raise UserError(f"{file}: empty; its first line must name the columns")
    (_, header), *rest = lines
    for number, cells in rest:
        if len(cells) != len(header):
            raise UserError(f"{file}, line {number}: {len(cells)} cells, where the first line has {len(header)}")
    return [title.strip() for title in header], rest


def load_images(rest: str) -> ImageFolder:
    """Open ``FOLDER`` or ``FOLDER?labels=FILE``."""
    path, options = split_options(rest, ["labels"])
    labels = Path(options["labels"]).expanduser() if "labels" in options else None
    if labels is not None and not labels.is_file():
        raise UserError(f"{labels}: there is no such label file")
    return ImageFolder(path, labels, address=rest)
