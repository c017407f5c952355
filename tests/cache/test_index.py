import h5py
import numpy as np

from workbench.cache import ExamplesBuilder, StoreWriter


def same(found, want):
    return found.dtype == want.dtype and found.shape == want.shape and found.tobytes() == want.tobytes()


def test_plain_h5py_reads_all_shards_as_one_wherever_they_are(store_folder, tmp_path, arrays, examples, specs):
    moved = store_folder.rename(tmp_path / "elsewhere")
    with h5py.File(moved / "index.h5") as file:
        for name, want in arrays.items():
            found = file[f"activations/{name}"]
            assert same(found[()], want)
            assert found.attrs["dtype"] == specs[name].dtype
            assert found.attrs["axes"].split() == ["row", *specs[name].axes]
            assert found.attrs["unit"] == specs[name].unit
        assert same(file["rows"][()], examples.origins(0, 100))


def test_plain_h5py_reads_one_shard(store_folder, arrays, examples):
    with h5py.File(store_folder / "shards" / "000004.h5") as file:
        assert file.attrs["first_row"] == 96
        for name, want in arrays.items():
            assert same(file[f"activations/{name}"][()], want[96:])
            assert file[f"checksums/{name}"].dtype == np.uint64
        assert same(file["rows"][()], examples.origins(96, 100))


def test_a_missing_shard_reads_as_what_no_one_takes_for_a_measurement(store_folder):
    (store_folder / "shards" / "000001.h5").unlink()
    with h5py.File(store_folder / "index.h5") as file:
        assert np.isnan(file["activations/blocks.0.hook_resid_post"][24:48]).all()
        assert np.isnan(file["activations/blocks.0.attn.hook_pattern"][24:48]).all()
        assert (file["activations/blocks.1.hook_resid_post"][24:48] == 0x7FC0).all()
        assert (file["rows"]["position"][24:48] == -1).all()


def test_each_shard_is_named_once_for_each_column_by_a_relative_name(store_folder, arrays):
    with h5py.File(store_folder / "index.h5") as file:
        for path in [*(f"activations/{name}" for name in arrays), "rows"]:
            sources = file[path].virtual_sources()
            assert [s.file_name for s in sources] == [f"shards/{i:06d}.h5" for i in range(5)]
            assert {s.dset_name for s in sources} == {f"/{path}"}
            bounds = [s.vspace.get_select_bounds() for s in sources]
            assert [(low[0], high[0]) for low, high in bounds] == [(0, 23), (24, 47), (48, 71), (72, 95), (96, 99)]


def test_an_empty_store_has_an_index(tmp_path, specs):
    StoreWriter(tmp_path / "acts", specs, ExamplesBuilder().build(), {}).close()
    with h5py.File(tmp_path / "acts" / "index.h5") as file:
        assert file["activations/blocks.0.hook_resid_post"].shape == (0, 5)


def test_it_is_rebuilt_and_never_believed(store_folder, write_store, arrays, examples, all_datasets):
    want = all_datasets(store_folder)
    (store_folder / "index.h5").write_bytes(b"nonsense")
    write_store(store_folder, arrays, examples)
    assert all_datasets(store_folder) == want
