"""A job: one run of a batch, known by the identity that its run folder is named after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.runs import write_json

JOBS, FAILED, DAMAGED, STARTED = "jobs", "failed", "damaged", "started"  # folders of a batch
PARQUET = b"PAR1"  # how a whole Parquet file begins and ends


@dataclass(frozen=True)
class Job:
    """One run of a batch: plain values only, as it travels to a worker; what it reads is named, not held.

    Attributes
    ----------
    identity : str
        Hash of all that decides the numbers; "" where inputs must be made first.
    plugin : str
        Name.
    options : mapping
        Its options by dotted key, as given.
    seed : int
        Of every random choice.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    inputs : mapping of str to str
        ``store``, ``model``, ``data``, ``dictionary``: absolute paths and addresses of what was given or made.
    fingerprints : mapping of str to str
        Of what it reads.
    axes : mapping
        What distinguishes it from the others: a value for each axis of the grid.
    """

    identity: str
    plugin: str
    options: Mapping[str, Any]
    seed: int
    device: str = "auto"
    inputs: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, out: Path) -> Path:
        """Return where its run folder appears in a batch's folder."""
        return out / JOBS / self.identity

    def named(self) -> str:
        """Return what distinguishes it, in a line."""
        return f"{self.plugin} " + " ".join(f"{key}={text_of(value)}" for key, value in self.axes.items())


def text_of(value: Any) -> str:
    """Write a value of a grid as a person reads it: text as it is, lists as YAML has them."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def line_of(text: str, longest: int = 300) -> str:
    """Return the first line of a message, cut if it is long."""
    first = text.strip().partition("\n")[0]
    return first if len(first) <= longest else f"{first[: longest - 1]}…"


def is_finished(folder: Path, identity: str) -> bool:
    """Return whether a job's run folder is there, is of this identity, and its files are whole as far as can be seen.

    A rename makes the folder appear, but a power cut may leave files in it that were never written.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        index = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for name in index["tables"]:
            with (folder / "tables" / f"{name}.parquet").open("rb") as file:
                file.seek(-len(PARQUET), 2)
                if file.read() != PARQUET:
                    return False
        return bool(manifest["identity"] == identity)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def put_damaged_away(out: Path, identity: str) -> None:
    """Move a job's folder that is there and not whole to where it is in nobody's way."""
    folder, number = out / JOBS / identity, 1
    while (out / DAMAGED / f"{identity}-{number}").exists():
        number += 1
    (out / DAMAGED).mkdir(parents=True, exist_ok=True)
    folder.rename(out / DAMAGED / f"{identity}-{number}")


@dataclass(frozen=True)
class Failure:
    """Why a job was set aside.

    Attributes
    ----------
    kind : str
        ``wrong input``, ``error``, ``worker died`` or ``too long``.
    error : str
        The message.
    traceback : str
        Of an error, and of where a job was that took too long; "" otherwise.
    tries : int
        How often it was begun.
    """

    kind: str
    error: str
    traceback: str = ""
    tries: int = 1


def write_failure(out: Path, job: Job, failure: Failure) -> None:
    """Keep why a job was set aside, whole or not at all."""
    path = out / FAILED / f"{job.identity}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write_json(part, {"job": asdict(job), **asdict(failure)})
    part.replace(path)


def clear_failure(out: Path, identity: str) -> None:
    """Forget that a job failed: it is done now."""
    (out / FAILED / f"{identity}.json").unlink(missing_ok=True)


def failed_before(out: Path) -> set[str]:
    """Return the identities of jobs that were set aside."""
    return {path.stem for path in (out / FAILED).glob("*.json")}
