"""Exports are read by other libraries, bit for bit; they are whole or not there, and go on where they were left."""

import json
import os
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import safetensors
from datasets import load_from_disk

from workbench.cache import DamageError, StoreError, to_array
from workbench.errors import UserError
from workbench.store_formats import exporting
from workbench.store_formats.exporting import export_store

RESID, PATTERN, MLP = "blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern", "blocks.1.hook_mlp_out"
FORMATS = ("npy", "safetensors", "saelens")
FLAT = [RESID, MLP]  # what SAELens can hold


def options(to):
    return {"hooks": FLAT, "pack": True, "context_size": 2} if to == "saelens" else {}


def tensors(folder):
    """Every tensor of sharded safetensors, by way of the index and the library."""
    index = json.loads((folder / "activations.safetensors.index.json").read_text())
    found, files = {}, set()
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(folder / file, "pt") as opened:
            hook, _, number = name.rpartition("/")
            found.setdefault(hook, {})[number] = to_array(opened.get_tensor(name))
        files.add(file)
    assert files == {path.name for path in folder.glob("*.safetensors")}
    total = sum(part.nbytes for parts in found.values() for part in parts.values())
    assert index["metadata"]["total_size"] == total
    return {hook: np.concatenate([parts[number] for number in sorted(parts)]) for hook, parts in found.items()}


def test_npy_is_read_by_numpy(make_store, tmp_path, small_batches):
    store, bits = make_store(tmp_path / "acts")
    done = export_store(store, to="npy", out=tmp_path / "out")
    assert (done.n_rows, done.n_left_out, done.remarks) == (42, 0, ())
    for name, want in bits.items():
        found = np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        assert (found.dtype, found.shape, found.tobytes()) == (want.dtype, want.shape, want.tobytes())
    rows = np.load(tmp_path / "out" / "rows.npy", allow_pickle=False)
    assert rows.tobytes() == store.origins.tobytes()
    assert rows.dtype == store.origins.dtype
    said = json.loads((tmp_path / "out" / "metadata.json").read_text())["activations"][MLP]
    assert (said["exported"]["dtype"], said["exported"]["written_as"]) == ("bfloat16", "uint16")


def test_safetensors_are_read_by_the_library(make_store, tmp_path, small_batches):
    store, bits = make_store(tmp_path / "acts")
    export_store(store, to="safetensors", out=tmp_path / "out", file_bytes=300)
    found = tensors(tmp_path / "out")
    for name, want in bits.items():
        assert (found[name].dtype, found[name].shape) == (want.dtype, want.shape)
        assert found[name].tobytes() == want.tobytes()
    for field in store.origins.dtype.names:
        assert (found[f"rows.{field}"] == store.origins[field]).all()
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) == 7  # 42 rows of 40 bytes: twice three to a file
    assert max(sizes) < 300 + 1500  # the values, and a header


def test_saelens_folders_are_read_by_datasets(make_store, tmp_path, small_batches):
    store, bits = make_store(tmp_path / "acts")
    done = export_store(store, to="saelens", out=tmp_path / "out", hooks=FLAT, context_size=5, file_bytes=700)
    # of sequences of 10, 4, 10, 10, 1, 7 rows, windows of 5
    kept = np.concatenate([np.arange(10), np.arange(14, 34), np.arange(35, 40)])
    assert (done.n_rows, done.n_left_out) == (35, 7)
    assert any("7 of 42 rows (16.7 %) are left out" in remark for remark in done.remarks)
    assert any(remark == f"{MLP} is written as float32; the store has bfloat16." for remark in done.remarks)
    found = load_from_disk(str(tmp_path / "out")).with_format("numpy")
    assert found.column_names == [RESID, MLP, "token_ids"]
    resid, mlp = np.asarray(found[RESID][:]), np.asarray(found[MLP][:])
    assert (resid.dtype, resid.shape) == (np.float32, (7, 5, 5))
    assert resid.tobytes() == bits[RESID][kept].tobytes()
    assert mlp.tobytes() == (bits[MLP][kept].astype(np.uint32) << 16).tobytes()
    assert np.asarray(found["token_ids"][:]).reshape(-1).tolist() == store.origins["token"][kept].tolist()
    assert len(list((tmp_path / "out").glob("*.arrow"))) > 1


def test_packed_windows_lose_only_the_last_rows(make_store, tmp_path):
    store, bits = make_store(tmp_path / "acts")
    done = export_store(store, to="saelens", out=tmp_path / "out", hooks=RESID, context_size=5, pack=True)
    assert (done.n_rows, done.n_left_out) == (40, 2)
    found = np.asarray(load_from_disk(str(tmp_path / "out")).with_format("numpy")[RESID][:])
    assert found.tobytes() == bits[RESID][:40].tobytes()


def test_windows_do_not_bridge_positions_that_are_no_rows(make_store, tmp_path):
    store, _ = make_store(tmp_path / "acts", rows=lambda length: np.arange(length) != 4)  # 4 + 5 of 10
    export_store(store, to="saelens", out=tmp_path / "out", hooks=RESID, context_size=4)
    found = np.asarray(load_from_disk(str(tmp_path / "out")).with_format("numpy")["token_ids"][:])
    assert found[:, 0].tolist() == [0, 5, 100, 200, 205, 300, 305, 500]
    assert (np.diff(found, axis=1) == 1).all()


@pytest.mark.parametrize("to", FORMATS)
def test_special_rows_are_left_out_when_asked(make_store, tmp_path, to):
    store, bits = make_store(tmp_path / "acts")
    export_store(store, to=to, out=tmp_path / "out", special=False, hooks=RESID)
    ordinary = ~store.origins["special"]
    if to == "saelens":  # windows as long as the longest, 9 rows; three have them
        found = np.asarray(load_from_disk(str(tmp_path / "out")).with_format("numpy")[RESID][:])
        assert found.tobytes() == bits[RESID][ordinary][[*range(9), *range(12, 30)]].tobytes()
    else:
        found = np.load(tmp_path / "out" / f"{RESID}.npy") if to == "npy" else tensors(tmp_path / "out")[RESID]
        assert found.tobytes() == bits[RESID][ordinary].tobytes()


@pytest.mark.parametrize("to", ["npy", "safetensors"])
def test_values_are_rounded_when_asked(make_store, specs, tmp_path, to):
    values = np.linspace(-3, 3, 20, dtype=np.float32).reshape(4, 5)
    store, _ = make_store(tmp_path / "acts", [4], specs={RESID: specs[RESID]}, bits={RESID: values})
    export_store(store.folder, to=to, out=tmp_path / "out", dtype="float16")
    found = np.load(tmp_path / "out" / f"{RESID}.npy") if to == "npy" else tensors(tmp_path / "out")[RESID]
    assert found.tobytes() == values.astype(np.float16).tobytes()


def test_labels_and_tokenizer_travel_too(make_store, tmp_path):
    store, _ = make_store(tmp_path / "acts", labels=True)
    (store.folder / "tokenizer").mkdir()
    (store.folder / "tokenizer" / "tokenizer.json").write_text("{}")
    export_store(store, to="npy", out=tmp_path / "out", special=False)
    ordinary = ~store.origins["special"]
    with h5py.File(tmp_path / "out" / "labels" / "rows.h5") as file:
        assert (file["odd/values"][()] == (np.arange(42) % 2 * (np.arange(42) % 2 == 0))[ordinary]).all()
        assert (file["odd/defined"][()] == (np.arange(42) % 2 == 0)[ordinary]).all()
    with h5py.File(tmp_path / "out" / "examples.h5") as file:
        assert file["positions/selected"][()].sum() == ordinary.sum()
        assert file["documents/name"].asstr()[()].tolist() == store.documents
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert not list((tmp_path / "out").rglob(".lock"))


@pytest.mark.parametrize("to", FORMATS)
def test_rows_that_are_committed_are_exported_from_an_unfinished_store(make_store, tmp_path, to, caplog):
    store, bits = make_store(tmp_path / "acts", stop=20, labels=True)  # two shards of 8
    done = export_store(store, to=to, out=tmp_path / "out", **options(to))
    assert done.n_rows == 16
    assert "unfinished: 16 of 42 rows" in caplog.text
    if to == "npy":
        assert np.load(tmp_path / "out" / f"{RESID}.npy").tobytes() == bits[RESID][:16].tobytes()


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_export_goes_on_and_ends_with_the_same_bytes(
    make_store, tmp_path, to, after, small_batches, all_digests, monkeypatch
):
    store, _ = make_store(tmp_path / "acts")
    whole = {"to": to, "file_bytes": 300, **options(to)}
    export_store(store, out=tmp_path / "whole", **whole)
    kind = exporting.format_of(to)
    with interrupted(monkeypatch, kind, after), pytest.raises(KeyboardInterrupt):
        export_store(store, out=tmp_path / "out", **whole)
    assert not (tmp_path / "out").exists()
    begun = [row for row, _ in spied(monkeypatch, kind, lambda: export_store(store, out=tmp_path / "out", **whole))]
    assert begun[0] > 0  # what was durable is not written again
    assert all_digests(tmp_path / "out") == all_digests(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"acts", "out", "whole"}


@contextmanager
def interrupted(monkeypatch, kind, after):
    """Press Ctrl-C when some pieces are durable and the next one is about to be."""
    commit, n = kind.commit, iter(range(100))

    def pressed(self):
        if next(n) == after:
            raise KeyboardInterrupt
        return commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "commit", pressed)
        yield


def spied(monkeypatch, kind, work):
    """Note the rows with which pieces are begun."""
    seen, begin = [], kind.begin
    with monkeypatch.context() as patch:
        patch.setattr(kind, "begin", lambda self, row: (seen.append((row, self.folder)), begin(self, row))[1])
        work()
    return seen


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_was_stopped_before_its_first_piece_leaves_nothing(make_store, tmp_path, to, monkeypatch):
    store, _ = make_store(tmp_path / "acts")
    with interrupted(monkeypatch, exporting.format_of(to), 0), pytest.raises(KeyboardInterrupt):
        export_store(store, to=to, out=tmp_path / "out", **options(to))
    assert {path.name for path in tmp_path.iterdir()} == {"acts"}


def test_the_same_export_of_a_finished_one_does_nothing_and_another_is_refused(make_store, tmp_path, all_digests):
    store, _ = make_store(tmp_path / "acts")
    done = export_store(store, to="npy", out=tmp_path / "out")
    before = all_digests(tmp_path / "out")
    assert export_store(store, to="npy", out=tmp_path / "out") == done
    for other in ({"hooks": RESID}, {"special": False}, {"dtype": "float32"}):
        with pytest.raises(UserError, match="out exists already: name another folder"):
            export_store(store, to="npy", out=tmp_path / "out", **other)
    assert all_digests(tmp_path / "out") == before


def test_another_export_is_not_continued(make_store, tmp_path, small_batches, monkeypatch):
    store, _ = make_store(tmp_path / "acts")
    with interrupted(monkeypatch, exporting.format_of("npy"), 1), pytest.raises(KeyboardInterrupt):
        export_store(store, to="npy", out=tmp_path / "out")
    with pytest.raises(UserError, match=r"out\.part is an unfinished export of another store or with other options"):
        export_store(store, to="npy", out=tmp_path / "out", hooks=RESID)
    other, _ = make_store(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"out\.part is an unfinished export of another store"):
        export_store(other, to="npy", out=tmp_path / "out")
    export_store(store, to="npy", out=tmp_path / "out")


@pytest.mark.parametrize("to", FORMATS)
def test_a_damaged_store_is_not_exported(make_store, tmp_path, to):
    store, _ = make_store(tmp_path / "acts")
    shard = store.folder / "shards" / "000003.h5"
    with h5py.File(shard) as file:
        place = file[f"activations/{RESID}"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[place + 3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DamageError, match=rf"shards/000003\.h5, dataset /activations/{RESID}, chunk 0"):
        export_store(store, to=to, out=tmp_path / "out", **options(to))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_with_the_file_and_nothing_is_there(make_store, tmp_path, monkeypatch):
    store, _ = make_store(tmp_path / "acts")

    def full(self, values, origins):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.format_of("npy"), "append", full)
    with pytest.raises(UserError, match=r"cannot write .*out\.part: No space left on device"):
        export_store(store, to="npy", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere (issue 4)")
def test_a_folder_that_cannot_be_written_is_told(make_store, tmp_path):
    store, _ = make_store(tmp_path / "acts")
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(StoreError, match=r"cannot write .*shut"):
        export_store(store, to="npy", out=tmp_path / "shut" / "out")


BAD_INPUT = [
    pytest.param({"to": "numpy"}, "format 'numpy': a store is exported to npy, safetensors, saelens", id="format"),
    pytest.param({"hooks": "blocks.0.hook_resid_pots"}, f"nearest: {RESID}", id="hook point"),
    pytest.param({"hooks": ["*mlp*", "*nope*"]}, "no hook point '*nope*'", id="pattern"),
    pytest.param({"dtype": "float64"}, "dtype 'float64': must be one of float32, float16, bfloat16", id="dtype"),
    pytest.param({"file_bytes": 0}, "file_bytes=0: must be above 0", id="file size"),
    pytest.param({"pack": True}, "pack are for saelens; npy has no windows", id="pack without windows"),
    pytest.param({"context_size": 4}, "pack are for saelens; npy has no windows", id="windows without windows"),
    pytest.param({"to": "saelens"}, f"{PATTERN} is one number per key", id="attention patterns"),
    pytest.param({"to": "saelens", "hooks": RESID, "context_size": 0}, "context size 0: must be at least 1", id="size"),
    pytest.param(
        {"to": "saelens", "hooks": RESID, "context_size": 11},
        "no window has so many rows, the longest has 10",
        id="long",
    ),
    pytest.param(
        {"to": "saelens", "hooks": RESID, "context_size": 43, "pack": True}, "42 rows in all", id="longer than all"
    ),
    pytest.param(
        {"to": "saelens", "hooks": RESID, "dtype": "bfloat16"}, "hold float32 and float16", id="dtype of SAELens"
    ),
]


@pytest.mark.parametrize(("given", "says"), BAD_INPUT)
def test_bad_input_is_explained(make_store, tmp_path, given, says):
    store, _ = make_store(tmp_path / "acts")
    with pytest.raises(UserError) as raised:
        export_store(store, **{"to": "npy", "out": tmp_path / "out", **given})
    assert says in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"acts"}


def test_what_is_in_the_way_is_named(make_store, tmp_path):
    store, _ = make_store(tmp_path / "acts")
    with pytest.raises(UserError, match="acts exists already"):
        export_store(store, to="npy", out=store.folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot write"):
        export_store(store, to="npy", out=tmp_path / "file" / "out")
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"out\.part exists and is no unfinished export"):
        export_store(store, to="npy", out=tmp_path / "out")
    assert (tmp_path / "out.part" / "mine").read_text() == "mine"


def test_a_store_without_rows_has_nothing_to_export(make_store, tmp_path):
    store, _ = make_store(tmp_path / "acts", stop=0)
    with pytest.raises(UserError, match="has no rows: there is nothing to export"):
        export_store(store, to="npy", out=tmp_path / "out")
