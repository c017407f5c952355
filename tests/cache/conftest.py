"""Small stores, and ways to look at them around the code under test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from workbench.cache import ActivationSpec, Examples, ExamplesBuilder, StoreWriter

RESID = "blocks.0.hook_resid_post"
SPECS = {
    RESID: ActivationSpec(("d_model",), (5,), "float32", "resid"),
    "blocks.0.attn.hook_pattern": ActivationSpec(("head", "key"), (2, 3), "float16"),
    "blocks.1.hook_resid_post": ActivationSpec(("d_model",), (4,), "bfloat16"),
}
MANIFEST = {"fingerprints": {"model": "m0", "dataset": "d0", "tokenizer": "t0"}, "model": "zoo:test"}


def plan(lengths: Sequence[int]) -> Examples:
    """One document per two sequences; the first token of each is special."""
    builder = ExamplesBuilder()
    for number, length in enumerate(lengths):
        if number % 2 == 0:
            document = builder.document(f"doc{number // 2}.py", {"held_out": number % 4 == 0})
        tokens = np.arange(length) + 100 * number
        offsets = np.stack([np.arange(length), np.arange(length) + 1], 1)
        builder.sequence(document, tokens, special=np.arange(length) == 0, offsets=offsets, window=number % 2)
    return builder.build()


def values(specs: Mapping[str, ActivationSpec], n_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random bit patterns of the stored types: NaN, infinities and subnormals are among them."""
    rng = np.random.default_rng(seed)
    return {
        name: np.frombuffer(rng.bytes(n_rows * spec.row_bytes), spec.stored).reshape(n_rows, *spec.shape)
        for name, spec in specs.items()
    }


def write(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    examples: Examples,
    *,
    batch_rows: int = 7,
    end: int | None = None,
    **options: Any,
) -> StoreWriter:
    """Write rows from where the store is to `end`, then close."""
    specs = {name: SPECS[name] for name in arrays}
    with StoreWriter(folder, specs, examples, MANIFEST, **options) as writer:
        stop = examples.n_rows if end is None else end
        while writer.next_row < stop:
            rows = slice(writer.next_row, min(writer.next_row + batch_rows, stop))
            writer.append({name: array[rows] for name, array in arrays.items()})
    return writer


def datasets(folder: Path) -> dict[str, bytes]:
    """Every dataset and attribute of every HDF5 file of a store, by plain h5py; types and shapes with the bytes."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path, "r") as file:

            def note(name: str, item: Any, path: Path = path) -> None:
                for key, value in item.attrs.items():
                    found[f"{path.relative_to(folder)}:{name}@{key}"] = repr(value).encode()
                if isinstance(item, h5py.Dataset):
                    content = item[()]
                    data = content.tobytes() if content.dtype != object else repr(content.tolist()).encode()
                    found[f"{path.relative_to(folder)}:{name}"] = f"{item.dtype} {item.shape}".encode() + data

            file.visititems(note)
    return found


@pytest.fixture(scope="module", autouse=True)
def disk_that_needs_no_sync() -> Iterator[None]:
    """Spare the disk some thousand fsyncs: nothing here loses power. Which are made, and when, is a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def make_plan() -> Callable[[Sequence[int]], Examples]:
    return plan


@pytest.fixture(scope="session")
def make_values() -> Callable[..., dict[str, np.ndarray]]:
    return values


@pytest.fixture(scope="session")
def write_store() -> Callable[..., StoreWriter]:
    return write


@pytest.fixture(scope="session")
def all_datasets() -> Callable[[Path], dict[str, bytes]]:
    return datasets


@pytest.fixture(scope="session")
def specs() -> dict[str, ActivationSpec]:
    return SPECS


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return MANIFEST


@pytest.fixture(scope="session")
def examples() -> Examples:
    """100 rows in 10 sequences of 5 documents."""
    return plan([10] * 10)


@pytest.fixture(scope="session")
def arrays(examples: Examples) -> dict[str, np.ndarray]:
    return values(SPECS, examples.n_rows)


@pytest.fixture
def store_folder(tmp_path: Path, arrays: dict[str, np.ndarray], examples: Examples, small_chunks: None) -> Path:
    """A finished store of 100 rows in 5 shards of 24 rows (the last of 4), chunks of 8."""
    write(tmp_path / "acts", arrays, examples, rows_per_shard=24)
    return tmp_path / "acts"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 rows, so that small stores have several."""
    monkeypatch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", 8)
