import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from workbench.cache import ActivationSpec, DamageError, ExamplesBuilder, StoreError, StoreWriter, open_store

HOOK = "blocks.0.hook_mlp_out"
RESID = "blocks.0.hook_resid_post"
batches = st.lists(npst.arrays(np.uint16, st.tuples(st.integers(0, 9), st.just(4))), max_size=6)


@settings(max_examples=25)
@given(
    batches=batches,
    rows_per_shard=st.integers(1, 8),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    stops=st.sets(st.integers(0, 5)),
)
def test_any_batches_any_shards_any_bits_any_stops(batches, rows_per_shard, dtype, stops):
    """Rows come back bit for bit, however they were cut and however often the writer was closed on the way."""
    spec = ActivationSpec(("d_mlp",), (4,), dtype)
    want = np.concatenate([np.empty((0, 4), np.uint16), *batches])
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(len(want)))
    with TemporaryDirectory() as folder:  # not tmp_path: that is one folder for all examples

        def writer():
            return StoreWriter(folder, {HOOK: spec}, builder.build(), {}, rows_per_shard=rows_per_shard)

        for stop in [*sorted(stops), len(batches)]:
            with writer() as unfinished:
                at = unfinished.next_row
                done = sum(len(b) for b in batches[:stop])
                if done > at:
                    unfinished.append({HOOK: want[at:done].view(spec.stored)})
            assert unfinished.next_row % rows_per_shard == 0 or unfinished.next_row == len(want)
        assert unfinished.finished
        store = open_store(folder)
        assert store.finished
        assert store.read_tensor(HOOK).view(torch.int16).numpy().tobytes() == want.tobytes()
        assert store.origins["position"].tolist() == list(range(len(want)))
        assert store.verify() == []


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the index, which HDF5 gives a time; its datasets are compared beside."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "index.h5")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("stops", [[50], [23, 24, 25], [1, 99, 100], list(range(0, 100, 9))])
def test_stopped_and_continued_is_byte_for_byte_the_same(
    tmp_path, write_store, all_datasets, arrays, examples, small_chunks, stops
):
    write_store(tmp_path / "once", arrays, examples, rows_per_shard=24)
    for stop in stops:
        write_store(tmp_path / "often", arrays, examples, batch_rows=5, end=stop, rows_per_shard=24)
    writer = write_store(tmp_path / "often", arrays, examples, batch_rows=11)  # the store knows its own shards
    assert writer.finished
    assert files(tmp_path / "often") == files(tmp_path / "once")
    assert all_datasets(tmp_path / "often") == all_datasets(tmp_path / "once")


def test_readers_see_committed_shards_only(tmp_path, specs, write_store, arrays, examples, manifest):
    folder = tmp_path / "acts"
    with StoreWriter(folder, specs, examples, manifest, rows_per_shard=10) as writer:
        assert (open_store(folder).n_rows, writer.next_row, writer.n_rows) == (0, 0, 100)
        writer.append({name: array[:35] for name, array in arrays.items()})
        assert writer.next_row == 35
        writer._wait()
        store = open_store(folder)
        assert (store.n_rows, store.n_rows_planned, store.finished) == (30, 100, False)
        assert "30 of 100 rows so far" in repr(store)
        assert all(store.read(name).shape[0] == 30 for name in arrays)
        assert not store.examples.n_rows < 100
    assert writer.next_row == 30  # the open shard is dropped
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["000000.h5", "000001.h5", "000002.h5"]


def test_a_finished_store_is_left_alone(store_folder, write_store, arrays, examples):
    before = {name: (store_folder / name).stat().st_mtime_ns for name in files(store_folder)}
    assert write_store(store_folder, arrays, examples).finished
    assert {name: (store_folder / name).stat().st_mtime_ns for name in files(store_folder)} == before


def test_fingerprints_are_compared_and_provenance_is_not(store_folder, specs, examples, manifest):
    StoreWriter(store_folder, specs, examples, {**manifest, "model": "tl:moved"}).close()
    other = {"fingerprints": {**manifest["fingerprints"], "model": "m1"}}
    with pytest.raises(StoreError, match=r"captured with another model \(model m0, now m1\): give another folder"):
        StoreWriter(store_folder, specs, examples, other)
    with pytest.raises(StoreError, match="another dtype"):
        StoreWriter(store_folder, specs, examples, {"fingerprints": {**manifest["fingerprints"], "dtype": "float16"}})


def test_other_hook_points_examples_or_shards_are_refused(store_folder, specs, examples, manifest, make_plan):
    with pytest.raises(StoreError, match="other hook points, shapes, types or compression"):
        StoreWriter(store_folder, {"a": next(iter(specs.values()))}, examples, manifest)
    with pytest.raises(StoreError, match="other examples or rows"):
        StoreWriter(store_folder, specs, make_plan([10] * 9 + [11]), manifest)
    with pytest.raises(StoreError, match="has shards of 24 rows, not 25"):
        StoreWriter(store_folder, specs, examples, manifest, rows_per_shard=25)
    StoreWriter(store_folder, specs, examples, manifest).close()  # none of these kept the lock


BAD_BATCHES = [
    pytest.param(lambda _: {}, "append got hook points", id="nothing"),
    pytest.param(lambda a: {**a, "extra": a[RESID]}, "append got hook points", id="one too many"),
    pytest.param(lambda a: {**a, RESID: a[RESID][1:]}, "numbers of rows", id="ragged"),
    pytest.param(lambda a: {**a, RESID: np.float32(1)}, "numbers of rows", id="a number"),
    pytest.param(
        lambda a: {k: np.repeat(v, 2, 0) for k, v in a.items()}, "200 rows at row 0; the plan has 100", id="2x"
    ),
    pytest.param(
        lambda a: {**a, RESID: a[RESID][:, 1:]},
        r"rows have shape \(4,\), the store's have \(5,\)",
        id="narrower",
    ),
    pytest.param(
        lambda a: {**a, "blocks.1.hook_resid_post": np.zeros((100, 4), np.float16)},
        "got float16; the store takes bfloat16, as uint16 bit patterns, or float32",
        id="other type",
    ),
    pytest.param(
        lambda a: {**a, "blocks.0.attn.hook_pattern": np.full((100, 2, 3), 1e6, np.float32)},
        r"blocks\.0\.attn\.hook_pattern, row 0: 1e\+06 is beyond float16's largest, 65504",
        id="overflow",
    ),
]


@pytest.mark.parametrize(("change", "says"), BAD_BATCHES)
def test_a_wrong_batch_is_explained_and_writes_nothing(tmp_path, specs, arrays, examples, manifest, change, says):
    with StoreWriter(tmp_path / "acts", specs, examples, manifest) as writer:
        with pytest.raises(StoreError, match=says):
            writer.append(change(arrays))
        assert writer.next_row == 0
        writer.append(arrays)
    assert writer.finished
    with pytest.raises(StoreError, match="this writer is closed"):
        writer.append(arrays)


def test_float32_is_rounded(tmp_path, specs, examples, manifest):
    ones = {name: np.full((100, *spec.shape), 1 / 3, np.float32) for name, spec in specs.items()}
    with StoreWriter(tmp_path / "acts", specs, examples, manifest) as writer:
        writer.append(ones)
    store = open_store(tmp_path / "acts")
    assert (store.read("blocks.0.attn.hook_pattern") == np.float16(1 / 3)).all()
    assert (store.read("blocks.1.hook_resid_post") == np.float32(0.333984375)).all()


BAD_STORES = [
    pytest.param({"activations": {}}, "no hook point given", id="no hook points"),
    pytest.param({"activations": {"a/b": ActivationSpec((), (), "float32")}}, "'a/b'", id="slash"),
    pytest.param({"activations": {"caf\udce9": ActivationSpec((), (), "float32")}}, "must be UTF-8", id="no text"),
    pytest.param({"activations": {"rows": ActivationSpec((), (), "float32")}}, "'rows'", id="taken name"),
    pytest.param({"rows_per_shard": 0}, "rows_per_shard=0: must be at least 1", id="no rows per shard"),
]


@pytest.mark.parametrize(("change", "says"), BAD_STORES)
def test_a_wrong_store_is_explained_and_makes_no_folder(tmp_path, specs, examples, change, says):
    with pytest.raises(StoreError, match=says):
        StoreWriter(tmp_path / "acts", **{"activations": specs, "examples": examples, "manifest": {}, **change})
    assert not (tmp_path / "acts").exists()


def test_a_folder_of_something_else_is_refused(tmp_path, specs, examples, manifest):
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(StoreError, match=r"neither empty nor an activation store \(it holds 'thesis.txt'\)"):
        StoreWriter(tmp_path, specs, examples, manifest)
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        StoreWriter(tmp_path / "thesis.txt", specs, examples, manifest)
    with pytest.raises(StoreError, match=r"thesis\.txt is a file; a store is a folder"):
        StoreWriter(tmp_path / "thesis.txt" / "inner" / "acts", specs, examples, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_row_may_be_one_number(tmp_path, examples):
    with StoreWriter(tmp_path / "acts", {"loss": ActivationSpec((), (), "float32")}, examples, {}) as writer:
        writer.append({"loss": np.arange(100, dtype=np.float32)})
    assert open_store(tmp_path / "acts").read("loss", [3, 99]).tolist() == [3, 99]


# --- what a killed writer can leave -------------------------------------------------------------------------------
def unlist(folder, specs, examples, manifest, n_shards):
    """Put the manifest back to what it was when `n_shards` were listed."""
    from dataclasses import replace

    from workbench.cache.manifest import Manifest

    found = Manifest.read(folder)
    replace(found, shards=found.shards[:n_shards], finished=False).write(folder)


def test_shards_that_are_right_but_not_listed_are_adopted(store_folder, specs, examples, manifest, arrays):
    want = files(store_folder)
    unlist(store_folder, specs, examples, manifest, 2)
    stamp = (store_folder / "shards/000003.h5").stat().st_mtime_ns
    with StoreWriter(store_folder, specs, examples, manifest) as writer:
        assert writer.next_row == 100
    assert (store_folder / "shards/000003.h5").stat().st_mtime_ns == stamp
    assert files(store_folder) == want


@pytest.mark.parametrize("harm", ["flip", "truncate", "other rows", "empty", "not hdf5"])
def test_shards_that_are_wrong_and_not_listed_are_written_anew(
    store_folder, specs, examples, manifest, arrays, write_store, harm
):
    want = files(store_folder)
    unlist(store_folder, specs, examples, manifest, 2)
    path = store_folder / "shards/000002.h5"
    data = bytearray(path.read_bytes())
    if harm == "flip":
        with h5py.File(path) as file:
            data[file["activations/blocks.0.hook_resid_post"].id.get_offset() + 5] ^= 1
    elif harm == "truncate":
        del data[-1:]
    elif harm == "other rows":
        data = (store_folder / "shards/000001.h5").read_bytes()
    path.write_bytes({"empty": b"", "not hdf5": b"hello" * 999}.get(harm, bytes(data)))
    with StoreWriter(store_folder, specs, examples, manifest) as writer:
        assert writer.next_row == 48
    write_store(store_folder, arrays, examples)
    assert files(store_folder) == want


def test_shards_of_another_capture_are_not_adopted(store_folder, specs, examples, make_values):
    """Same plan, same types, right in themselves, of a model that is not at work any more: its manifest was removed."""
    (store_folder / "manifest.json").unlink()
    other = make_values(specs, 100, seed=1)
    with StoreWriter(store_folder, specs, examples, {"fingerprints": {"model": "m1"}}, rows_per_shard=24) as writer:
        assert writer.next_row == 0
        writer.append(other)
    store = open_store(store_folder)
    assert store.verify() == []
    assert store.read(RESID).tobytes() == other[RESID].tobytes()


@pytest.mark.parametrize("beside", [(), ("codes/d/manifest.json", "labels/g.h5", "tokenizer/x", "repair.json")])
def test_a_lost_manifest_is_made_anew_by_the_same_capture(store_folder, specs, examples, manifest, beside):
    for name in beside:
        (store_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (store_folder / name).write_bytes(b"whatever")
    want = files(store_folder)
    (store_folder / "manifest.json").unlink()
    StoreWriter(store_folder, specs, examples, manifest, rows_per_shard=24).close()
    assert files(store_folder) == want


@pytest.mark.parametrize("left", ["shards/000002.h5.part", "manifest.json.part", "examples.h5.part", "index.h5.part"])
def test_unfinished_files_are_cleared_away(store_folder, specs, examples, manifest, arrays, write_store, left):
    want = files(store_folder)
    unlist(store_folder, specs, examples, manifest, 2)
    (store_folder / "shards/000002.h5").unlink()
    (store_folder / left).write_bytes(b"half a file")
    write_store(store_folder, arrays, examples)
    assert files(store_folder) == want


@pytest.mark.parametrize("made", [[".lock"], [".lock", "examples.h5"], [".lock", "examples.h5", "manifest.json.part"]])
def test_killed_before_the_first_manifest(tmp_path, store_folder, write_store, arrays, examples, made):
    folder = tmp_path / "young"
    folder.mkdir()
    for name in made:
        (folder / name).write_bytes(b"")
    write_store(folder, arrays, examples, rows_per_shard=24)
    assert files(folder) == files(store_folder)


@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_listed_shard_that_is_damaged_is_named(store_folder, specs, examples, manifest, harm):
    path = store_folder / "shards/000001.h5"
    data = path.read_bytes()
    path.unlink()
    if harm == "truncated":
        path.write_bytes(data[:-8])
    with pytest.raises(DamageError, match=r"shards/000001\.h5 \(rows 24 to 47\)"):
        StoreWriter(store_folder, specs, examples, manifest)


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of open files from /proc")
def test_what_is_synced_and_when(tmp_path, write_store, arrays, examples, monkeypatch):
    """The folders' names; a shard's bytes, then its name; only then the manifest that lists it, likewise."""
    log = []
    monkeypatch.setattr(os, "fsync", lambda handle: log.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink()}"))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (log.append(f"rename {to}"), rename(self, to)))
    write_store(tmp_path / "acts", arrays, examples, rows_per_shard=50)
    steps = [step.replace(f"{tmp_path}/", "").replace(str(tmp_path), ".") for step in log]

    def commit(path, folder):
        return [f"sync {path}.part", f"rename {path}", f"sync {folder}"]

    manifest = commit("acts/manifest.json", "acts")
    shards = [commit(f"acts/shards/00000{n}.h5", "acts/shards") for n in range(2)]
    assert steps == [
        "sync .", "sync acts", *commit("acts/examples.h5", "acts"), *manifest, *shards[0], *manifest, *shards[1],
        *manifest, *commit("acts/index.h5", "acts"), *manifest,
    ]  # fmt: skip


def test_an_interrupted_writer_ends_at_once_and_keeps_what_is_committed(tmp_path, specs, arrays, examples, manifest):
    def capture():
        with StoreWriter(tmp_path / "acts", specs, examples, manifest, rows_per_shard=10) as writer:
            writer.append({name: array[:35] for name, array in arrays.items()})
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        capture()
    assert time.monotonic() - started < 5
    assert open_store(tmp_path / "acts").n_rows == 30
