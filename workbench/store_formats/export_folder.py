"""The folder of an export: made beside as ``OUT.part``, continued where it was left, renamed when it is whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workbench.cache.files import PART, cannot_write, replace_file, sync_folder
from workbench.cache.lock import WriterLock
from workbench.errors import UserError

METADATA = "metadata.json"
PROGRESS = "progress.json"
LOCK = ".lock"

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class FileRecord:
    """A finished file of an export.

    Attributes
    ----------
    bytes : int
        Its size.
    xxh3_128 : str
        Hash of its bytes, 32 hexadecimal digits.
    """

    bytes: int
    xxh3_128: str


class ExportFolder:
    """Makes a folder in ``OUT.part`` and renames it at the end; use as a context manager.

    What is durable is written down in ``OUT.part/progress.json`` after each piece, so that the same export goes on
    there after an interruption, and another one is refused.

    Parameters
    ----------
    out : Path
        The folder; must not exist.
    identity : mapping
        What decides every byte of the export, as JSON values.

    Attributes
    ----------
    part : Path
        Where files are written.
    rows_done : int
        Rows that are durable.
    files : dict of str to FileRecord
        Finished files, by path in the folder.

    Raises
    ------
    UserError
        If `out` exists, `part` belongs to another export, or another process is writing it.
    workbench.cache.StoreError
        If the folder cannot be written.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        if out.exists() or out.is_symlink():
            raise UserError(f"{out} exists already: name another folder with --out, or remove it")
        self.out = out
        self.part = out.with_name(out.name + PART)
        self.identity = json.loads(json.dumps(identity))
        self.rows_done = 0
        self.files: dict[str, FileRecord] = {}
        self._take_up()
        self._lock = WriterLock(self.part / LOCK)
        try:
            self._continue()
        except BaseException:
            self._lock.release()
            raise

    def _take_up(self) -> None:
        """Make ``OUT.part``; one that is there must be an unfinished export."""
        if self.part.exists() and not (self.part / PROGRESS).is_file():
            begun = {LOCK, PROGRESS + PART}  # what an export leaves that is killed as soon as it has begun
            if not self.part.is_dir() or {path.name for path in self.part.iterdir()} - begun:
                raise UserError(f"{self.part} exists and is no unfinished export: remove it, or name another folder")
        try:
            self.part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.part, error) from error

    def _continue(self) -> None:
        progress = self.part / PROGRESS
        if progress.is_file():
            try:
                found = json.loads(progress.read_text(encoding="utf-8"))
                same = found["identity"] == self.identity
                self.rows_done = int(found["rows_done"])
                self.files = {name: FileRecord(**record) for name, record in found["files"].items()}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{progress} is damaged ({error}): remove {self.part} and export anew") from error
            if not same:
                raise UserError(
                    f"{self.part} is an unfinished export of another store or with other options: remove it, or name "
                    "another folder with --out"
                )
            log.info("%s: going on after %d rows", self.part, self.rows_done)
        else:
            self.note(0, {})

    def note(self, rows_done: int, files: Mapping[str, FileRecord]) -> None:
        """Write down that the first rows, and some files, are durable."""
        self.rows_done = rows_done
        self.files.update(files)
        state = {
            "identity": self.identity,
            "rows_done": rows_done,
            "files": {name: asdict(record) for name, record in self.files.items()},
        }
        write_json(self.part / PROGRESS, state)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write ``metadata.json`` and rename the folder into place."""
        files = {name: asdict(self.files[name]) for name in sorted(self.files)}
        write_json(self.part / METADATA, {**metadata, "identity": self.identity, "files": files})
        try:
            for folder in {self.part, *(path.parent for path in self.part.rglob("*"))}:
                sync_folder(folder)
            self._release()  # an open file would keep Windows from renaming its folder
            self.part.rename(self.out)
            (self.out / PROGRESS).unlink()  # last: until the rename it says that all rows are there
            sync_folder(self.out.parent)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def _release(self) -> None:
        self._lock.release()
        (self.part / LOCK).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.part.is_dir():  # it ended early
            self._release()
            if not self.rows_done:
                shutil.rmtree(self.part, ignore_errors=True)  # nothing to go on from
        if isinstance(error, OSError):  # what is wrong with the store has errors of its own
            kept = f"; {self.rows_done} rows are kept: mend this and run again" if self.rows_done else ""
            raise UserError(f"{cannot_write(self.part, error)}{kept}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""

    def write(part: Path) -> None:
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    replace_file(path, write)
