"""The dataset ``python-stdlib``: the standard library's own source, with labels per token."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from workbench.datasets.files import hash_files
from workbench.datasets.protocol import Dataset, Document, SpanLabel
from workbench.datasets.python_labels import SPECS, python_labels
from workbench.datasets.python_source import is_held_out, modules, read_source, standard_library


class PythonStdlib(Dataset):
    """One document per module of the running Python's standard library, in the order of their dotted names.

    Each has the field ``held_out``: whether `zoo:pycode` was trained without it. Tests, installed packages and what the
    build generated are left out.

    Parameters
    ----------
    root : Path, optional
        Another folder of Python source.

    Raises
    ------
    UserError
        If the folder holds no module.
    """

    modality = "text"
    address = "python-stdlib"
    label_specs = SPECS

    def __init__(self, root: Path | None = None) -> None:
        self.files = list(modules(root or standard_library()).items())

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self.files)

    def document(self, index: int) -> Document:
        """See `Dataset.document`; a file that cannot be decoded has no text (an empty one)."""
        name, path = self.files[index]
        return Document(name, read_source(path.read_bytes()) or "", fields={"held_out": is_held_out(name)})

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: Python's version, the modules' names and all they contain."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_files(self.files, {"kind": "python-stdlib", "python": platform.python_version()})

    def labels(self, document: Document) -> Mapping[str, SpanLabel | float | None]:
        """See `Dataset.labels`; those that need a syntax tree are undefined where a module has none."""
        return python_labels(document.text or "")
