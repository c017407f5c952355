"""Folders of images, with labels from a CSV file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from workbench.datasets.files import IMAGE_SUFFIXES, hash_files, split_options, visible_files
from workbench.datasets.label_csv import read_label_csv
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
        (see `workbench.datasets.kinds.LabelValues` for headers and kinds; an empty cell is undefined). If not given,
        ``labels.csv`` in the folder or else beside it is taken where there is one.
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
        table = read_label_csv(file, "document", "labels")
        for line, name in zip(table.lines, table.keys, strict=True):
            if name not in self._labels:
                near = nearest(name, self._labels)
                raise UserError(f"{file}, line {line}: there is no image {name!r} in the folder; nearest: {near}")
        for spec, column in table.columns:
            for name, value in zip(table.keys, column, strict=True):
                self._labels[name][spec.name] = value
        return [spec for spec, _ in table.columns]

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


def load_images(rest: str) -> ImageFolder:
    """Open ``FOLDER`` or ``FOLDER?labels=FILE``."""
    path, options = split_options(rest, ["labels"])
    labels = Path(options["labels"]).expanduser() if "labels" in options else None
    if labels is not None and not labels.is_file():
        raise UserError(f"{labels}: there is no such label file")
    return ImageFolder(path, labels, address=rest)
