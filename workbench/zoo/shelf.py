"""What ships: a folder per subject with its weights, tokenizer, shape and the record of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import UserError, nearest
from workbench.zoo.planted import LISTED, is_planted
from workbench.zoo.planted_truth import planted_record

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("model.safetensors", "tokenizer.json", "architecture.json", "record.json")


def zoo_names() -> list[str]:
    """Return the names of the subjects that ship, and of a few that are constructed when loaded; sorted."""
    return sorted([*(folder.name for folder in WEIGHTS.iterdir() if is_whole(folder)), *LISTED])


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds all files of a subject."""
    return all((folder / name).is_file() for name in FILES)


def zoo_folder(name: str) -> Path:
    """Return the folder of a shipped subject, or one that `workbench zoo train` wrote.

    Parameters
    ----------
    name : str
        ``pycode``, or the path of a folder with the same four files.

    Raises
    ------
    UserError
        For an unknown name; the message gives the nearest.
    """
    for folder in (WEIGHTS / name, Path(name)):
        if is_whole(folder):
            return folder
    if Path(name).is_dir():
        missing = ", ".join(file for file in FILES if not (Path(name) / file).is_file())
        raise UserError(f"zoo:{name}: this folder has no {missing}; a finished 'workbench zoo train' writes them")
    raise UserError(f"no zoo subject {name!r}; nearest: {nearest(name, zoo_names())} (all: workbench zoo list)")


def zoo_record(name: str) -> dict[str, Any]:
    """Return the record of a subject's training; see `zoo_folder` for the name. Of a planted one: what it is."""
    if is_planted(name):
        return planted_record(name)
    record: dict[str, Any] = json.loads((zoo_folder(name) / "record.json").read_text(encoding="utf-8"))
    return record
