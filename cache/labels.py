"""Labels: values of rows, sequences or documents, beside the shards, so that they can be replaced without them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from workbench.cache.errors import Damage, DamageError, StoreError
from workbench.cache.examples import Examples
from workbench.cache.files import PART, cannot_write, drop, make_folder, raw, read_hdf5, replace_hdf5
from workbench.cache.lock import WriterLock
from workbench.cache.schema import FORMAT, is_text

FOLDER = "labels"
FILE_SCHEMA = 1
"""In which the file is written; its form has not changed since."""
LOCK_TIMEOUT_S = 30.0
Level = Literal["row", "sequence", "document"]
Kind = Literal["binary", "categories", "ordered", "number", "cyclic"]
STORED_AS: dict[str, str] = {"binary": "|u1", "categories": "<i4", "ordered": "<i8", "number": "<f8", "cyclic": "<f8"}

LARGEST_ORDERED = 2.0**63
"""From here on a whole number is too large for int64."""


@dataclass(frozen=True)
class LabelInfo:
    """What a label means.

    Attributes
    ----------
    name : str
        Unique in a store.
    group : str
        Labels of one group are one file, and are replaced together.
    level : "row", "sequence" or "document"
        What carries a value.
    kind : str
        ``binary`` (0, 1), ``categories`` (index into `categories`), ``ordered`` (whole number, order matters),
        ``number``, ``cyclic`` (number modulo `period`).
    categories : tuple of str
        Names of the values of a ``categories`` label, at least one.
    period : float, optional
        Of a ``cyclic`` label, > 0.
    unit, description : str
        For people.
    """

    name: str
    group: str
    level: Level
    kind: Kind
    categories: tuple[str, ...] = ()
    period: float | None = None
    unit: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or not is_text(self.name) or self.name == ".":
            raise StoreError(f"label name {self.name!r}: must be UTF-8, not empty or '.', and not contain '/'")
        _check_group(self.group)
        if self.level not in get_args(Level):
            raise StoreError(f"label {self.name!r}: level {self.level!r} must be one of {', '.join(get_args(Level))}")
        if self.kind not in get_args(Kind):
            raise StoreError(f"label {self.name!r}: kind {self.kind!r} must be one of {', '.join(get_args(Kind))}")
        if self.kind == "categories" and not self.categories:
            raise StoreError(f"label {self.name!r}: kind 'categories' needs the names of its categories")
        if (self.kind == "cyclic") != (self.period is not None and 0 < self.period < np.inf):
            raise StoreError(f"label {self.name!r}: a period > 0 belongs to kind 'cyclic', and only to that")


@dataclass(frozen=True)
class StoredLabel:
    """A label as it lies in a group's file: what it means, and the hash of its values and mask."""

    info: LabelInfo
    digest: str


def write_group(
    folder: Path,
    group: str,
    labels: Mapping[str, tuple[LabelInfo, ArrayLike, ArrayLike | None]],
    examples: Examples,
    *,
    damaged: Collection[str] = (),
) -> None:
    """Replace ``labels/GROUP.h5``, atomically; an empty mapping removes the group.

    Parameters
    ----------
    folder : Path
        The store.
    group : str
        Every label's own group.
    labels : mapping of name to (LabelInfo, values [n], defined bool [n] or None)
        None: defined everywhere. What stands in `values` where a label is not defined has no meaning.
    examples : Examples
        The store's plan: how many values each level has, and which plan that is, so that the labels of another store
        are not taken for its own.
    damaged : collection of str
        Other groups whose files cannot be read; their labels' names are not known.

    Raises
    ------
    StoreError
        For a wrong length, a value that the kind does not allow, a name taken by another group.
    """
    _check_group(group)  # where there are no labels, this is a file's name that nobody has looked at
    lengths = _lengths(examples)
    checked = {name: _checked(name, group, entry, lengths) for name, entry in labels.items()}
    path = _path(folder, group)
    try:
        make_folder(path.parent)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    lock = WriterLock(path.parent / ".lock", LOCK_TIMEOUT_S)
    try:
        for part in path.parent.glob(f"*{PART}"):  # of a writer that was killed
            drop(part)
        unreadable = {group, *damaged}  # its own may be damaged
        others = [read_group(folder, other) for other in group_files(folder) if other.stem not in unreadable]
        taken = {name: stored.info.group for other in others for name, stored in other.items()}
        for name in checked.keys() & taken.keys():
            raise StoreError(f"label {name!r} is in group {taken[name]!r} already: choose another name")
        if checked:
            plan = examples.digest()
            replace_hdf5(path, lambda file: _fill(file, group, plan, checked))
        else:
            path.unlink(missing_ok=True)
    finally:
        lock.release()


def digests(
    group: str, labels: Mapping[str, tuple[LabelInfo, ArrayLike, ArrayLike | None]], examples: Examples
) -> dict[str, str]:
    """Return the hash that each label has once `write_group` has written it."""
    lengths = _lengths(examples)
    checked = {name: _checked(name, group, entry, lengths) for name, entry in labels.items()}
    return {name: _digest(*each) for name, each in checked.items()}


def read_infos(folder: Path, plan: str | None = None) -> dict[str, StoredLabel]:
    """Return what the labels of a store mean, by name, without their values; groups in order of their names."""
    return {name: label for path in group_files(folder) for name, label in read_group(folder, path, plan).items()}


def read_group(folder: Path, path: Path, plan: str | None = None) -> dict[str, StoredLabel]:
    """Return what the labels of one group's file mean, by name, in the order in which they were given.

    Parameters
    ----------
    folder : Path
        The store.
    path : Path
        Of `group_files`.
    plan : str, optional
        Digest of the store's plan: a file that says that it is of another is damage. Older files do not say.

    Raises
    ------
    DamageError
        If the file cannot be read, or is of another store.
    StoreError
        If a newer version wrote it.
    """
    try:
        with read_hdf5(path, texts=True) as file:
            schema = int(file.attrs["schema"])
            if schema > FILE_SCHEMA:
                raise StoreError(f"{path} was written in schema {schema}; this version reads up to {FILE_SCHEMA}")
            of, checksum = (file.attrs.get(name) for name in ("examples", "xxh3_128"))
            infos = {name: file[name].attrs["info"] for name in json.loads(file.attrs["order"])}
            hashes = {name: file[name].attrs["xxh3_128"] for name in infos}
        if checksum not in (None, _digest_of_group(of, infos, hashes)):
            raise ValueError("what it says of its labels differs from the checksum of that")
        found = {name: StoredLabel(_info(infos[name]), hashes[name]) for name in infos}
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DamageError(folder, Damage(f"{FOLDER}/{path.name}", f"cannot be read ({error})")) from error
    if plan is not None and of not in (None, plan):
        raise DamageError(folder, Damage(f"{FOLDER}/{path.name}", "has the labels of another store's rows"))
    return found


def read_values(folder: Path, stored: StoredLabel) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a label's values [n] and where they are defined, bool [n], held against their hash.

    Values are float64 for ``number`` and ``cyclic``, NaN where not defined; int64 for the others, 0 where not defined.
    """
    info = stored.info
    path = _path(folder, info.group)
    where = Damage(f"{FOLDER}/{path.name}", "its values differ from their checksum", f"/{info.name}")
    try:
        with read_hdf5(path) as file:
            values, defined = file[info.name]["values"][()], file[info.name]["defined"][()]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DamageError(folder, Damage(where.file, f"cannot be read ({error})", where.dataset)) from error
    if _digest(info, values, defined) != stored.digest:
        raise DamageError(folder, where)
    return values.astype(np.float64 if info.kind in {"number", "cyclic"} else np.int64), defined


def group_files(folder: Path) -> list[Path]:
    """Return the files of a store's label groups, by name."""
    return sorted((folder / FOLDER).glob("*.h5"))


def _path(folder: Path, group: str) -> Path:
    return folder / FOLDER / f"{group}.h5"


def _lengths(examples: Examples) -> dict[str, int]:
    """Return how many values a label of each level has."""
    return {"row": examples.n_rows, "sequence": examples.n_sequences, "document": len(examples.documents)}


def _fill(
    file: Any, group: str, plan: str, labels: dict[str, tuple[LabelInfo, NDArray[Any], NDArray[np.bool_]]]
) -> None:
    infos = {name: json.dumps(asdict(info)) for name, (info, _, _) in labels.items()}
    hashes = {name: _digest(*label) for name, label in labels.items()}
    file.attrs.update(format=f"{FORMAT}: labels", schema=FILE_SCHEMA, group=group, order=json.dumps(list(labels)))
    file.attrs.update(examples=plan, xxh3_128=_digest_of_group(plan, infos, hashes))
    for name, (_, values, defined) in labels.items():
        made = file.create_group(name)
        made.attrs.update(info=infos[name], xxh3_128=hashes[name])
        made.create_dataset("values", data=values)
        made.create_dataset("defined", data=defined)


def _info(text: str) -> LabelInfo:
    """Read what a file says of a label; raise ValueError for what cannot be."""
    fields = json.loads(text)
    try:
        return LabelInfo(**{**fields, "categories": tuple(fields["categories"])})
    except StoreError as error:
        raise ValueError(str(error)) from error


def _digest_of_group(plan: str | None, infos: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    """Return a hash of what a group's file says of its labels; HDF5 has no checksums for such texts."""
    return xxhash.xxh3_128_hexdigest(json.dumps([plan, list(infos.items()), list(hashes.items())]).encode())


def _digest(info: LabelInfo, values: NDArray[Any], defined: NDArray[np.bool_]) -> str:
    digest = xxhash.xxh3_128(json.dumps(asdict(info), sort_keys=True).encode())
    digest.update(raw(values))
    digest.update(raw(defined))
    return digest.hexdigest()


def _checked(
    name: str, group: str, entry: tuple[LabelInfo, ArrayLike, ArrayLike | None], lengths: Mapping[str, int]
) -> tuple[LabelInfo, NDArray[Any], NDArray[np.bool_]]:
    info, values_given, mask = entry
    if (info.name, info.group) != (name, group):
        raise StoreError(f"label {name!r} of group {group!r} says that it is {info.name!r} of {info.group!r}")
    values = np.asarray(values_given)
    defined = np.ones(values.shape, np.bool_) if mask is None else np.asarray(mask, np.bool_)
    n = lengths[info.level]
    if values.shape != (n,) or defined.shape != (n,):
        raise StoreError(
            f"label {name!r}: values {values.shape} and mask {defined.shape}, but the store has {n} {info.level}s"
        )
    given = values[defined]
    try:
        present = given.astype(np.float64, casting="unsafe" if values.dtype == object else "same_kind")
    except (TypeError, ValueError) as error:
        raise StoreError(f"label {name!r}: values are {values.dtype}; they must be numbers") from error
    wrong = ~np.isfinite(present)
    if info.kind in {"binary", "categories", "ordered"}:
        wrong |= (present != np.floor(present)) | (np.abs(present) >= LARGEST_ORDERED)
    if info.kind in {"binary", "categories"}:
        n_values = 2 if info.kind == "binary" else len(info.categories)
        wrong |= (present < 0) | (present >= n_values)
    if wrong.any():
        at = int(np.flatnonzero(defined)[wrong][0])
        raise StoreError(f"label {name!r}: {values[at]} at {info.level} {at} is no value of kind {info.kind!r}")
    stored = np.full(n, np.nan if info.kind in {"number", "cyclic"} else 0, STORED_AS[info.kind])
    stored[defined] = given
    return info, stored, defined


def _check_group(group: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", group):
        raise StoreError(f"label group {group!r}: letters, digits, '_', '-' and '.' only")
