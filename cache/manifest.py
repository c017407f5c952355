"""The manifest: what the store is and which shards are committed. Replaced whole, never edited."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import manifest_file
from workbench.cache.errors import Damage, DamageError, StoreError
from workbench.cache.int8 import from_text
from workbench.cache.manifest_file import FILE, ShardEntry, check_cut, checksum, fingerprint
from workbench.cache.schema import FORMAT, SCHEMA, ActivationSpec, Modality, schema_of


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes
    ----------
    modality : "text" or "vision"
        Of the examples.
    n_rows : int
        Rows of the finished store.
    rows_per_shard, chunk_rows : int
        How rows are cut.
    activations : dict of str to ActivationSpec
        By hook point.
    fingerprints : dict of str to str
        Of model, dataset, tokenizer, and whatever else decides the numbers.
    examples : str
        Digest of the plan.
    provenance : dict
        What the capture wants to be known: addresses, positions, software. JSON values.
    shards : tuple of ShardEntry
        Committed, in row order, without gaps.
    finished : bool
        Whether all rows are there and the writer was closed.
    int8_factors : dict of str to str
        Factors of the hook points that are int8, as `workbench.cache.int8.to_text` writes them; empty until the first
        rows have decided them.
    """

    modality: Modality
    n_rows: int
    rows_per_shard: int
    chunk_rows: int
    activations: dict[str, ActivationSpec]
    fingerprints: dict[str, str]
    examples: str
    provenance: dict[str, Any]
    shards: tuple[ShardEntry, ...] = ()
    finished: bool = False
    int8_factors: dict[str, str] = field(default_factory=dict)

    @property
    def committed_rows(self) -> int:
        """Rows in committed shards."""
        return self.shards[-1].end_row if self.shards else 0

    @property
    def schema(self) -> int:
        """The oldest schema that can hold this store."""
        return schema_of(self.activations)

    @property
    def int8_hook_points(self) -> list[str]:
        """Hook points that are stored as int8."""
        return [name for name, spec in self.activations.items() if spec.dtype == "int8"]

    @property
    def undecided(self) -> bool:
        """Whether there are int8 hook points whose factors are not chosen yet."""
        return len(self.int8_factors) < len(self.int8_hook_points)

    def factors(self) -> dict[str, NDArray[np.float32]]:
        """Return the factors of each int8 hook point, float32 [...]; ones before the first rows have decided them."""
        shapes = {name: self.activations[name].shape for name in self.int8_hook_points}
        texts = self.int8_factors
        return {n: from_text(texts[n], s) if n in texts else np.ones(s, np.float32) for n, s in shapes.items()}

    def identity(self) -> dict[str, str]:
        """Return, by name, the hashes that must agree for two captures to be parts of one store."""
        activations = {name: spec.to_json() for name, spec in self.activations.items()}
        return {**self.fingerprints, "examples": self.examples, "activations": fingerprint(activations)}

    @cached_property
    def capture(self) -> str:
        """Hash of the identity: two stores with the same are of one capture."""
        return fingerprint(self.identity())

    def fingerprint(self) -> str:
        """Return a hash of the identity and of every committed value."""
        factors = [self.int8_factors] if self.int8_hook_points else []
        return fingerprint([self.identity(), self.n_rows, [[s.n_rows, s.content] for s in self.shards], *factors])

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as it is written, provenance at the top level, without its checksum."""
        return {
            "format": FORMAT,
            "schema": self.schema,
            "modality": self.modality,
            "n_rows": self.n_rows,
            "rows_per_shard": self.rows_per_shard,
            "chunk_rows": self.chunk_rows,
            "activations": {name: spec.to_json() for name, spec in self.activations.items()},
            "fingerprints": self.fingerprints,
            "examples": self.examples,
            "finished": self.finished,
            **({"int8_factors": self.int8_factors} if self.int8_hook_points else {}),
            **self.provenance,
            "shards": [asdict(shard) for shard in self.shards],
        }

    def write(self, folder: Path) -> None:
        """Replace the store's manifest, atomically."""
        content = replace(self, shards=()).to_json()
        del content["shards"]
        manifest_file.write(folder, content, self.shards)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a store's manifest.

        Raises
        ------
        StoreError
            If there is no store, it cannot be read, or a newer version of this software wrote it.
        DamageError
            If the file is damaged.
        """
        path = folder / FILE
        try:
            if not folder.is_dir():
                raise StoreError(f"there is no folder {folder}; an activation store is made by `workbench capture`")
            if not path.is_file():
                raise StoreError(f"{folder} is not an activation store: it has no {FILE}")
            content = json.loads(path.read_text(encoding="utf-8"))
            kind, schema = content["format"], content["schema"]
        except OSError as error:  # a name that is too long, a folder that is another's
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamageError(folder, Damage(FILE, f"cannot be read ({error})")) from error
        if kind != FORMAT:
            raise StoreError(f"{folder} is not an activation store: {FILE} is of format {kind!r}, not {FORMAT!r}")
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(
                f"{folder} was written in schema {schema}; this version reads up to {SCHEMA}: upgrade interp-workbench"
            )
        if content.pop("checksum", None) != checksum(content):
            raise DamageError(folder, Damage(FILE, "its contents differ from its checksum"))
        try:
            manifest = cls.from_json(content)
            if manifest.n_rows < 0 or manifest.rows_per_shard < 1 or manifest.chunk_rows < 1:
                raise ValueError("numbers of rows that cannot be")
            check_cut(manifest.shards, manifest.n_rows, manifest.rows_per_shard)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # with a right checksum: written wrongly
            raise DamageError(folder, Damage(FILE, f"is not what it should be ({error!r})")) from error
        return manifest

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Read the JSON form, checksum taken off."""
        return cls(
            modality=content["modality"],
            n_rows=content["n_rows"],
            rows_per_shard=content["rows_per_shard"],
            chunk_rows=content["chunk_rows"],
            activations={name: ActivationSpec.from_json(entry) for name, entry in content["activations"].items()},
            fingerprints=dict(content["fingerprints"]),
            examples=content["examples"],
            provenance={name: value for name, value in content.items() if name not in RESERVED},
            shards=tuple(ShardEntry.from_json(entry) for entry in content["shards"]),
            finished=content["finished"],
            int8_factors=dict(content.get("int8_factors", {})),
        )


RESERVED = {"format", "schema", "checksum", *Manifest.__dataclass_fields__} - {"provenance"}


def check_provenance(given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Split what a capture gives into fingerprints and provenance, checked and with our own software added.

    Raises
    ------
    StoreError
        If a name is taken by the schema, fingerprints are not strings, or a value has no JSON form.
    """
    fingerprints = dict(given.get("fingerprints", {}))
    if not all(isinstance(value, str) for value in fingerprints.values()):
        raise StoreError(f"fingerprints {fingerprints}: must be strings")
    if taken := {"examples", "activations"} & set(fingerprints):
        raise StoreError(f"a fingerprint may not be called {', '.join(sorted(taken))}: the store has its own")
    provenance = {name: value for name, value in given.items() if name != "fingerprints"}
    if taken := set(provenance) & RESERVED:
        raise StoreError(f"the manifest's {', '.join(sorted(taken))} is the store's own: choose another name")
    ours = {
        "python": sys.version.split()[0],
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "numpy": np.__version__,
        "xxhash": xxhash.VERSION,
    }
    provenance["software"] = {**ours, **provenance.get("software", {})}
    try:
        return fingerprints, json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the manifest must have a JSON form: {error}") from error
