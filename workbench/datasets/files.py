"""Files and folders as datasets: which kind they are, what lies in them, what their contents hash to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from workbench.errors import UserError, nearest

FileKind = Literal["text", "jsonl", "hf", "images"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
TABLE_SUFFIXES = frozenset({".arrow", ".parquet"})


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder and of all folders inside it, sorted by relative path; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.is_file())
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


def kind_of(path: Path) -> FileKind | None:
    """Say as what a file or folder would be read, by suffixes; None for a folder with nothing to read.

    A folder is a table of documents if it holds Arrow or Parquet files, else images if it holds any, else JSON lines,
    else text. A file of no known suffix is text.
    """
    if path.is_file():
        names, otherwise = [path], True
    elif path.is_dir():
        names = visible_files(path)
        otherwise = bool(names)
    else:
        return None
    suffixes = {name.suffix.lower() for name in names}
    if suffixes & TABLE_SUFFIXES:
        return "hf"
    if suffixes & IMAGE_SUFFIXES:
        return "images" if path.is_dir() else None
    if suffixes & JSON_LINES_SUFFIXES:
        return "jsonl"
    return "text" if otherwise else None


def holds_pairs(path: Path) -> bool:
    """Tell whether a file of JSON lines holds pairs of prompts: its first record has ``clean`` and ``corrupted``."""
    if path.suffix.lower() not in JSON_LINES_SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        record = json.loads(first.decode("utf-8-sig"))
    except ValueError:
        return False  # whoever opens it says what is wrong
    return isinstance(record, dict) and {"clean", "corrupted"} <= record.keys()


def split_options(rest: str, allowed: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Take an address apart: ``corpus.jsonl?text=body`` gives the path and ``{"text": "body"}``.

    Parameters
    ----------
    rest : str
        A path, then options as in a web address. A path that exists is taken whole, question marks included.
    allowed : sequence of str
        Names of options.

    Raises
    ------
    UserError
        For an option of another name, or a path that does not exist.
    """
    path, options = Path(rest).expanduser(), {}
    if not path.exists() and "?" in rest:
        before, _, after = rest.rpartition("?")
        path, options = Path(before).expanduser(), dict(parse_qsl(after, keep_blank_values=True))
    for name in options:
        if name not in allowed:
            known = f"nearest: {nearest(name, allowed)}" if allowed else "it takes none"
            raise UserError(f"{rest}: there is no option {name!r}; {known}")
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    return path, options


def hash_files(files: Iterable[tuple[str, Path]], options: Mapping[str, object]) -> str:
    """Hash names and contents of files, and the options they are read with; where they lie does not matter."""
    import xxhash

    digest = xxhash.xxh3_128(repr(sorted(options.items())).encode())
    for name, path in files:
        inner = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                inner.update(block)
        digest.update(f"\n{name} {inner.hexdigest()}".encode())
    return digest.hexdigest()
