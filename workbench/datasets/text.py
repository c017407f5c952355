"""Text documents: a file, a folder of files, or strings in memory."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import xxhash

from workbench.datasets.files import hash_files, split_options, visible_files
from workbench.datasets.protocol import Dataset, Document
from workbench.errors import UserError


class TextFiles(Dataset):
    """One document per text file (UTF-8), named by its path inside the folder.

    Parameters
    ----------
    path : Path
        A file, or a folder; its folders are read too, hidden files are not.
    pattern : str
        Which files of a folder are taken, by name: ``*.md``.
    address : str, optional
        How the dataset was named.

    Raises
    ------
    UserError
        If no file is left, the one file is empty, or, once a document is read, its file is not UTF-8 text.
    """

    modality = "text"

    def __init__(self, path: Path, pattern: str = "*", address: str | None = None) -> None:
        self.address = address or str(path)
        if path.is_dir():
            files = [file for file in visible_files(path) if fnmatch(file.name, pattern)]
            self.files = [(file.relative_to(path).as_posix(), file) for file in files]
        else:
            if not path.stat().st_size:
                raise UserError(f"{path} is empty: there is no text to read")
            self.files = [(path.name, path)]
        if not self.files:
            raise UserError(f"{path}: no file in this folder is called {pattern!r}")

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self.files)

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        name, file = self.files[index]
        content = file.read_bytes()
        try:
            text = content.decode("utf-8-sig")  # decoded by hand: offsets count the characters that are there
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 text (byte {error.start} is {content[error.start]:#04x})"
            cure = f"name the files to take, for example text:{file.parent}?files=*.txt"
            raise UserError(f"{file}: {problem}; {cure}") from None
        return Document(name, text)

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: names and contents."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_files(self.files, {"kind": "text"})


class TextList(Dataset):
    """Strings in memory; the documents are called ``0``, ``1``, ...

    Parameters
    ----------
    texts : sequence of str
        One document each.
    """

    modality = "text"

    def __init__(self, texts: Sequence[str]) -> None:
        self.address = f"{len(texts)} strings in memory"
        self.texts = list(texts)
        if not self.texts:
            raise UserError("the list of texts is empty: give at least one")
        for index, text in enumerate(self.texts):
            if not isinstance(text, str):
                raise UserError(f"text {index} is {type(text).__name__}, where a string is wanted")

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self.texts)

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        return Document(str(index), self.texts[index])

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`."""
        digest = xxhash.xxh3_128()
        for text in self.texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)}\n".encode() + content)
        return digest.hexdigest()


def load_text(rest: str) -> TextFiles:
    """Open ``FILE-OR-FOLDER`` or ``FOLDER?files=*.md``."""
    path, options = split_options(rest, ["files"])
    return TextFiles(path, options.get("files", "*"), address=rest)
