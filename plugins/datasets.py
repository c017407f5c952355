"""The built-in kinds of datasets: the zoo's own by name, and texts, tables and images by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.datasets.files import FileKind, holds_pairs, kind_of
from workbench.datasets.protocol import Dataset
from workbench.errors import UserError
from workbench.hookspecs import hookimpl
from workbench.plugin import DatasetSource


def load_python_stdlib(rest: str) -> Dataset:
    """Open the standard library's own source."""
    from workbench.datasets.python_stdlib import PythonStdlib

    refuse_rest("python-stdlib", rest)
    return PythonStdlib()


def load_calendar(rest: str) -> Dataset:
    """Open the sentences of days and months arithmetic."""
    from workbench.datasets.calendar import Calendar

    refuse_rest("calendar", rest)
    return Calendar()


def load_modular(rest: str) -> Dataset:
    """Open the sums modulo a prime."""
    from workbench.datasets.modular import Modular

    refuse_rest("modular", rest)
    return Modular()


def load_shapes(rest: str) -> Dataset:
    """Open the rendered scenes of `zoo:shapes-clip`."""
    from workbench.datasets.shapes import load_shapes

    return load_shapes(rest)


def refuse_rest(name: str, rest: str) -> None:
    """Refuse words after the name of a dataset that takes none."""
    if rest:
        raise UserError(f"dataset {name!r} takes no {rest!r} after its name: write {name}")


def load_text(rest: str) -> Dataset:
    """Open a text file or a folder of them."""
    from workbench.datasets.text import load_text

    return load_text(rest)


def load_jsonl(rest: str) -> Dataset:
    """Open a file of JSON lines."""
    from workbench.datasets.jsonl import load_jsonl

    return load_jsonl(rest)


def load_hugging_face(rest: str) -> Dataset:
    """Open a Hugging Face dataset folder."""
    from workbench.datasets.hugging_face import load_hugging_face

    return load_hugging_face(rest)


def load_images(rest: str) -> Dataset:
    """Open a folder of images."""
    from workbench.datasets.images import load_images

    return load_images(rest)


def looks_like(kind: FileKind) -> Callable[[Path], bool]:
    """Return a function that recognises files and folders of one kind; pairs of prompts are no documents."""
    return lambda path: kind_of(path) == kind and not holds_pairs(path)


@hookimpl
def provide_datasets() -> list[DatasetSource]:
    """Offer ``python-stdlib``, ``calendar``, ``modular``, ``shapes``, ``text:``, ``jsonl:``, ``hf:``, ``images:``."""
    return [
        DatasetSource(
            "python-stdlib",
            "Python's standard library, with labels per token from tokenize and ast",
            load_python_stdlib,
        ),
        DatasetSource("calendar", "days and months arithmetic in sentences, with operands and answer", load_calendar),
        DatasetSource("modular", "sums of two numbers modulo a prime, with operands and answer", load_modular),
        DatasetSource(
            "shapes", "rendered scenes of one object, of two or four (shapes:two, shapes:four), with masks", load_shapes
        ),
        DatasetSource("text", "a text file, or a folder of them: one document per file", load_text, looks_like("text")),
        DatasetSource(
            "jsonl", "JSON lines: one document per line, with fields and labels", load_jsonl, looks_like("jsonl")
        ),
        DatasetSource(
            "hf",
            "a Hugging Face dataset folder: saved to disk, or Parquet and Arrow files",
            load_hugging_face,
            looks_like("hf"),
        ),
        DatasetSource("images", "a folder of images, with labels from labels.csv", load_images, looks_like("images")),
    ]
