"""Run folders: made as ``RUN.part``, renamed when done, continued by the same command, read back at any time."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import xxhash

from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.results import Result

SCHEMA = 1
RUNS = Path("runs")


class BusyError(UserError):
    """A run folder is being written by another process."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    folder : Path
        With ``manifest.json``, the result's files, ``log.txt`` and ``report.html``.
    manifest : dict
        What was run, on what, with what, where and when.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """Hash of all that decides the numbers."""
        return str(self.manifest["identity"])

    @property
    def report(self) -> Path:
        """The report's path."""
        return self.folder / "report.html"

    @cached_property
    def result(self) -> Result:
        """The result, read from the folder."""
        from workbench.results import Result

        return Result.load(self.folder)

    def __repr__(self) -> str:
        return f"<Run {str(self.folder)!r} of {self.manifest.get('plugin')}, identity {self.manifest.get('identity')}>"

    def _repr_html_(self) -> str:
        from workbench.display import run_html

        return run_html(self)


def load_run(folder: str | Path) -> Run:
    """Open a finished run.

    Raises
    ------
    UserError
        If the folder is missing, is an unfinished run, or is no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        unfinished = part_of(folder)
        hint = f"; {unfinished} is unfinished: give the same command again" if unfinished.is_dir() else ""
        raise UserError(f"no run folder {folder}{hint}")
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(manifest, dict) or "plugin" not in manifest or "identity" not in manifest:
        raise UserError(f"{folder} is not a run folder: {path} names no plugin")
    if manifest.get("schema", 0) > SCHEMA:
        raise UserError(
            f"{folder} was written by a newer workbench (schema {manifest['schema']}): update interp-workbench"
        )
    return Run(folder, manifest)


def identity_of(parts: Mapping[str, Any]) -> str:
    """Hash what decides a run's numbers: plugin, version, configuration, seed and fingerprints, in canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def part_of(folder: Path) -> Path:
    """The place where a run is made before it is done."""
    return folder.with_name(folder.name + ".part")


def choose_folder(plugin: str, identity: str, root: Path = RUNS) -> Path:
    """Choose a folder under `root` for a run: an unfinished one of the same identity, else the next free number."""
    pattern = re.compile(rf"{re.escape(plugin)}-(\d+)(\.part)?")
    taken = 0
    for path in sorted(root.glob(f"{plugin}-*")) if root.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        taken = max(taken, int(match[1]))
        if match[2] and identity_in(path) == identity:
            return path.with_name(path.name.removesuffix(".part"))
    return root / f"{plugin}-{taken + 1}"


def identity_in(part: Path) -> str | None:
    """The identity of an unfinished run; None if it has not got that far."""
    path = part / "identity.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


@contextmanager
def run_folder(folder: Path, identity: str) -> Iterator[Path]:
    """Make a run folder: work in ``folder.part``, which becomes `folder` when the block ends well.

    An unfinished folder of the same identity is continued; one left by a fault keeps its ``work`` if there is any, and
    is removed otherwise. Two processes cannot make the same folder at once.

    Raises
    ------
    UserError
        If the folder exists, belongs to another run, or (a `BusyError`) is being made by another process.
    """
    refuse_existing(folder)
    part = part_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder.parent}: {error.strerror}") from None
    lock = filelock.FileLock(part.with_name(part.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        if not Path(lock.lock_file).exists():  # it could not be made: some file systems say so in no other way
            raise UserError(f"cannot write in {folder.parent}") from None
        raise BusyError(f"{part} is being written by another process") from None
    except OSError as error:
        raise UserError(f"cannot write in {folder.parent}: {error.strerror}") from None
    try:
        refuse_existing(folder)  # another process may have made it before the lock was ours
        old = identity_in(part)
        if part.exists() and old is not None and old != identity:
            raise UserError(f"{part} is an unfinished run of other inputs or options: remove it, or name another --out")
        clear(part)
        (part / "work").mkdir(parents=True, exist_ok=True)
        (part / "identity.txt").write_text(identity + "\n", encoding="utf-8")
        try:
            yield part
        except BaseException:
            if not any((part / "work").iterdir()):
                shutil.rmtree(part)
            raise
        shutil.rmtree(part / "work")
        (part / "identity.txt").unlink()
        sync_folder(part)
        part.rename(folder)
        sync_folder(folder.parent)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may be another's already
        lock.release()


def clear(part: Path) -> None:
    """Remove from an unfinished run what a killed process had written of the result: all of it is written again."""
    for path in part.iterdir() if part.is_dir() else ():
        if path.is_dir() and path.name != "work":
            shutil.rmtree(path)
        elif path.name not in ("work", "identity.txt", "log.txt"):
            path.unlink()


def drop_unfinished(folder: Path) -> None:
    """Remove what a killed process left of a run, but for the work that the same command would go on from.

    Nothing happens while another process makes the run.

    Parameters
    ----------
    folder : Path
        Where the run would have appeared.
    """
    part = part_of(folder)
    lock = filelock.FileLock(part.with_name(part.name + ".lock"), timeout=0)
    if not part.exists() and not Path(lock.lock_file).exists():
        return
    with suppress(filelock.Timeout), lock:
        if part.is_dir() and not ((part / "work").is_dir() and any((part / "work").iterdir())):
            shutil.rmtree(part)
        Path(lock.lock_file).unlink(missing_ok=True)


def refuse_existing(folder: Path) -> None:
    """Raise a UserError if a folder where a run shall appear is there already."""
    if folder.exists():
        what = "holds another run" if (folder / "manifest.json").is_file() else "is no run folder"
        raise UserError(f"{folder} exists already and {what}: name another folder with --out")


def sync_folder(folder: Path) -> None:
    """Ask the system to put a folder's entries on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON for people and machines: indented, in the order given, ASCII (so that any text survives)."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
