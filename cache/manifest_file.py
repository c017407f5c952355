"""Manifests as files: JSON with a checksum of itself and a line for each shard; and what each says of a shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import xxhash

from workbench.cache.files import replace_file

FILE = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """A committed shard.

    Attributes
    ----------
    name : str
        File name in ``shards/``.
    first_row, n_rows : int
        Which rows of the store it holds.
    n_bytes : int
        Size of the file.
    digest : str
        xxh3_128 of the whole file.
    content : str
        xxh3_128 of the chunk checksums: the same for the same data, whatever version of HDF5 wrote the file.
    """

    name: str
    first_row: int
    n_rows: int
    n_bytes: int
    digest: str
    content: str

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry of the manifest; what a later version has added to it is left out."""
        return cls(**{each.name: entry[each.name] for each in fields(cls)})

    @property
    def end_row(self) -> int:
        """First row after it."""
        return self.first_row + self.n_rows

    @cached_property
    def text(self) -> str:
        """JSON form, keys sorted; kept, for the manifest is written at each commit and is mostly this."""
        return json.dumps(asdict(self), sort_keys=True)


def shard_name(number: int) -> str:
    """Return the file name of a shard, which counts from 0."""
    return f"{number:06d}.h5"


def write(folder: Path, content: Mapping[str, Any], shards: Sequence[ShardEntry]) -> None:
    """Replace a folder's manifest, atomically; a line for each shard, of which there may be many thousands."""
    entries = [shard.text for shard in shards]
    texts = {name: json.dumps(value, sort_keys=True, allow_nan=False) for name, value in content.items()}
    texts["shards"] = f"[{', '.join(entries)}]"
    # as `checksum` would have it of the whole, without making all of it anew
    whole = ", ".join(f"{json.dumps(name)}: {texts[name]}" for name in sorted(texts))
    its_checksum = xxhash.xxh3_128_hexdigest(f"{{{whole}}}".encode())
    head = json.dumps({**content, "checksum": its_checksum}, indent=1)[: -len("\n}")]
    lines = ",".join(f"\n  {entry}" for entry in entries)
    text = f'{head},\n "shards": [{lines}\n ]\n}}\n'

    def put(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    replace_file(folder / FILE, put)


def check_cut(shards: Sequence[ShardEntry], n_rows: int, rows_per_shard: int) -> None:
    """Raise ValueError where shards do not follow each other, full but for the last, under their own names."""
    for number, shard in enumerate(shards):
        first_row = number * rows_per_shard
        wanted = (shard_name(number), first_row, min(rows_per_shard, n_rows - first_row))
        if (shard.name, shard.first_row, shard.n_rows) != wanted or shard.n_rows < 1:
            raise ValueError(f"shard {number} is {shard.name} of {shard.n_rows} rows from row {shard.first_row} on")


def checksum(content: Any) -> str:
    """Return the checksum that a manifest of this content, its checksum taken off, says it has."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def fingerprint(content: Any) -> str:
    """Return the sha256 of a JSON form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
