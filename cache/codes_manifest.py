"""What a dictionary's codes over a store are, and which shards of them are committed. Replaced whole, never edited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.cache import manifest_file
from workbench.cache.errors import Damage, DamageError, StoreError
from workbench.cache.manifest_file import FILE, ShardEntry, check_cut, checksum, fingerprint
from workbench.cache.schema import FORMAT

FOLDER = "codes"
KIND = f"{FORMAT}: codes"
SCHEMA = 1
CHUNK_ENTRIES = 1 << 16
"""Entries that share a checksum."""

SMALL = 1 << 16
"""Up to so many latents their numbers are stored as uint16."""


@dataclass(frozen=True)
class CodesEntry(ShardEntry):
    """A committed shard of codes.

    Attributes
    ----------
    n_entries : int
        Active latents of all its rows.
    """

    n_entries: int


@dataclass(frozen=True)
class CodesManifest:
    """What ``manifest.json`` of a folder of codes says.

    Attributes
    ----------
    n_rows, n_latents : int
        Rows of the store; latents of the dictionary.
    rows_per_shard : int
        Every shard but the last has as many.
    dtype : "float32" or "float64"
        Of the activations.
    fingerprints : dict of str to str
        Of ``store`` and ``dictionary``, and whatever else decides the numbers.
    provenance : dict
        What is to be known besides, as JSON values.
    shards : tuple of CodesEntry
        In row order.
    finished : bool
        Whether every row is there.
    """

    n_rows: int
    n_latents: int
    rows_per_shard: int
    dtype: str
    fingerprints: dict[str, str]
    provenance: dict[str, Any]
    shards: tuple[CodesEntry, ...] = ()
    finished: bool = False

    @property
    def committed_rows(self) -> int:
        """Rows in committed shards."""
        return self.shards[-1].end_row if self.shards else 0

    @property
    def n_entries(self) -> int:
        """Active latents of all committed rows."""
        return sum(shard.n_entries for shard in self.shards)

    @property
    def latent_type(self) -> np.dtype[Any]:
        """Type in which numbers of latents are stored."""
        return np.dtype("<u2" if self.n_latents <= SMALL else "<u4")

    @property
    def value_type(self) -> np.dtype[Any]:
        """Type in which activations are stored."""
        return np.dtype({"float32": "<f4", "float64": "<f8"}[self.dtype])

    def identity(self) -> dict[str, Any]:
        """Return what must agree for two encodings to be parts of one."""
        return {"rows": self.n_rows, "latents": self.n_latents, "dtype": self.dtype, **self.fingerprints}

    def fingerprint(self) -> str:
        """Return a hash of the identity and of every committed value."""
        return fingerprint([self.identity(), [[shard.n_rows, shard.content] for shard in self.shards]])

    def write(self, folder: Path) -> None:
        """Replace the manifest, atomically."""
        content = {"format": KIND, "schema": SCHEMA, "chunk_entries": CHUNK_ENTRIES, **asdict(replace(self, shards=()))}
        del content["shards"]
        manifest_file.write(folder, content, self.shards)

    @classmethod
    def read(cls, store: Path, name: str) -> CodesManifest:
        """Read the manifest of the codes of a name.

        Raises
        ------
        StoreError
            If a newer version of this software wrote it.
        DamageError
            If it is damaged or is something else.
        """
        path = store / FOLDER / name / FILE
        where = f"{FOLDER}/{name}/{FILE}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kind, schema, written = content["format"], content["schema"], content.pop("checksum")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamageError(store, Damage(where, f"cannot be read ({error})")) from error
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(
                f"{store}: codes {name!r} were written in schema {schema}; this version reads up to {SCHEMA}: upgrade "
                "interp-workbench"
            )
        if kind != KIND or written != checksum(content):
            raise DamageError(store, Damage(where, "its contents differ from its checksum"))
        try:
            manifest = cls.from_json(content)
            manifest.value_type  # noqa: B018 - there is one
            check_cut(manifest.shards, manifest.n_rows, manifest.rows_per_shard)
        except (ValueError, KeyError, TypeError) as error:  # with a right checksum: written wrongly
            raise DamageError(store, Damage(where, f"is not what it should be ({error!r})")) from error
        return manifest

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CodesManifest:
        """Read the JSON form, checksum taken off."""
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "shards": tuple(map(CodesEntry.from_json, content["shards"]))})
