"""Small stores of every number type, whose values are random bits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, Store, StoreWriter, open_store

RESID, PATTERN, MLP = "blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern", "blocks.1.hook_mlp_out"
SPECS = {
    RESID: ActivationSpec(("d_model",), (5,), "float32", "resid"),
    PATTERN: ActivationSpec(("head", "key"), (2, 3), "float16"),
    MLP: ActivationSpec(("d_model",), (4,), "bfloat16"),
}
MANIFEST = {
    "fingerprints": {"model": "m0", "dataset": "d0", "tokenizer": "t0"},
    "model": {"address": "zoo:test", "fingerprint": "m0", "dtype": "float32"},
    "dataset": {"address": "texts", "fingerprint": "d0", "folder": ""},
}


def make(
    folder: Path,
    lengths: Sequence[int] = (10, 4, 10, 10, 1, 7),
    *,
    specs: dict[str, ActivationSpec] | None = None,
    rows: Callable[[int], np.ndarray] = lambda length: np.ones(length, bool),
    bits: dict[str, np.ndarray] | None = None,
    stop: int | None = None,
    rows_per_shard: int = 8,
    seed: int = 0,
    labels: bool = False,
) -> tuple[Store, dict[str, np.ndarray]]:
    """Write a store: two sequences to a document, the first token of each special; returns it and the bits it holds."""
    plan = ExamplesBuilder()
    for number, length in enumerate(lengths):
        if number % 2 == 0:
            document = plan.document(f"dóc {number // 2}.py", {"held_out": number % 4 == 0})
        tokens = np.arange(length) + 100 * number
        plan.sequence(document, tokens, special=np.arange(length) == 0, rows=rows(length), window=number % 2)
    examples = plan.build()
    rng = np.random.default_rng(seed)
    specs = SPECS if specs is None else specs
    bits = bits or {
        name: np.frombuffer(rng.bytes(examples.n_rows * spec.row_bytes), spec.stored).reshape(-1, *spec.shape)
        for name, spec in specs.items()
    }
    with StoreWriter(folder, specs, examples, MANIFEST, rows_per_shard=rows_per_shard) as writer:
        end = examples.n_rows if stop is None else stop
        for first in range(0, end, 555):
            writer.append({name: array[first : min(first + 555, end)] for name, array in bits.items()})
    store = open_store(folder)
    if labels:
        odd = np.arange(examples.n_rows) % 2
        mood = LabelInfo("mood", "texts", "document", "categories", ("good", "bad"))
        score = LabelInfo("score", "texts", "sequence", "number")
        store.add_labels("rows", {"odd": (LabelInfo("odd", "rows", "row", "binary"), odd, odd == 0)})
        n_documents, n_sequences = len(examples.documents), examples.n_sequences
        store.add_labels(
            "texts",
            {
                "mood": (mood, np.arange(n_documents) % 2, None),
                "score": (score, np.arange(n_sequences) / 7, None),
            },
        )
    return open_store(folder), bits


def digests(folder: Path) -> dict[str, str]:
    """Hash every file of a folder but HDF5 ones, into which HDF5 puts times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".h5")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module", autouse=True)
def disk_that_needs_no_sync() -> Iterator[None]:
    """Spare the disk the fsyncs: nothing here loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few rows, and pieces of `.npy` files of a few more, so that small stores have several."""
    for module in ("export_format", "importing"):
        monkeypatch.setattr(f"workbench.store_formats.{module}.BATCH_BYTES", 200)
    monkeypatch.setattr("workbench.store_formats.npy.PIECE_BYTES", 300)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., tuple[Store, dict[str, np.ndarray]]]:
    return make


@pytest.fixture(scope="session")
def specs() -> dict[str, ActivationSpec]:
    return SPECS


@pytest.fixture(scope="session")
def all_digests() -> Callable[[Path], dict[str, str]]:
    return digests
