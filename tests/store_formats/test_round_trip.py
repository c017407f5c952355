"""What is exported comes back bit for bit: any values, any lengths, any size of file, stopped anywhere."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cache import open_store
from workbench.store_formats.exporting import export_store
from workbench.store_formats.importing import import_store

RESID, PATTERN, MLP = "blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern", "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("to", ["npy", "safetensors", "saelens"])
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 2**32 - 1),
    file_bytes=st.integers(1, 2000),
    special=st.booleans(),
    data=st.data(),
)
def test_a_store_comes_back_as_it_was(make_store, to, lengths, seed, file_bytes, special, data):
    if not special and max(lengths) < 2:
        special = True
    with TemporaryDirectory() as name:  # not tmp_path: that is one folder for all examples
        folder = Path(name)
        store, bits = make_store(folder / "acts", lengths, seed=seed, labels=True)
        given = {"hooks": [RESID, MLP], "context_size": data.draw(st.integers(1, max(lengths) - 1 or 1))}
        hooks = {} if to != "saelens" else given
        export_store(store, to=to, out=folder / "out", file_bytes=file_bytes, special=special, **hooks)
        back = import_store(folder / "out", out=folder / "back")
        assert back.verify() == []
        kept = np.flatnonzero(np.isin(store.origins, back.origins))
        assert len(kept) == back.n_rows
        assert back.origins.tobytes() == store.origins[kept].tobytes()
        if to != "saelens":
            assert back.n_rows == (store.n_rows if special else (~store.origins["special"]).sum())
        for hook, spec in back.hook_points.items():
            assert spec == store.hook_points[hook]
            assert stored_bits(back, hook) == bits[hook][kept].tobytes()
        assert (back.documents, back.document_fields) == (store.documents, store.document_fields)
        assert back.labels == store.labels
        for label in store.labels:
            for found, want in zip(back.label(label), store.label(label), strict=True):
                np.testing.assert_array_equal(found, want[kept])


def stored_bits(store, hook):
    values = store.read_tensor(hook)
    return values.contiguous().view(-1).numpy().tobytes() if hook != MLP else bfloat16_bits(values)


def bfloat16_bits(values):
    import torch

    return values.contiguous().view(torch.int16).numpy().tobytes()


def test_what_is_recorded_of_the_capture_comes_back(make_store, tmp_path):
    store, _ = make_store(tmp_path / "acts")
    export_store(store, to="npy", out=tmp_path / "out")
    back = import_store(tmp_path / "out", out=tmp_path / "back").manifest
    for key in ("model", "dataset"):
        assert back[key] == store.manifest[key]
    assert back["fingerprints"].items() > store.manifest["fingerprints"].items()
    assert back["exported_from"] == store.fingerprint()
    assert back["import"]["from"] == "npy"


def test_types_and_hook_points_can_be_chosen_on_the_way_back(make_store, tmp_path):
    values = np.linspace(-2, 2, 10, dtype=np.float32).reshape(2, 5)
    store, _ = make_store(tmp_path / "acts", [2], specs={RESID: spec("float32")}, bits={RESID: values})
    export_store(store, to="safetensors", out=tmp_path / "out")
    back = import_store(tmp_path / "out", out=tmp_path / "back", hooks="*resid*", store_dtype="float16")
    assert back.read(RESID).tobytes() == values.astype(np.float16).tobytes()


def spec(dtype):
    from workbench.cache import ActivationSpec

    return ActivationSpec(("d_model",), (5,), dtype)


def test_bfloat16_exported_as_float32_comes_back_with_every_bit(make_store, specs, tmp_path):
    every = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 4)  # NaN with every payload, -0.0, subnormals
    lengths = [1 << 10] * 16
    store, _ = make_store(tmp_path / "acts", lengths, specs={MLP: specs[MLP]}, bits={MLP: every}, rows_per_shard=4096)
    export_store(store, to="npy", out=tmp_path / "out", dtype="float32")
    assert np.load(tmp_path / "out" / f"{MLP}.npy").dtype == np.float32
    back = import_store(tmp_path / "out", out=tmp_path / "back")
    assert bfloat16_bits(back.read_tensor(MLP)) == every.tobytes()


@pytest.mark.parametrize("to", ["npy", "safetensors", "saelens"])
def test_a_damaged_export_is_not_imported(make_store, tmp_path, to):
    from workbench.errors import UserError

    store, _ = make_store(tmp_path / "acts")
    export_store(store, to=to, out=tmp_path / "out", hooks=RESID)
    suffix = {"npy": f"{RESID}.npy", "safetensors": "*.safetensors", "saelens": "*.arrow"}[to]
    (file,) = (tmp_path / "out").glob(suffix)
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name} is damaged: it is not what was exported"):
        import_store(tmp_path / "out", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_exported_store_can_be_exported_again(make_store, tmp_path):
    store, bits = make_store(tmp_path / "acts")
    export_store(store, to="npy", out=tmp_path / "a")
    import_store(tmp_path / "a", out=tmp_path / "b")
    export_store(open_store(tmp_path / "b"), to="safetensors", out=tmp_path / "c")
    last = import_store(tmp_path / "c", out=tmp_path / "d")
    assert stored_bits(last, RESID) == bits[RESID].tobytes()


def test_int8_goes_out_as_the_float32_values_that_it_stands_for(make_store, tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 5), np.float32)
    x[:, 2] *= 300  # a channel with a factor of its own
    np.save(tmp_path / "x.npy", x)
    store = import_store(tmp_path / "x.npy", out=tmp_path / "acts", hooks=RESID, store_dtype="int8")
    assert store.hook_points[RESID].dtype == "int8"
    assert 0 < np.abs(store.read(RESID) - x).max() < 300 * 4 / 127
    done = export_store(store, to="safetensors", out=tmp_path / "out")
    assert done.remarks == (f"{RESID} is written as float32; the store has int8.",)
    back = import_store(tmp_path / "out", out=tmp_path / "back")
    assert back.hook_points[RESID].dtype == "float32"
    assert back.read(RESID).tobytes() == store.read(RESID).tobytes()
