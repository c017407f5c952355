"""The store as its readers see it: committed rows, where they came from, and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.cache import labels as label_files
from workbench.cache.codes import Codes, codes_names, open_codes
from workbench.cache.errors import Damage, DamageError, StoreError, nearest
from workbench.cache.examples import Examples, RowContext
from workbench.cache.files import as_folder
from workbench.cache.int8 import restore, stored_columns
from workbench.cache.labels import LabelInfo, StoredLabel
from workbench.cache.loader import BUFFER_BYTES, Sequential, Shuffled
from workbench.cache.manifest import Manifest
from workbench.cache.narrow import widen
from workbench.cache.rows import RowReader, row_numbers
from workbench.cache.schema import ROWS, ordinary_rows
from workbench.cache.selection import Selection
from workbench.cache.tensors import to_tensor
from workbench.cache.verify import verify

if TYPE_CHECKING:
    from torch import Tensor

HookPoints = str | Sequence[str]
_POINTS_TOLD = 6


def open_store(folder: str | Path) -> Store:
    """Open a store for reading; reads its manifest and nothing else.

    Raises
    ------
    StoreError
        If there is no store, a newer version wrote it, or the manifest is damaged.
    """
    return Store(as_folder(folder))


class Store:
    """An activation store, opened for reading; what was committed when it was opened is what it has.

    Opened by `open_store`. May be shared between threads, pickled, and opened while a writer is at work.

    Attributes
    ----------
    folder : Path
        Where it is.
    hook_points : dict of str to ActivationSpec
        What it holds, in the order of the forward pass.
    n_rows : int
        Committed rows.
    n_rows_planned : int
        Rows of the finished store.
    finished : bool
        Whether all are committed.
    """

    def __init__(self, folder: Path, n_shards: int | None = None) -> None:
        self.folder = folder
        manifest = Manifest.read(folder)
        shards = manifest.shards[:n_shards]
        finished = manifest.finished and len(shards) == len(manifest.shards)
        self._manifest = replace(manifest, shards=shards, finished=finished)
        self._reader = RowReader(folder, self._manifest)
        self.hook_points = dict(self._manifest.activations)
        self.n_rows = self._manifest.committed_rows
        self.n_rows_planned = self._manifest.n_rows
        self.finished = self._manifest.finished

    def __reduce__(self) -> tuple[type[Store], tuple[Path, int]]:
        return Store, (self.folder, len(self._manifest.shards))  # the same rows, even if more are committed by then

    def __repr__(self) -> str:
        rows = f"{self.n_rows:,} rows" if self.finished else f"{self.n_rows:,} of {self.n_rows_planned:,} rows so far"
        points = [f"{name} {list(spec.shape)} {spec.dtype}" for name, spec in self.hook_points.items()]
        if len(points) > _POINTS_TOLD:
            points[_POINTS_TOLD - 1 :] = [f"and {len(points) - _POINTS_TOLD + 1} more hook points"]
        return f"Store({str(self.folder)!r}, {rows}: {', '.join(points)})"

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is written: fingerprints, provenance, how rows are cut, shards."""
        return self._manifest.to_json()

    @property
    def n_bytes(self) -> int:
        """Bytes of all committed shards: what `verify` reads."""
        return sum(shard.n_bytes for shard in self._manifest.shards)

    def fingerprint(self) -> str:
        """Return a hash of what was captured and of every committed value; labels are not in it."""
        return self._manifest.fingerprint()

    # --- where rows come from -------------------------------------------------------------------------------------
    @cached_property
    def examples(self) -> Examples:
        """The plan: every sequence or image, rows or not."""
        return Examples.read(self.folder, self._manifest.examples)

    @cached_property
    def origins(self) -> NDArray[Any]:
        """Record array [rows]: document, sequence, position, token (vision: patch), special."""
        origins = np.empty(self.n_rows, self._reader.columns[ROWS].dtype)
        self._reader.read_range(ROWS, 0, origins, verify=True)
        origins.flags.writeable = False
        return origins

    @cached_property
    def ordinary(self) -> NDArray[np.bool_]:
        """Rows [rows] that are no special tokens; all where there are no others, as in captures of class tokens."""
        return ordinary_rows(self.origins)

    @property
    def documents(self) -> list[str]:
        """Names of documents, by document index."""
        return list(self.examples.documents)

    @property
    def document_fields(self) -> list[dict[str, Any]]:
        """Plain values of each document (``held_out``, operands), by document index."""
        return [dict(fields) for fields in self.examples.document_fields]

    def context(self, row: int, before: int, after: int) -> RowContext:
        """Return the tokens around a row, special ones included, cut at the ends of its sequence.

        Parameters
        ----------
        row : int
            0 <= row < n_rows.
        before, after : int
            How many positions on either side, >= 0.
        """
        if not 0 <= row < self.n_rows or before < 0 or after < 0:
            raise StoreError(
                f"context({row}, {before}, {after}): rows are 0 to {self.n_rows - 1}, before and after at least 0"
            )
        return self.examples.around(row, before, after)

    # --- activations ----------------------------------------------------------------------------------------------
    def read(self, hook_point: str, rows: slice | ArrayLike | None = None, *, verify: bool = True) -> NDArray[Any]:
        """Read rows of a hook point into memory.

        Parameters
        ----------
        hook_point : str
            One of `hook_points`.
        rows : slice, bool mask [rows], or integers, optional
            Which, in this order; by default all. Every chunk is read once, whatever the order.
        verify : bool
            Hold every chunk that is touched against its checksum; False reads no more than the rows' own bytes where
            these lie together, and gives wrong numbers where the disk does.

        Returns
        -------
        array [rows, ...]
            float32 or float16 as stored; bfloat16 and int8 as float32.

        Raises
        ------
        StoreError
            For an unknown hook point (the message has the nearest three) or a row out of range.
        DamageError
            If a shard is damaged; the message names shard, dataset and chunk.
        """
        values = self._read(hook_point, rows, verify)
        return widen(values) if self.hook_points[hook_point].dtype == "bfloat16" else values

    def read_tensor(self, hook_point: str, rows: slice | ArrayLike | None = None, *, verify: bool = True) -> Tensor:
        """Read rows of a hook point as a tensor of the stored dtype, of int8 as float32; otherwise as `read`."""
        return to_tensor(self._read(hook_point, rows, verify), self.hook_points[hook_point].dtype)

    def read_stored(
        self, hook_points: HookPoints, rows: slice | ArrayLike | None = None, *, verify: bool = True
    ) -> dict[str, NDArray[Any]]:
        """Read rows as they are stored, for `StoreWriter.append` to take bit for bit; otherwise as `read`.

        Returns
        -------
        dict of str to array [rows, ...]
            By hook point: bfloat16 as uint16 bit patterns, int8 as whole numbers with their scales [rows] under
            ``scales/HOOK_POINT``; their factors are `int8_factors`.
        """
        names = self._known([hook_points] if isinstance(hook_points, str) else hook_points)
        return {name: self._read_column(name, rows, verify) for name in stored_columns(names, self._reader.factors)}

    @property
    def int8_factors(self) -> dict[str, NDArray[np.float32]]:
        """Factor of each entry of a row, of the hook points that are stored as int8."""
        return dict(self._reader.factors)

    def _read(self, hook_point: str, rows: slice | ArrayLike | None, verify: bool) -> NDArray[Any]:
        stored = self.read_stored(hook_point, rows, verify=verify)
        return restore(stored, [hook_point], self._reader.factors)[hook_point]

    def _read_column(self, name: str, rows: slice | ArrayLike | None, verify: bool) -> NDArray[Any]:
        wanted = slice(None) if rows is None else rows
        if isinstance(wanted, slice) and wanted.step in (None, 1):
            first, end, _ = wanted.indices(self.n_rows)
            column = self._reader.columns[name]
            out = np.empty((max(0, end - first), *column.shape), column.dtype)
            self._reader.read_range(name, first, out, verify=verify)
            return out
        return self._reader.read_rows(name, row_numbers(wanted, self.n_rows), verify=verify)

    def shuffled(
        self,
        hook_points: HookPoints,
        *,
        batch_rows: int,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
        special: bool = False,
        rows: slice | ArrayLike | None = None,
        verify: bool = True,
        buffer_bytes: int = BUFFER_BYTES,
        order_of: HookPoints | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Shuffled:
        """Go once over the rows in a seeded order, reading whole chunks ahead on threads.

        Parameters
        ----------
        hook_points : str or sequence of str
            Several are aligned: row i of each tensor is the same row of the store.
        batch_rows : int
            Rows of each batch but a shorter last one, >= 1.
        seed, epoch : int
            >= 0; together they decide the order.
        rank, n_ranks : int
            Go over one of n_ranks parts of the rows: all ranks together have each row once. Whole chunks are dealt out;
            every rank gets equally many batches, nearly of `batch_rows` rows. The order is that of n_ranks ranks.
        special : bool
            Whether rows of special tokens are among them.
        rows : slice, bool mask [rows], or integers, optional
            Keep to these rows: those of training documents.
        verify : bool
            Hold every chunk against its checksum.
        buffer_bytes : int
            Memory for chunks; rows are mixed within half of it.
        order_of : str or sequence of str, optional
            Hook points: give the rows in the order in which a pass over these would, which follows from how much memory
            they need; that of this pass is in proportion.
        state : mapping, optional
            From `Shuffled.state` of a pass with the same seed over the same rows, of any rank: go on after its last
            batch. It says which epoch that was.

        Returns
        -------
        iterator
            Of {hook point: tensor [rows, ...] of the stored dtype, of int8 float32}, or of the tensor alone if one name
            was given as a str. Its `rows` are the row numbers of the last batch. Close it, or drop it, to stop reading
            ahead.
        """
        names = self._known([hook_points] if isinstance(hook_points, str) else hook_points)
        mixed = names if order_of is None else self._known([order_of] if isinstance(order_of, str) else order_of)
        if seed < 0 or epoch < 0:
            raise StoreError(f"seed={seed}, epoch={epoch}: must not be negative")
        if not 0 <= rank < n_ranks:
            raise StoreError(f"rank={rank}, n_ranks={n_ranks}: ranks are counted from 0")
        return Shuffled(
            self._reader,
            Selection(self._reader, rows, special),
            {name: self.hook_points[name] for name in names},
            alone=isinstance(hook_points, str),
            batch_rows=batch_rows,
            seed=seed,
            epoch=epoch,
            rank=rank,
            n_ranks=n_ranks,
            verify=verify,
            buffer_bytes=buffer_bytes,
            mixed=mixed,
            state=state,
        )

    def sequential(
        self,
        hook_points: HookPoints,
        *,
        batch_rows: int,
        special: bool = True,
        rows: slice | ArrayLike | None = None,
        verify: bool = True,
    ) -> Sequential:
        """Go once over the rows in their own order, reading ahead; parameters as for `shuffled`.

        Returns
        -------
        iterator
            Of (rows, batch): `rows` is a slice, or row numbers (int64) where some rows are left out; `batch` is
            {hook point: tensor}, or the tensor alone if one name was given as a str.
        """
        names = self._known([hook_points] if isinstance(hook_points, str) else hook_points)
        activations = {name: self.hook_points[name] for name in names}
        alone = isinstance(hook_points, str)
        selection = Selection(self._reader, rows, special)
        return Sequential(self._reader, selection, activations, alone=alone, batch_rows=batch_rows, verify=verify)

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        for name in names:
            if name not in self.hook_points:
                near = nearest(name, self.hook_points)
                raise StoreError(f"{self.folder} has no hook point {name!r}; nearest: {near}")
        if not names or len(set(names)) < len(names):
            raise StoreError(f"hook points {list(names)}: give at least one, and each once")
        return names

    # --- labels ---------------------------------------------------------------------------------------------------
    @property
    def labels(self) -> dict[str, LabelInfo]:
        """What the labels of the store mean, by name."""
        return {name: stored.info for name, stored in self._stored_labels().items()}

    def label(self, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return a label's value at every row, and where it is defined; those of sequences and documents are spread.

        Returns
        -------
        values : array [rows]
            float64 for ``number`` and ``cyclic``, NaN where not defined; int64 for the other kinds, 0 where not
            defined.
        defined : bool [rows]
            Where the label has a value.

        Raises
        ------
        StoreError
            For an unknown label; the message has the nearest three.
        """
        found = self._stored_labels()
        if name not in found:
            raise StoreError(f"{self.folder} has no label {name!r}; nearest: {nearest(name, found)}")
        level = found[name].info.level
        values, defined = label_files.read_values(self.folder, found[name])
        at = slice(self.n_rows) if level == "row" else self.origins[level]
        fits = len(values) == self.n_rows_planned if isinstance(at, slice) else len(values) > at.max(initial=-1)
        if not fits:  # an older version's file, which does not say whose labels it has
            where = f"{label_files.FOLDER}/{found[name].info.group}.h5"
            raise DamageError(self.folder, Damage(where, f"has {len(values)} {level}s, the store others", f"/{name}"))
        return values[at], defined[at]

    def add_labels(self, group: str, labels: Mapping[str, tuple[LabelInfo, ArrayLike, ArrayLike | None]]) -> None:
        """Replace a group of labels, atomically; nothing else is touched, and an empty mapping removes the group.

        Parameters
        ----------
        group : str
            File name in ``labels/``.
        labels : mapping of name to (LabelInfo, values [n], defined bool [n] or None)
            n is the number of planned rows, sequences or documents, by the label's level. None: defined everywhere.

        Raises
        ------
        StoreError
            For a wrong length, a value that the kind does not allow, or a name that another group has.
        """
        label_files.write_group(self.folder, group, labels, self.examples)

    def labels_fingerprint(self, names: Sequence[str] | None = None) -> str:
        """Return a hash of the meaning and values of some labels, by default of all."""
        found = self._stored_labels()
        digests = [f"{name} {found[name].digest}" for name in sorted(found if names is None else names)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _stored_labels(self) -> dict[str, StoredLabel]:
        return label_files.read_infos(self.folder, self._manifest.examples)

    # --- codes ----------------------------------------------------------------------------------------------------
    @property
    def codes_names(self) -> list[str]:
        """Names of the dictionaries' codes that lie beside the rows, finished or not."""
        return codes_names(self.folder)

    def codes(self, name: str) -> Codes:
        """Open a dictionary's codes over this store: its active latents and their activations, by row and by latent.

        Raises
        ------
        StoreError
            If there are none of that name, or they are of other rows than the store has now.
        DamageError
            If their manifest is damaged.
        """
        codes = open_codes(self.folder, name)
        if codes.fingerprints.get("store") != self.fingerprint():
            raise StoreError(f"{self.folder}: codes {name!r} are of other rows than the store has now: encode it again")
        return codes

    # --- integrity ------------------------------------------------------------------------------------------------
    def verify(self, progress: Callable[[int], object] | None = None) -> list[Damage]:
        """Check every byte of shards, codes and tokenizer, and all that plan, labels and index say.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of bytes checked since its last call, every megabyte; `n_bytes` is the total. On
            other threads than yours, one at a time.

        Returns
        -------
        list of Damage
            Each names shard, dataset and chunk; empty if all is well.
        """
        return verify(self.folder, self._manifest, progress)
