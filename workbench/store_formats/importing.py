"""Importing activations of other programs into a store."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import xxhash
from numpy.typing import NDArray

from workbench.cache import Store, StoreWriter, open_store
from workbench.cache import labels as label_files
from workbench.cache.files import BLOCK_BYTES, as_folder, cannot_write
from workbench.cache.prefetch import Prefetcher
from workbench.errors import UserError
from workbench.progress import Ticker, progress
from workbench.store_formats.export_rows import BATCH_BYTES
from workbench.store_formats.export_source import source_of_export
from workbench.store_formats.records import TOKENIZER, read_metadata, software
from workbench.store_formats.source import KINDS, SUFFIXES, Options, Source, source_of_arrays, source_of_saelens

log = logging.getLogger("workbench")


def import_store(
    source: str | Path,
    *,
    out: str | Path,
    kind: str | None = None,
    hooks: str | Sequence[str] = (),
    layout: str | None = None,
    tokens: str | None = None,
    documents: str | None = None,
    special_tokens: Sequence[int] = (),
    store_dtype: str | None = None,
) -> Store:
    """Copy activations of another program into a store.

    The same call goes on with a store that it left unfinished, and does nothing to a finished one; a source whose files
    have changed since is refused. What `export_store` wrote comes back as the store that it was, documents, labels and
    tokenizer with it.

    Parameters
    ----------
    source : path
        A folder of SAELens's cached activations; a ``.npy``, ``.safetensors`` or ``.pt`` file, or a folder of them; a
        folder that `export_store` wrote.
    out : path
        Folder of the store.
    kind : "saelens", "npy", "safetensors" or "pt", optional
        Told from the files if not given.
    hooks : str or sequence of str
        Which arrays are which hook point: ``NAME=PATTERN``, ``PATTERN`` or ``NAME``; see
        `workbench.store_formats.choice.choose`.
    layout : "rows" or "sequences", optional
        Whether arrays are [rows, ...], the default, or [sequences, positions, ...].
    tokens : str, optional
        Pattern of the arrays of token ids, with an entry for each row.
    documents : str, optional
        Pattern of the arrays of documents, with an entry for each row or sequence; or ``rows``: each row is a document.
        By default all rows are of one document; in the layout of sequences, each sequence is one.
    special_tokens : sequence of int
        Ids of special tokens, such as the one that begins a text: their rows are flagged.
    store_dtype : "float32", "float16", "bfloat16" or "int8", optional
        Type to store; the values' own if not given.

    Returns
    -------
    Store
        Finished.

    Raises
    ------
    UserError
        For wrong input, a source that cannot be read, and a value that overflows.
    workbench.cache.StoreError
        If the folder holds another store or something else, or cannot be written.
    """
    path = as_folder(source).expanduser()
    asked = (hooks,) if isinstance(hooks, str) else tuple(hooks)
    options = Options(asked, layout, tokens, documents, tuple(special_tokens), store_dtype)
    opened = open_source(path, kind, options)
    digests = hash_files(opened)
    specs = {name: column.spec for name, column in opened.columns.items()}
    folder = as_folder(out)
    with StoreWriter(folder, specs, opened.examples, describe_import(opened, digests)) as writer:
        if writer.finished:
            log.info("%s is finished: %d rows", folder, writer.n_rows)
            return open_store(folder)
        if opened.companions is not None:
            copy_companions(opened.companions, open_store(folder))
        if writer.next_row:
            log.info("%s: going on from row %d of %d", folder, writer.next_row, writer.n_rows)
        copy_rows(opened, writer)
    return open_store(folder)


def open_source(path: Path, kind: str | None, options: Options) -> Source:
    """Find out what a source is, and understand it."""
    if not path.exists():
        raise UserError(f"there is no {path}")
    metadata = read_metadata(path) if path.is_dir() else None
    if metadata is not None and kind in (None, metadata.get("to")):
        return source_of_export(path, metadata, options)
    chosen = kind or kind_of(path)
    if chosen not in KINDS:
        raise UserError(f"format {chosen!r}: stores are imported from {', '.join(KINDS)}")
    return source_of_saelens(path, options) if chosen == "saelens" else source_of_arrays(path, chosen, options)


def kind_of(path: Path) -> str:
    """Tell the format of a source from the names of its files."""
    from workbench.store_formats.saelens_arrays import is_cached_activations

    if path.is_dir() and is_cached_activations(path):
        return "saelens"
    if (path / "manifest.json").is_file():
        raise UserError(f"{path} is an activation store already: copy the folder, or export it")
    names = [path.name] if path.is_file() else sorted(entry.name for entry in path.iterdir())
    found = {kind: next((name for name in names if name.endswith(suffix)), None) for kind, suffix in SUFFIXES.items()}
    there = {kind: name for kind, name in found.items() if name is not None}
    if len(there) > 1:
        raise UserError(
            f"{path} holds {' and '.join(there.values())}: say which to import with --from {'|'.join(there)}"
        )
    if not there:
        example = f", such as {names[0]}" if names and path.is_dir() else ""
        raise UserError(
            f"{path} is nothing that can be imported{example}: a dataset folder of SAELens's, or files that end in "
            f"{', '.join(SUFFIXES.values())} are wanted"
        )
    return next(iter(there))


def hash_files(opened: Source) -> dict[Path, str]:
    """Hash every file of a source, and hold it against what the source says of it.

    Raises
    ------
    UserError
        If a file is missing, cannot be read, or is not what it was when it was exported.
    """
    digests = {}
    try:
        sizes = {file: file.stat().st_size for file in opened.files}
        with progress(sum(sizes.values()), "bytes", "hash", log) as ticker:
            for file in opened.files:
                digests[file] = hashed(file, ticker)
                if opened.digests.get(file, digests[file]) != digests[file]:
                    raise UserError(f"{file} is damaged: it is not what was exported")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    return digests


def hashed(file: Path, ticker: Ticker) -> str:
    """Return the xxh3_128 of a file, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    block = bytearray(BLOCK_BYTES)
    with file.open("rb", buffering=0) as opened:
        while n := opened.readinto(block):
            digest.update(memoryview(block)[:n])
            ticker.advance(n)
    return digest.hexdigest()


def describe_import(opened: Source, digests: dict[Path, str]) -> dict[str, Any]:
    """Return what the manifest says of an import; the fingerprints are held against those of a later call."""
    source = json.dumps([opened.kind, opened.arrays, [digests[file] for file in opened.files]])
    return {
        "model": {"address": "", "fingerprint": ""},
        "dataset": {"address": "", "fingerprint": "", "folder": ""},
        **opened.provenance,
        "fingerprints": {**opened.fingerprints, "source": xxhash.xxh3_128_hexdigest(source.encode())},
        "import": {"from": opened.kind, "source": str(opened.path.resolve()), "files": len(opened.files)},
        "software": {**opened.provenance.get("software", {}), **software()},
    }


def copy_companions(folder: Path, store: Store) -> None:
    """Give a store the labels and the tokenizer that lie beside exported activations."""
    for path in label_files.group_files(folder):
        labels = label_files.read_group(folder, path)
        values = {name: (label.info, *label_files.read_values(folder, label)) for name, label in labels.items()}
        store.add_labels(path.stem, values)
    if (folder / TOKENIZER).is_dir():
        try:
            shutil.copytree(folder / TOKENIZER, store.folder / TOKENIZER, dirs_exist_ok=True)
        except OSError as error:
            raise cannot_write(store.folder / TOKENIZER, error) from error


def copy_rows(opened: Source, writer: StoreWriter) -> None:
    """Append the rows that are still wanting, read ahead on a thread."""
    row_bytes = sum(column.spec.row_bytes for column in opened.columns.values())
    step = max(1, BATCH_BYTES // row_bytes)
    done = writer.next_row

    def stretches() -> Generator[dict[str, NDArray[Any]], None, None]:
        for first in range(done, writer.n_rows, step):
            yield opened.read(first, min(first + step, writer.n_rows))

    with progress(writer.n_rows, "rows", "import", log, done=done) as ticker, closing(Prefetcher(stretches())) as ahead:
        for values in ahead:
            writer.append(values)
            ticker.advance(len(next(iter(values.values()))))
