"""Folders of plain files beside the shards, such as the tokenizer's: there whole or not at all, with checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.cache.errors import Damage
from workbench.cache.files import PART, cannot_write, file_digest, sync_file, sync_folder

CHECKSUMS = "checksums.json"


def put_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder of what `fill` writes into the one that it is given; one that is there is thrown away for it.

    Raises
    ------
    StoreError
        If the disk is full or cannot be written; the folder is what it was then, or missing.
    """
    part, old = (folder.with_name(f"{folder.name}{end}") for end in (PART, f".old{PART}"))
    try:
        for left in (part, old):
            if left.exists():
                shutil.rmtree(left)
        part.mkdir()
        fill(part)
        sums = {path.relative_to(part).as_posix(): file_digest(path) for path in files(part)}
        (part / CHECKSUMS).write_text(json.dumps(sums, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for path in files(part):
            sync_file(path)
        for inner in (*(path for path in part.rglob("*") if path.is_dir()), part):
            sync_folder(inner)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        sync_folder(folder.parent)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise cannot_write(folder, error) from error


def check_folder(folder: Path) -> Iterator[Damage]:
    """Yield the files that differ from their checksums; nothing for a folder that has none, as older stores do."""
    path = folder / CHECKSUMS
    if not path.is_file():
        if folder.with_name(folder.name + PART).exists() and not folder.exists():
            yield Damage(folder.name, "is missing: whoever replaced it was stopped")
        return
    name = f"{folder.name}/{CHECKSUMS}"
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
        wanted = {str(file): str(digest) for file, digest in sums.items()}
    except (OSError, ValueError, AttributeError) as error:
        yield Damage(name, f"cannot be read ({error})")
        return
    for file, digest in wanted.items():
        try:
            if file_digest(folder / file) != digest:
                yield Damage(f"{folder.name}/{file}", f"differs from its checksum in {name}")
        except OSError as error:
            yield Damage(f"{folder.name}/{file}", f"cannot be read ({error.strerror or error})")


def files(folder: Path) -> list[Path]:
    """Return the files of a folder and of those in it, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
